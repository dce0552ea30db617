"""What the model of this transport consists of: named parameters, and what they say of a machine.

Seconds each: of a step, of a chunk in it, of a message posted, taken, on its way, of a turn on a
core that another rank had, and of a call of each collective. Seconds a byte: of reading and writing
arrays, slots and peers' memory, each as a curve over the bytes that a rank works on (its working
set, which decides in which cache they are), and of reducing. And one share: by how much a byte is
quicker while the other ranks wait.
"""

from __future__ import annotations

import math
import tomllib
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from collectives.schedule import Algorithm
from collectives.specs import SPECS, nearest

Vector: TypeAlias = NDArray[np.float64]

EVENTS = ("step", "chunk", "post", "take", "arrival", "switch")
"""Seconds an event."""

CALLS = tuple(f"call.{name}" for name in SPECS)
"""Seconds a call, before its first step."""

STREAMS = ("read", "write", "fetch", "store", "peek", "poke")
"""Seconds a byte, by where it lies: own arrays, slots of others and own ones, arrays of peers."""

KNOTS = tuple(1 << power for power in (14, 16, 18, 20, 21, 22, 23, 24, 25, 26))
"""Working sets, in bytes of a rank, between which a stream's cost is interpolated."""

NAMES = (
    *EVENTS,
    *CALLS,
    *(f"{stream}.{knot}" for stream in STREAMS for knot in KNOTS),
    "reduce",
    "alone",
)
"""Every parameter; a vector of them is in this order. The last is a share, see `with_company`."""

PLACE: Mapping[str, int] = {name: place for place, name in enumerate(NAMES)}


@lru_cache(maxsize=4096)
def on_curve(working_set: int) -> tuple[tuple[int, float], tuple[int, float]]:
    """The knots next to a working set, and the weight of each; flat beyond the ends."""
    inside = min(max(working_set, KNOTS[0]), KNOTS[-1])
    above = max(1, bisect_left(KNOTS, inside))
    low, high = KNOTS[above - 1], KNOTS[above]
    share = math.log2(inside / low) / math.log2(high / low)
    return ((above - 1, 1 - share), (above, share))


def add_bytes(vector: Vector, stream: str, nbytes: float, working_set: int) -> None:
    """Count `nbytes` of a stream in a vector of parameters."""
    for knot, weight in on_curve(working_set):
        vector[PLACE[f"{stream}.{KNOTS[knot]}"]] += nbytes * weight


_BYTES = slice(len(EVENTS) + len(CALLS), len(NAMES) - 1)


def with_company(path: Vector, company: float, alone: float) -> Vector:
    """What a path costs where ranks work at the same time for only a part of it.

    Bytes move more slowly while the other ranks move theirs, which is how rates are stated.

    Args:
        path: in parameters.
        company: the share of the time that a rank works, on average; 1 if all always do.
        alone: by what share a byte is quicker while the others wait; the parameter of that name.
    """
    found = path.copy()
    found[_BYTES] *= 1 - alone * (1 - company)
    return found


@dataclass(frozen=True)
class Parameters:
    """Fitted parameters, and of what.

    Attributes:
        values: in the order of `NAMES`.
        ranks: how many ranks they were fitted with.
        machine: which machine, for people.
        errors: median error of the predictions at sizes not fitted, by "collective algorithm".
    """

    values: Vector
    ranks: int
    machine: str = ""
    errors: Mapping[str, float] = field(default_factory=dict)

    def tells_of(self, algo: Algorithm) -> bool:
        """Whether what the algorithm does was measured: no model knows one-sided steps unasked."""
        peers = [PLACE[f"{stream}.{knot}"] for stream in ("peek", "poke") for knot in KNOTS]
        return not algo.one_sided or bool(self.values[peers].any())

    def as_toml(self) -> str:
        """The text of a file that `from_toml` reads."""
        lines = [
            "# A model of this transport on one machine, written by `collectives tune`. The",
            "# numbers are seconds, and seconds a byte at each working set; docs/cost.md has more.",
            f"machine = {_quoted(self.machine)}",
            f"ranks = {self.ranks}",
            "",
            "[seconds]",
        ]
        lines += [f"{_quoted(n)} = {self.values[PLACE[n]]:.4g}" for n in (*EVENTS, *CALLS)]
        lines += ["", "[seconds_a_byte]", f"reduce = {self.values[PLACE['reduce']]:.4g}"]
        lines.append(f"alone = {self.values[PLACE['alone']]:.4g}")
        lines.append(f"working_sets = {list(KNOTS)}")
        for stream in STREAMS:
            curve = ", ".join(f"{self.values[PLACE[f'{stream}.{knot}']]:.4g}" for knot in KNOTS)
            lines.append(f"{stream} = [{curve}]")
        if self.errors:
            lines += ["", "# Median error at sizes that were not fitted.", "[errors]"]
            lines += [f"{_quoted(name)} = {error:.3f}" for name, error in self.errors.items()]
        return "\n".join(lines) + "\n"

    @classmethod
    def from_toml(cls, text: str) -> Parameters:
        """Read what `as_toml` has written.

        Raises:
            ValueError: the text is no such file; names what is missing or unknown.
        """
        document = tomllib.loads(text)
        seconds = _table(document, "seconds", (*EVENTS, *CALLS))
        rates = _table(document, "seconds_a_byte", (*STREAMS, "reduce", "alone", "working_sets"))
        if tuple(rates["working_sets"]) != KNOTS:
            raise ValueError(f"expected working_sets {list(KNOTS)}, found {rates['working_sets']}")
        values = np.zeros(len(NAMES))
        for name, value in seconds.items():
            values[PLACE[name]] = _number(name, value)
        for name in ("reduce", "alone"):
            values[PLACE[name]] = _number(name, rates[name])
        if values[PLACE["alone"]] > 1:
            raise ValueError(f"expected a share of at most 1 as alone, found {rates['alone']}")
        for stream in STREAMS:
            curve = rates[stream]
            if not isinstance(curve, list) or len(curve) != len(KNOTS):
                raise ValueError(f"expected {len(KNOTS)} numbers as {stream}, found {curve!r}")
            for knot, value in zip(KNOTS, curve, strict=True):
                values[PLACE[f"{stream}.{knot}"]] = _number(stream, value)
        return cls(
            values=values,
            ranks=int(_number("ranks", document.get("ranks"))),
            machine=str(document.get("machine", "")),
            errors={name: float(error) for name, error in document.get("errors", {}).items()},
        )


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _table(document: Mapping[str, Any], name: str, valid: tuple[str, ...]) -> Mapping[str, Any]:
    table = document.get(name)
    if not isinstance(table, dict):
        raise ValueError(f"a model of the transport needs a table {name}")
    for key in table:
        if key not in valid:
            raise ValueError(f"{name} has {', '.join(valid)}, found {key!r}" + nearest(key, valid))
    for key in valid:
        if key not in table:
            raise ValueError(f"{name} needs {key}")
    return table


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"expected a number >= 0 as {name}, found {value!r}")
    return float(value)
