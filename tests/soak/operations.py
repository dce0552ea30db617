"""What a random program consists of: every rank has the same list and does its part of each."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

Place = tuple[int, int]
"""Where in symmetric memory an array lies: which allocation, and the offset in bytes."""


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operation, of the communicator numbered `comm`."""

    comm: int = 0

    def __str__(self) -> str:
        """Name and what is not as usual."""
        told = [
            f"{field.name}={value!r}"
            for field in fields(self)
            if (value := getattr(self, field.name)) != field.default
        ]
        return f"{type(self).__name__}({', '.join(told)})"


@dataclass(frozen=True, kw_only=True)
class Collective(Operation):
    """A collective on arrays, or a barrier.

    Attributes:
        collective: which.
        algorithm: its name, or None.
        dtype: of the elements.
        op: how to reduce, or None.
        root: index in the communicator.
        shape: of one part (see `soak.oracle`), without the axis that `counts` runs along.
        counts: of the v-forms: entries a rank; of alltoall one tuple a rank, of what it sends.
        kind: numpy or torch.
        result: "new", "out" or "in place".
        layouts: of x and out: whole, slice, strided or symmetric.
        places: where they lie, if symmetric.
        deterministic: as the argument.
        handle: of an asynchronous call; None: it is a blocking one.
    """

    collective: str
    algorithm: str | None = None
    dtype: str = "float32"
    op: str | None = None
    root: int = 0
    shape: tuple[int, ...] = ()
    counts: tuple[Any, ...] | None = None
    kind: str = "numpy"
    result: str = "new"
    layouts: tuple[str, str] = ("whole", "whole")
    places: tuple[Place | None, Place | None] = (None, None)
    deterministic: bool = False
    handle: int | None = None


@dataclass(frozen=True, kw_only=True)
class Objects(Operation):
    """An object of each rank, of about `length` bytes, by the collective of that name."""

    collective: str
    root: int = 0
    length: int = 0


@dataclass(frozen=True, kw_only=True)
class Message:
    """One message of point-to-point; `handle` of its send and of its receive."""

    source: int
    dest: int
    tag: int
    dtype: str
    count: int
    handle: int


@dataclass(frozen=True, kw_only=True)
class Messages(Operation):
    """Point-to-point.

    Attributes:
        how: "posted" (waited for later), "blocking" (one after the other), "any source" (posted,
            received from anyone), "any tag" (and all wait for all), "shift" (one sendrecv a rank,
            all at once).
        messages: in the order of the program. Tags from 1000 on are used once.
    """

    how: str
    messages: tuple[Message, ...]


@dataclass(frozen=True, kw_only=True)
class Wait(Operation):
    """Wait for these; every rank in an order of its own."""

    handles: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Split(Operation):
    """Make communicators: `made` maps colors to the numbers of the new ones."""

    colors: tuple[int | None, ...]
    keys: tuple[int, ...]
    made: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class Close(Operation):
    """Close the communicator."""


@dataclass(frozen=True, kw_only=True)
class Allocate(Operation):
    """Make symmetric memory, numbered; of what the communicator had before, one is kept."""

    number: int
    nbytes: int


@dataclass(frozen=True, kw_only=True)
class Program:
    """What one seed makes.

    Attributes:
        seed: of everything random in it.
        size: number of ranks.
        environment: which slots its communicators have.
        operations: in order.
        members: of each communicator by number, the ranks in order.
    """

    seed: int
    size: int
    environment: dict[str, str]
    operations: list[Operation]
    members: dict[int, tuple[int, ...]]
