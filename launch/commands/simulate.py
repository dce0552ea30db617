"""Simulates algorithms on a model machine: time, critical path, who is quickest at which size."""

from __future__ import annotations

import argparse
from contextlib import contextmanager
from typing import TYPE_CHECKING

from launch.commands import CommandError
from launch.commands.explain import parse_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from collectives.cost.links import Links
    from collectives.cost.simulation import Leg, Simulation
    from collectives.schedule import Algorithm

HELP = "simulate algorithms at any number of ranks: time, critical path, crossovers"
DESCRIPTION = """\
Runs the schedules of all ranks on a model machine: time and critical path of one algorithm, or
with `all` every algorithm of a collective side by side, and which is the quickest at which size.

    collectives simulate allreduce ring -n 4096 --links "alpha=1us,beta=0.1ns,gamma=0.05ns"
    collectives simulate allreduce all -n 64 --hosts 8 \\
        --links "alpha=1us,beta=0.1ns; between: alpha=10us,beta=1ns"

A message of b bytes takes alpha + b beta, reducing them b gamma more; `between` is between hosts.
What is left out is nominal: alpha=1us, beta=0.1ns, gamma=0.05ns. docs/cost.md says more.
"""
INTERMIXED = True

_LEGS = 12  # of the critical path, shown from either end


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument("collective", help="such as allreduce")
    parser.add_argument("algorithm", help="such as ring; all compares every one")
    parser.add_argument(
        "-n", "--ranks", type=int, default=4, metavar="N", help="number of ranks (default 4)"
    )
    parser.add_argument(
        "--hosts", type=int, default=1, metavar="H", help="hosts, filled evenly (default 1)"
    )
    parser.add_argument("--root", type=int, default=0, metavar="R", help="the root (default 0)")
    parser.add_argument(
        "--bytes", default="1M", metavar="SIZE", help="size of all chunks together (default 1M)"
    )
    parser.add_argument(
        "--links", default="", metavar="TEXT", help="alpha, beta and gamma, as above"
    )


def execute(arguments: argparse.Namespace) -> int:
    """Prints what the model machine says."""
    from collectives.catalogue import find_to_show
    from collectives.cost.comparison import able_algorithms
    from collectives.cost.links import parse_links, spread_over
    from collectives.specs import spec_named

    size, root = arguments.ranks, arguments.root
    try:
        spec = spec_named(arguments.collective)
        if size < 1:
            raise ValueError(f"-n must be at least 1, found {size}")
        if not 0 <= root < size:
            raise ValueError(f"--root must be in 0..{size - 1}, found {root}")
        if root and not spec.rooted:
            raise ValueError(f"{spec.name} has no root, found --root {root}")
        nbytes = parse_bytes(arguments.bytes)
        links = parse_links(arguments.links, spread_over(size, arguments.hosts))
        if arguments.algorithm == "all":
            _compare(able_algorithms(spec.name, size, one_sided=True), size, nbytes, links, root)
            return 0
        algo = find_to_show(spec.name, arguments.algorithm)
        if not algo.allows(size):
            raise ValueError(f"{spec.name} {algo.name} is not written for {size} ranks")
    except ValueError as error:
        raise CommandError(str(error)) from None
    _show_one(algo, size, nbytes, links, root)
    return 0


def _show_one(algo: Algorithm, size: int, nbytes: int, links: Links, root: int) -> None:
    from collectives.closed_form import evaluate
    from collectives.cost.simulation import run_simulation
    from launch.commands.explain import _duration, _readable

    found = run_simulation(algo, size, nbytes, links, root)
    of_root = f", root {root}" if algo.spec.rooted else ""
    print(f"{algo.collective} by {algo.name}, {size} ranks{of_root}, {_readable(nbytes)} in all")
    print(_stated(links))
    print(f"{_duration(float(found.seconds))} until rank {found.last} has ended ({found.method})")
    if links.uniform:
        rates, s = links.inside, 0 if algo.spec.chunking == "empty" else nbytes
        form = evaluate(
            algo.cost, n=size, s=s, alpha=rates.alpha, beta=rates.beta, gamma=rates.gamma
        )
        print(f"{_duration(float(form))} by the closed form {algo.cost}")
    print()
    _show_path(found)


