"""Which algorithm a call runs: a table of rows, the first that fits is taken.

A row depends on nothing that may differ between ranks; rank 0's table is handed to all at init.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from collectives.catalogue import find
from collectives.specs import SPECS, nearest, spec_named

_NO_LIMIT = 1 << 62


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table; see collectives/selection.toml."""

    collective: str
    algorithm: str
    below: int = _NO_LIMIT
    least: int = 1
    most: int = _NO_LIMIT
    uneven: bool = True
    symmetric: bool = False

    def fits(self, size: int, nbytes: int, uneven: bool) -> bool:
        """Whether the row is for such a call."""
        return nbytes < self.below and self.least <= size <= self.most and self.uneven >= uneven


class SelectionTable:
    """Rows in order; every collective ends with a row that fits every call."""

    def __init__(self, rows: Iterable[Row]) -> None:
        """Check the rows.

        Raises:
            ValueError: a row names what does not exist, or some call would fit no row.
        """
        self.rows = tuple(rows)
        for row in self.rows:
            spec_named(row.collective)
            algo = find(row.collective, row.algorithm)
            if algo.one_sided != row.symmetric:
                raise ValueError(
                    f"a row for {row.collective} {row.algorithm} must say symmetric = "
                    f"{str(algo.one_sided).lower()}, found {str(row.symmetric).lower()}"
                )
        for collective in SPECS:
            last = [row for row in self.rows if row.collective == collective][-1:]
            if not last or not last[0].fits(_NO_LIMIT - 1, _NO_LIMIT - 1, True):
                raise ValueError(f"the selection table has no row for every {collective}")
            if last[0].symmetric:
                raise ValueError(f"the last row for {collective} must fit any memory")
            if last[0].least > 1:
                raise ValueError(f"the last row for {collective} must fit every size")

    def choose(
        self,
        collective: str,
        *,
        size: int,
        nbytes: int,
        uneven: bool = False,
        among: Sequence[str] | None = None,
        reaches: Callable[[str], bool] = lambda name: False,
    ) -> str:
        """The name of the algorithm for a call.

        Args:
            collective: what is called.
            size: number of ranks.
            nbytes: bytes of the full array, the same on every rank.
            uneven: whether chunks may differ in length, or ranks not know all lengths.
            among: those that may be chosen, the best for long arrays last; None is all. Where no
                row names one of them, the last.
            reaches: whether the call's arrays are such that a one-sided algorithm can reach them.
        """
        for row in self.rows:
            allowed = among is None or row.algorithm in among
            if not (allowed and row.collective == collective and row.fits(size, nbytes, uneven)):
                continue
            if not row.symmetric or reaches(row.algorithm):
                return row.algorithm
        if among:
            return among[-1]
        raise AssertionError(f"no row for {collective}")  # the constructor saw to it

    def as_settings(self) -> list[dict[str, Any]]:
        """The rows as plain data, to hand to other ranks."""
        return [asdict(row) for row in self.rows]

    @classmethod
    def from_settings(cls, rows: Iterable[Mapping[str, Any]]) -> SelectionTable:
        """The reverse of `as_settings`."""
        return cls(Row(**row) for row in rows)

    @classmethod
    def from_toml(cls, text: str) -> SelectionTable:
        """Read a table as collectives/selection.toml has it.

        Raises:
            ValueError: the text is no such table; names the key and the nearest valid one.
        """
        document = tomllib.loads(text)
        return cls(_row(entry) for entry in document.get("row", ()))


def _row(entry: Mapping[str, Any]) -> Row:
    valid = ("collective", "algorithm", "below", "sizes", "uneven", "symmetric")
    for key in entry:
        if key not in valid:
            raise ValueError(f"a row has {', '.join(valid)}, found {key!r}" + nearest(key, valid))
    for key in ("collective", "algorithm"):
        if key not in entry:
            raise ValueError(f"a row needs {key}, found only {', '.join(entry)}")
    taken = ("collective", "algorithm", "below", "uneven", "symmetric")
    known = {key: entry[key] for key in taken if key in entry}
    least, most = entry.get("sizes", (1, _NO_LIMIT))
    return Row(**known, least=least, most=most)


def default_table() -> SelectionTable:
    """The table that comes with the package, for arrays in host memory."""
    file = Path(__file__).with_name("selection.toml")
    return SelectionTable.from_toml(file.read_text(encoding="utf-8"))


def hosts_table() -> SelectionTable:
    """The table that comes with the package, for ranks on several hosts."""
    file = Path(__file__).with_name("selection_hosts.toml")
    return SelectionTable.from_toml(file.read_text(encoding="utf-8"))


def device_table() -> SelectionTable:
    """The table that comes with the package, for arrays on devices."""
    file = Path(__file__).with_name("selection_devices.toml")
    return SelectionTable.from_toml(file.read_text(encoding="utf-8"))
