"""Shows one algorithm from near: its picture, what every rank sends, what it costs, its proof."""

from __future__ import annotations

import argparse
import inspect
import re
from typing import TYPE_CHECKING

from launch.commands import CommandError

if TYPE_CHECKING:
    from rich.table import Table

    from collectives.schedule import Algorithm
    from collectives.steps import Step

HELP = "show an algorithm: picture, steps, bytes, cost, proof"
DESCRIPTION = """\
Shows one algorithm at one number of ranks: who sends what to whom in which round, what every rank
sends and adds up, what it costs, and whether it is proved. For example

    collectives explain allreduce ring -n 4 --bytes 1M

Without an algorithm it lists those of the collective. `collectives algorithms` shows them all.

The parameters of the cost are nominal, not measured, unless you give your own.
"""
INTERMIXED = True

NOMINAL = {"alpha": 1e-6, "beta": 1e-10, "gamma": 5e-11}
"""A microsecond a message, 10 GB/s, 20 GB/s added up: a round-number machine, nobody's own."""

_MEANING = {
    "alpha": "seconds a message",
    "beta": "seconds a byte moved",
    "gamma": "seconds a byte reduced",
}
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_MOST_ROWS = 9


def parse_bytes(text: str) -> int:
    """A number of bytes, such as 65536, 64K, 1.5MiB or 2G (all powers of 1024).

    Raises:
        ValueError: it is none; says what is expected.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    number = float(match[1]) * _UNITS[match[2].upper()] if match else -1.0
    if number < 0 or number != int(number):
        raise ValueError(f"expected a number of bytes such as 4096, 64K or 1M, found {text!r}")
    return int(number)


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument("collective", help="such as allreduce")
    parser.add_argument("algorithm", nargs="?", help="such as ring; without: list them")
    parser.add_argument(
        "-n", "--ranks", type=int, default=4, metavar="N", help="number of ranks (default 4)"
    )
    parser.add_argument("--root", type=int, default=0, metavar="R", help="the root (default 0)")
    parser.add_argument(
        "--bytes", default="1M", metavar="SIZE", help="size of all chunks together (default 1M)"
    )
    for name, value in NOMINAL.items():
        parser.add_argument(
            f"--{name}",
            type=float,
            default=value,
            metavar="S",
            help=f"{_MEANING[name]} (default {value:g}, nominal)",
        )


def execute(arguments: argparse.Namespace) -> int:
    """Prints the explanation."""
    from collectives.catalogue import find_to_show
    from collectives.proof import verify

    if arguments.algorithm is None:
        _list_algorithms(arguments.collective)
        return 0
    try:
        algo = find_to_show(arguments.collective, arguments.algorithm)
        nbytes = parse_bytes(arguments.bytes)
        _check_numbers(arguments, algo)
    except ValueError as error:
        raise CommandError(str(error)) from None
    certificate = verify(algo, arguments.ranks, arguments.root)
    _describe(algo, arguments.ranks, arguments.root)
    _traffic(algo, arguments.ranks, arguments.root, nbytes)
    _costs(algo, arguments, nbytes)
    order = "added up in rank order" if certificate.rank_order else "not added up in rank order"
    safe = (
        "all access to memory in order, no dead-lock with one notify on its way"
        if algo.one_sided
        else "no dead-lock with one slot a rank"
    )
    print(
        f"proved for n={arguments.ranks}"
        + f", root {arguments.root}" * algo.spec.rooted
        + f": {safe}, every rank ends with what the collective demands"
        + f", the same bits everywhere, {order}" * algo.spec.reduces
    )
    return 0


def _list_algorithms(collective: str) -> None:
    """The algorithms of a collective, each with what it is for, and how to see one."""
    from collectives.catalogue import find, names
    from launch.commands.algorithms import console_on_stdout, plain_table

    try:
        known = names(collective)
    except ValueError as error:
        raise CommandError(str(error)) from None
    table = plain_table("algorithm", "")
    for name in known:
        algo = find(collective, name)
        says = (inspect.getdoc(algo.body) or "").partition("\n")[0]
        table.add_row(name, says if name == algo.name else f"another name of {algo.name}")
    console_on_stdout().print(table)
    print(f"\ncollectives explain {collective} {known[0]} -n 4 shows one of them from near.")


def _check_numbers(arguments: argparse.Namespace, algo: Algorithm) -> None:
    size, root = arguments.ranks, arguments.root
    if size < 1:
        raise ValueError(f"-n must be at least 1, found {size}")
    if not 0 <= root < size:
        raise ValueError(f"--root must be in 0..{size - 1}, found {root}")
    if root and not algo.spec.rooted:
        raise ValueError(f"{algo.collective} has no root, found --root {root}")
    if not algo.allows(size):
        raise ValueError(f"{algo.collective} {algo.name} is not written for {size} ranks")
    for name, meaning in _MEANING.items():
        if not 0 <= getattr(arguments, name) < float("inf"):
            raise ValueError(f"--{name} must be {meaning}, >= 0, found {getattr(arguments, name)}")


def _describe(algo: Algorithm, size: int, root: int) -> None:
    """Who it is, its picture, and what its author says."""
    from rich.text import Text

    from collectives.picture import draw
    from launch.commands.algorithms import console_on_stdout

    console = console_on_stdout()
    of_root = f", root {root}" if algo.spec.rooted else ""
    title = f"{algo.collective} by {algo.name}, {size} rank{'s' * (size > 1)}{of_root}"
    console.print(Text(title, style="bold"))
    console.print(Text(f"after {algo.source}") if algo.source else "")
    print()
    print(draw(algo, size, root, width=console.width if console.is_terminal else 100))
    print()
    print(inspect.getdoc(algo.body) or "")
    print()


def _traffic(algo: Algorithm, size: int, root: int, nbytes: int) -> None:
    """What every rank does, in a table."""
    from launch.commands.algorithms import console_on_stdout

    lengths = _chunk_bytes(algo, size, nbytes)
    table = _traffic_table(algo, size, root, lengths)
    console = console_on_stdout()
    console.print(
        f"with {_readable(nbytes)} in all, in {len(lengths)} chunk{'s' * (len(lengths) > 1)}:",
        markup=False,
    )
    console.print(table)
    if size > _MOST_ROWS:
        print(f"⋮ {size - _MOST_ROWS} more ranks")
    print()


def _traffic_table(algo: Algorithm, size: int, root: int, lengths: list[int]) -> Table:
    from collectives.lowering import lower
    from launch.commands.algorithms import plain_table

    out, into = ("written", "read") if algo.one_sided else ("sent", "received")
    messages = "notifies sent" if algo.one_sided else "messages sent"
    table = plain_table(
        "", "steps", "once fused", messages, f"bytes {out}", f"bytes {into}", "bytes reduced"
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for rank in range(min(size, _MOST_ROWS)):
        steps = algo.schedule(rank, size, root)
        moved = [_moved(step, lengths) for step in steps]
        fused = len(lower(algo, rank, size, root).instructions)
        counts = (len(steps), fused, *map(sum, zip((0, 0, 0, 0), *moved, strict=True)))
        table.add_row(f"rank {rank}", *(f"{count:,}" for count in counts))
    return table


def _moved(step: Step, lengths: list[int]) -> tuple[int, int, int, int]:
    """Messages or notifies of a step; bytes sent or written, received or read, and reduced."""
    from collectives.rounds import peers_of
    from collectives.steps import Copy, Notify, ReadReduce, RecvReduce, Send, Wait, Write

    if isinstance(step, Copy | Wait):
        return 0, 0, 0, 0
    peers = len(peers_of(step))
    nbytes = peers * sum(lengths[chunk] for chunk in step.chunks)
    if isinstance(step, Send | Notify):
        return peers, nbytes, 0, 0
    if isinstance(step, Write):
        return 0, nbytes, 0, 0
    return 0, 0, nbytes, nbytes * isinstance(step, RecvReduce | ReadReduce)


def _chunk_bytes(algo: Algorithm, size: int, nbytes: int) -> list[int]:
    """The bytes of every chunk, where `nbytes` are split as a call splits them."""
    from transports.plan import split_evenly

    if algo.spec.chunking == "empty":
        return [0]
    if algo.spec.chunking == "pairs":
        return list(split_evenly(nbytes, size)) * size
    return list(split_evenly(nbytes, algo.chunk_count(size)))


def _costs(algo: Algorithm, arguments: argparse.Namespace, nbytes: int) -> None:
    """The closed forms, with their values."""
    from collectives.closed_form import evaluate

    rates = {name: getattr(arguments, name) for name in NOMINAL}
    size, s = arguments.ranks, 0 if algo.spec.chunking == "empty" else nbytes
    nominal = " (nominal)" if rates == NOMINAL else ""
    messages = evaluate(algo.messages, n=size)
    volume = float(evaluate(algo.volume, n=size, s=s))
    seconds = float(evaluate(algo.cost, n=size, s=s, **rates))
    stated = ", ".join(f"{name} {value:g} s" for name, value in rates.items())
    if algo.one_sided:
        print(f"the busiest rank sends   {algo.messages} notifies = {messages}")
        print(f"        reads and writes {algo.volume} bytes of peers = {volume:,.0f}")
    else:
        print(f"the busiest rank sends   {algo.messages} messages = {messages}")
        print(f"                         {algo.volume} bytes = {volume:,.0f}")
    print(f"the critical path takes  {algo.cost}")
    print(f"                         = {_duration(seconds)} at {stated}{nominal}")
    print()


def _readable(nbytes: int) -> str:
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if nbytes >= unit and nbytes % unit == 0:
            return f"{nbytes // unit} {name}"
    return f"{nbytes:,} bytes"


def _duration(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} µs"