def _stated(links: Links) -> str:
    levels = [("" if links.uniform else "inside a host: ", links.inside)]
    if links.between is not None and not links.uniform:
        levels.append(("between hosts: ", links.between))
    return "; ".join(
        f"{name}alpha {link.alpha:g} s, beta {link.beta:g} s, gamma {link.gamma:g} s"
        for name, link in levels
    )


def _show_path(found: Simulation) -> None:
    """The critical path, its middle left out where it is long."""
    from launch.commands.algorithms import console_on_stdout, plain_table
    from launch.commands.explain import _duration

    if found.path is None:
        print("the critical path is not traced where so many messages are simulated rank by rank")
        return
    messages, moved, reduced = found.composition()
    print(
        f"critical path: {messages:,} messages, {moved:,} chunks moved, {reduced:,} chunks reduced"
    )
    if found.method == "all ranks alike":
        print("all ranks do the same at the same time; shown is rank 0")
    table = plain_table("begins", "lasts", "step", "")
    for column in table.columns[:3]:
        column.justify = "right"
    for leg in _shown(found.path):
        if leg is None:
            table.add_row("⋮", "⋮", "⋮", f"{len(found.path) - 2 * _LEGS:,} more")
            continue
        lasts = _duration(float(leg.end - leg.begin))
        what = _what(leg, found.method == "all ranks alike")
        table.add_row(_duration(float(leg.begin)), lasts, str(leg.step), what)
    console_on_stdout().print(table)


def _shown(path: Sequence[Leg]) -> list[Leg | None]:
    if len(path) <= 2 * _LEGS + 1:
        return list(path)
    return [*path[:_LEGS], None, *path[-_LEGS:]]


def _what(leg: Leg, alike: bool) -> str:
    chunks = f"{leg.chunks} chunk{'s' * (leg.chunks != 1)}" if leg.chunks else "no chunk"
    added = ", added there" if leg.reduced else ""
    if not leg.message:
        worked = max(leg.chunks, leg.reduced)
        return f"rank {leg.source} works on {worked} chunk{'s' * (worked > 1)} of memory"
    if alike:
        return f"every rank sends {chunks}{added}"
    return f"rank {leg.source} → rank {leg.target}: {chunks}{added}"


@contextmanager
def _progress() -> Iterator[Callable[[Algorithm, int], None]]:
    """Shows on a terminal what is being simulated; where many ranks are, it takes a while."""
    from rich.console import Console

    from launch.commands.explain import _readable

    with Console(stderr=True).status("simulating") as status:
        yield lambda algo, nbytes: status.update(f"simulating {algo.name}, {_readable(nbytes)}")


def _compare(
    algorithms: Sequence[Algorithm], size: int, nbytes: int, links: Links, root: int
) -> None:
    from collectives.cost.comparison import model_seconds, reigns
    from launch.commands.algorithms import console_on_stdout, plain_table
    from launch.commands.explain import _duration, _readable

    name = algorithms[0].collective
    console = console_on_stdout()
    print(f"{name}, {size} ranks, {_readable(nbytes)} in all; {_stated(links)}", flush=True)
    times: dict[Algorithm, float] = {}
    with _progress() as notice:
        for algo in algorithms:
            notice(algo, nbytes)
            times[algo] = float(model_seconds(algo, size, nbytes, links, root))
    table = plain_table("algorithm", "time", "of the best", "closed form")
    for column in table.columns[1:3]:
        column.justify = "right"
    best = min(times.values())
    for algo in sorted(algorithms, key=lambda each: times[each]):
        ratio = f"{times[algo] / best:.2f}" if best else ""
        note = " (symmetric memory)" if algo.one_sided else ""
        table.add_row(algo.name + note, _duration(times[algo]), ratio, algo.cost, style=None)
    console.print(table, markup=False)
    messages = [algo for algo in algorithms if not algo.one_sided]
    if algorithms[0].spec.chunking == "empty" or not messages:
        return
    print()
    print("quickest by size, of those that send messages:", flush=True)
    table = plain_table("from", "to", "algorithm", "time at the first")
    for column in (*table.columns[:2], table.columns[3]):
        column.justify = "right"
    with _progress() as notice:
        found = reigns(messages, size, links, root, notice=notice)
    for each in found:
        table.add_row(
            _readable(each.least), _readable(each.most), each.algorithm.name,
            _duration(float(each.seconds)),
        )  # fmt: skip
    console.print(table)
