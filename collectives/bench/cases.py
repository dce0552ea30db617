"""A case: one collective at one size, and the arrays that a rank needs for it.

Sizes mean what they mean in nccl-tests: the bytes of a rank's longest array. They are rounded up to
whole elements, and where every rank has a part, to parts of equal length.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Place = Literal["out", "in"]

ITEM_BYTES = {
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "float64": 8,
    "int8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "uint8": 1,
    "uint16": 2,
    "uint32": 4,
    "uint64": 8,
    "bool": 1,
}

COLLECTIVES = (
    "allreduce",
    "reduce",
    "reduce_scatter",
    "broadcast",
    "scatter",
    "gather",
    "allgather",
    "alltoall",
    "barrier",
)
POINT_TO_POINT = ("pingpong", "stream")
REDUCING = ("allreduce", "reduce", "reduce_scatter")
IN_PARTS = ("reduce_scatter", "scatter", "gather", "allgather", "alltoall")
"""Those in which every rank has a part of the longest array."""

IN_PLACE = ("allreduce", "reduce", "broadcast")
"""Those that every contender can do within one array."""


class NotCarried(Exception):
    """This library does not do that; the text says what."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured.

    Attributes:
        collective: which; pingpong and stream are point-to-point between ranks 0 and 1.
        nbytes: of a rank's longest array.
        dtype: of the elements.
        op: how they are combined; empty where nothing is.
        place: whether the result has an array of its own ("out") or takes the input's ("in").
        cold: whether no array is in any cache when a call begins.
        root: of a collective that has one.
    """

    collective: str
    nbytes: int
    dtype: str = "float32"
    op: str = ""
    place: Place = "out"
    cold: bool = False
    root: int = 0

    @property
    def item_bytes(self) -> int:
        """Bytes of an element."""
        return ITEM_BYTES[self.dtype]

    def rounded(self, size: int) -> Case:
        """This case with a size that whole elements, and equal parts of `size` ranks, can have."""
        if self.collective == "barrier":
            return replace(self, nbytes=0)
        unit = self.item_bytes * (size if self.collective in IN_PARTS else 1)
        return replace(self, nbytes=max(1, -(-self.nbytes // unit)) * unit)

    def part(self, size: int) -> int:
        """Elements of a rank's part; where there are no parts, of the array."""
        count = self.nbytes // self.item_bytes
        return count // size if self.collective in IN_PARTS else count

    def counts(self, rank: int, size: int) -> tuple[int, int]:
        """Elements of the input and of the result on `rank`."""
        part, root = self.part(size), rank == self.root
        whole = part * size
        return {
            "reduce": (part, part if root else 0),
            "reduce_scatter": (whole, part),
            "scatter": (whole if root else 0, part),
            "gather": (part, whole if root else 0),
            "allgather": (part, whole),
            "alltoall": (whole, whole),
            "barrier": (0, 0),
        }.get(self.collective, (part, part))

    def as_json(self) -> dict[str, Any]:
        """For the way to a rank."""
        return asdict(self)
