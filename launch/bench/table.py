"""The table on the terminal: rows as nccl-tests prints them, each as soon as it is known.

While a case runs, one line below says what is being measured. It is drawn between measurements
only: a line that redraws itself would take a core from those who are measured.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from collectives.bench.libraries.ours import algorithm_of
from collectives.bench.overlap import OVERLAP, hidden_part
from launch.bench.results import Comparison, Result, overlaps

NOTHING = "–"
_WIDEST_STATUS = 100


@dataclass(frozen=True)
class Column:
    """A column of the table."""

    heading: str
    width: int
    left: bool = False

    def cell(self, text: str) -> str:
        """The text in this column's width."""
        return text.ljust(self.width) if self.left else text.rjust(self.width)


_FIRST = (
    Column("size", 11),
    Column("count", 11),
    Column("type", 8),
    Column("op", 4),
    Column("algorithm", 20, left=True),
    Column("time", 9),
    Column("median", 9),
    Column("spread", 7),
    Column("algbw", 8),
    Column("busbw", 8),
    Column("#wrong", 6),
    Column("limit", 9),
    Column("of limit", 8),
    Column("predicted", 9),
)
OVERLAP_COLUMNS = (
    *_FIRST[:4],
    Column("who", 18, left=True),
    Column("alone", 9),
    Column("compute", 9),
    Column("both", 9),
    Column("hidden", 7),
    Column("#wrong", 6),
)
OVERLAP_UNITS = ("B", "", "", "", "", "us", "us", "us", "%", "")
_UNITS = ("B", "", "", "", "", "us", "us", "%", "GB/s", "GB/s", "", "us", "%", "us")


class Table:
    """Prints rows of one race."""

    def __init__(self, console: Console, against: Sequence[str]) -> None:
        """Takes the titles of those that the rows are compared with."""
        self._console = console
        self._against = against
        ratios = [Column(title, max(10, len(title))) for title in against]
        self._usual = (*_FIRST, *ratios)
        self._columns: Sequence[Column] = self._usual
        self._status_shown = False

    def begin(self, heading: str, *, overlap: bool = False) -> None:
        """Prints the heading of a collective's rows."""
        self._columns = OVERLAP_COLUMNS if overlap else self._usual
        console = self._console
        console.print()
        console.print(Text(heading, style="bold"))
        units = OVERLAP_UNITS if overlap else (*_UNITS, *("÷ ours" for _ in self._against))
        for line in (tuple(column.heading for column in self._columns), units):
            self._print(line, "dim" if line is units else "")

    def add(self, comparison: Comparison) -> None:
        """Prints the rows of a case: one for each of our own."""
        self.clear_status()
        if comparison.case.collective == OVERLAP:
            for alone, compute, both in overlaps(comparison):
                trouble = bool(alone.wrong or alone.problem)
                self._print(_overlap_row(alone, compute, both), "red" if trouble else "")
            return
        for ours in comparison.of_role("ours"):
            cells = _row(ours, comparison.limit)
            cells += [_ratio(ours, other) for other in comparison.of_role("against")]
            self._print(cells, "bold red" if ours.wrong or ours.problem else "")
            for result in (ours, *comparison.of_role("against")):
                if result.wrong and result is not ours:
                    text = f"{result.title}: {result.wrong:,} elements wrong"
                    self._console.print(Text(f"  {text}", style="red"))
            if ours.problem:
                self._console.print(Text(f"  {ours.title}: {ours.problem}", style="red"))

    def show_status(self, text: str) -> None:
        """Shows what is happening, on a terminal."""
        if self._console.is_terminal:
            room = min(_WIDEST_STATUS, shutil.get_terminal_size().columns - 1)
            sys.stdout.write(f"\r\x1b[K{text[:room]}")
            sys.stdout.flush()
            self._status_shown = True

    def clear_status(self) -> None:
        """Takes that away."""
        if self._status_shown:
            sys.stdout.write("\r\x1b[K")
            sys.stdout.flush()
            self._status_shown = False

    def _print(self, cells: Sequence[str], style: str) -> None:
        line = "  ".join(
            column.cell(cell) for column, cell in zip(self._columns, cells, strict=True)
        )
        self._console.print(Text(line.rstrip(), style=style), soft_wrap=True)


def microseconds(seconds: float | None) -> str:
    """A time in microseconds, to at least three figures."""
    if seconds is None:
        return NOTHING
    value = seconds * 1e6
    return f"{value:.2f}" if value < 100 else f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def gigabytes(rate: float) -> str:
    """A rate in GB/s."""
    return f"{rate / 1e9:.2f}"


def times(ratio: float) -> str:
    """A ratio, to two or three figures."""
    return f"{ratio:.2f}x" if ratio < 10 else f"{ratio:.1f}x" if ratio < 100 else f"{ratio:.0f}x"


def algorithm_name(result: Result) -> str:
    """What ran: the variant, and where it left the choice open, the algorithm that was chosen."""
    if not result.chosen or result.chosen == algorithm_of(result.variant):
        return result.variant
    return f"{result.variant}: {result.chosen}"


def _row(ours: Result, limit: Result | None) -> list[str]:
    case = ours.case
    cells = [f"{case.nbytes}", f"{ours.count}", case.dtype, case.op or NOTHING]
    cells.append(algorithm_name(ours))
    if not ours.rounds:
        return [*cells, *[NOTHING] * (len(_FIRST) - len(cells))]
    cells += [
        microseconds(ours.best),
        microseconds(ours.timing.median),
        f"{ours.timing.spread * 100:.0f}",
        gigabytes(ours.algbw),
        gigabytes(ours.busbw),
        str(ours.wrong),
    ]
    if limit is None:
        cells += [NOTHING, NOTHING]
    else:
        cells += [microseconds(limit.best), f"{limit.best / ours.best * 100:.0f}"]
    return [*cells, microseconds(ours.predicted)]


def _ratio(ours: Result, other: Result) -> str:
    if not ours.rounds or not other.rounds:
        return NOTHING
    return times(other.best / ours.best)


def _overlap_row(alone: Result, compute: Result, both: Result) -> list[str]:
    cells = [f"{alone.case.nbytes}", f"{alone.count}", alone.case.dtype, alone.case.op, alone.title]
    if not alone.rounds:
        return [*cells, *[NOTHING] * (len(OVERLAP_COLUMNS) - len(cells))]
    hidden = hidden_part(alone.best, compute.best, both.best)
    times = [microseconds(part.best) for part in (alone, compute, both)]
    return [*cells, *times, f"{hidden * 100:.0f}", str(alone.wrong)]
