"""Lists every algorithm with what it costs, or where each has passed the conformance suite."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from launch.commands import CommandError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from collectives.conformance import Outcome, Results

HELP = "list the algorithms: what each sends and costs; with --matrix, where each was tested"
DESCRIPTION = """\
Lists every algorithm. In the formulas n is the number of ranks and s the size in bytes of all
chunks together (of alltoall: what one rank sends in all). messages and volume are those of the
busiest rank; cost is the time of the critical path with alpha seconds a message, beta a byte moved
and gamma a byte reduced; lg is the base-2 logarithm rounded up, fl rounded down, p2 the largest
power of two that is not above. One-sided algorithms need arrays from comm.empty; their messages
are notifies, which are empty, and their volume is what is read from and written to the memory of
peers. `collectives explain` shows one of them from near.
"""

_ALWAYS = ("shm",)  # transports with a column even where nothing was run
_PLAIN_WIDTH = 400  # where nobody's terminal wraps lines, neither do we
_FAMILIES = ("ring", "tree")


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument("collective", nargs="?", help="list only those of this collective")
    parser.add_argument(
        "--matrix",
        action="store_true",
        help="show each collective by ring and tree over each transport, as last tested",
    )
    parser.add_argument(
        "--results", type=Path, metavar="FILE", help="conformance results to show in the matrix"
    )


def execute(arguments: argparse.Namespace) -> int:
    """Prints the list or the matrix."""
    from collectives.conformance import RESULTS, read_results
    from collectives.specs import SPECS, spec_named

    try:
        if arguments.collective is not None:
            spec_named(arguments.collective)
        shown = [arguments.collective] if arguments.collective else list(SPECS)
        if not arguments.matrix:
            if arguments.results is not None:
                raise CommandError("--results belongs to --matrix")
            _show(_catalogue_table(shown))
            return 0
        file = arguments.results or RESULTS
        if arguments.results is not None and not file.is_file():
            raise CommandError(f"no file {file}; expected conformance results")
        results = read_results(file)
    except ValueError as error:
        raise CommandError(str(error)) from None
    _show(_matrix_table(shown, results))
    print(
        "a column for each transport that was tested; in it how many cases of the conformance "
        "suite passed, and at which numbers of ranks n"
    )
    if "cuda_ipc" not in results.transports():
        print("cuda_ipc: not yet run on a GPU; the suite passes over emulated devices")
    if results.date:
        print(f"last conformance run: {results.date}")
    else:
        print("no conformance run is on record here")
    return 0


def console_on_stdout() -> Console:
    """A rich console on stdout, where a pipe neither wraps nor cuts lines."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else _PLAIN_WIDTH
    return Console(width=width, highlight=False)


def _show(table: Table) -> None:
    console_on_stdout().print(table)


def plain_table(*headings: str) -> Table:
    """A table without frames, which reads the same on a terminal and in a file."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for heading in headings:
        table.add_column(heading, no_wrap=heading in ("collective", "algorithm"))
    return table


def _catalogue_table(shown: list[str]) -> Table:
    from rich.markup import escape

    from collectives.catalogue import CATALOGUE, names

    table = plain_table(
        "collective", "algorithm", "sizes", "chunks", "messages", "volume", "cost", "source"
    )
    for collective in shown:
        rows: dict[int, list[str]] = {}
        for name in names(collective):
            algo = CATALOGUE[collective, name]
            rows.setdefault(id(algo), []).append(name)
        for known in rows.values():
            algo = CATALOGUE[collective, known[0]]
            name = known[0] + "".join(f" (= {other})" for other in known[1:])
            sizes = "any" if algo.sizes is None else "some"
            cells = [name, sizes, _chunks(collective, known[0])]
            cells += [algo.messages, algo.volume, algo.cost, algo.source]
            table.add_row(collective, *(escape(cell) for cell in cells))
    return table


def _chunks(collective: str, name: str) -> str:
    """How many chunks, as a formula: told from the count at a few sizes."""
    from collectives.catalogue import CATALOGUE
    from collectives.closed_form import evaluate

    algo = CATALOGUE[collective, name]
    for form in ("1", "2", "n", "2n", "p2(n)", "n**2"):
        if all(evaluate(form, n=n) == algo.chunk_count(n) for n in (3, 4, 5, 6, 8, 12)):
            return form
    return "varies"


def _matrix_table(shown: list[str], results: Results) -> Table:
    from collectives.catalogue import find
    from collectives.conformance import Cell

    transports = sorted({*_ALWAYS, *results.transports()})
    table = plain_table("collective", "algorithm", *transports)
    for collective in shown:
        for name in _FAMILIES:
            own = find(collective, name).name  # the suite knows an algorithm by its first name
            cells = [
                results.outcomes.get(Cell(transport, collective, name))
                or results.outcomes.get(Cell(transport, collective, own))
                for transport in transports
            ]
            label = name if name == own else f"{name} ({own})"
            table.add_row(collective, label, *map(_outcome_text, cells))
    return table


def _outcome_text(outcome: Outcome | None) -> str:
    if outcome is None or not outcome.passed + outcome.failed:
        return "not run"
    sizes = sorted(outcome.sizes)
    where = f"n = {_spans(sizes)}" if sizes else ""
    if outcome.failed:
        return f"[red]{outcome.failed} of {outcome.passed + outcome.failed} FAILED[/red] {where}"
    return f"[green]{outcome.passed} passed[/green] {where}"


def _spans(sizes: list[int]) -> str:
    """Ascending numbers, runs joined: 1-9, 13, 16."""
    spans: list[list[int]] = []
    for size in sizes:
        if spans and size == spans[-1][1] + 1:
            spans[-1][1] = size
        else:
            spans.append([size, size])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in spans)
