"""How gradients are cut into buckets.

A bucket is what one collective carries. The plan has the parameters in the order in which their
gradients become ready, backwards through the model, and two sizes, both by the model of this
transport's cost (`comm.predict`):

    most   what a bucket holds at most: where a byte costs least, what a call costs included
    last   what the last one holds at most: it is the one that no computing hides, so it is no
           longer under way than one more call would cost
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor, nn

from collectives.arrays import family_of
from trainers.buckets import aligned

if TYPE_CHECKING:
    from collectives import Communicator

HANDOVER_SECONDS = 40e-6
"""What a call costs that runs beside the computing, its own time not counted.

Chosen, not fitted: 70e-6 was measured on two cores of a Xeon after the buckets of the published
figures had been cut by this.
"""

FALLBACK = (4 << 20, 256 << 10)
"""`most` and `last` where this machine's model says nothing."""

FALLBACK_ON_DEVICES = (25 << 20, 1 << 20)
"""The same of gradients on a GPU, where a call costs more and a byte less. Not measured."""

Predict: TypeAlias = Callable[..., float | None]
"""Seconds of a call: of so many bytes, on so many ranks if they are given."""

_SIZES = tuple(1 << power for power in range(12, 27))


@dataclass(frozen=True)
class BucketPlan:
    """How gradients are cut into buckets; print it.

    Attributes:
        nbytes: of each bucket, in the order in which they become ready.
        seconds: what averaging each is predicted to take, or None where that is not known.
        most: bytes a bucket holds at most, unless it has one parameter only.
        last: the same of the last one.
        reason: where the two are from.
    """

    nbytes: tuple[int, ...]
    seconds: tuple[float | None, ...]
    most: int
    last: int
    reason: str

    def __str__(self) -> str:
        count = len(self.nbytes)
        text = f"{count} bucket{'s' * (count != 1)}, {_readable(sum(self.nbytes))} in all"
        if count > 1:
            low, high = min(self.nbytes[:-1]), max(self.nbytes[:-1])
            sizes = _readable(low) if low == high else f"{_readable(low)} to {_readable(high)}"
            text += f": {sizes}, the last {_readable(self.nbytes[-1])}"
        known = [each for each in self.seconds if each is not None]
        if known and len(known) == count:
            total = sum(known)
            text += f"; predicted {total * 1e3:.3g} ms of averaging"
            if count > 1:
                text += f", of which {known[-1] * 1e3:.2g} ms cannot hide"
        return f"{text} ({self.reason})"


@dataclass
class _Open:
    """A bucket that still has room."""

    kind: tuple[torch.dtype, torch.device]
    parameters: list[nn.Parameter] = field(default_factory=list)
    nbytes: int = 0


def grouped(
    parameters: Sequence[nn.Parameter], most: int, last: int, wire: torch.dtype | None = None
) -> list[list[nn.Parameter]]:
    """Cuts parameters, given in the order in which they become ready, into buckets.

    Every bucket has one type and one device. The last one is cut off from the end.

    Args:
        parameters: to be cut.
        most: bytes that a bucket holds at most.
        last: bytes that the last one holds at most.
        wire: the type in which gradients travel, whose bytes count; by default their own.
    """
    sizes = [(parameter, _nbytes(parameter, wire)) for parameter in parameters]
    tail = len(sizes) - _tail([nbytes for _, nbytes in sizes], last)
    groups: list[_Open] = []
    for parameter, nbytes in sizes[:tail]:
        _put(groups, parameter, nbytes, most)
    rest: list[_Open] = []  # into no bucket that is there
    for parameter, nbytes in sizes[tail:]:
        _put(rest, parameter, nbytes, most)
    return [group.parameters for group in groups + rest]


def _tail(sizes: Sequence[int], last: int) -> int:
    """How many of the parameters at the end make up the last bucket."""
    total = 0
    for count, nbytes in enumerate(reversed(sizes)):
        total += nbytes
        if total > last:
            return max(1, count)
    return len(sizes)


def _put(groups: list[_Open], parameter: nn.Parameter, nbytes: int, most: int) -> None:
    """Into the latest bucket of its kind, or a new one: buckets fill up in the order of ready."""
    kind = (parameter.dtype, parameter.device)
    latest = next((group for group in reversed(groups) if group.kind == kind), None)
    if latest is None or latest.nbytes + nbytes > most:
        groups.append(latest := _Open(kind))
    latest.parameters.append(parameter)
    latest.nbytes += nbytes


def cheapest_sizes(total: int, seconds: Predict) -> tuple[int, int] | None:
    """`most` and `last` by what an allreduce of so many bytes takes; None where that is not known.

    Args:
        total: bytes of all gradients; no bucket is longer.
        seconds: of an allreduce, by its bytes.
    """
    known: dict[int, float] = {}
    for nbytes in [*(size for size in _SIZES if size < total), total]:
        predicted = seconds(nbytes)
        if predicted is None:
            return None
        known[nbytes] = predicted
    most = min(known, key=lambda nbytes: (HANDOVER_SECONDS + known[nbytes]) / nbytes)
    quick = [nbytes for nbytes in known if known[nbytes] <= HANDOVER_SECONDS]
    return most, min(most, max(quick, default=_SIZES[0]))


def predictor(
    comm: Communicator,
    flat: Tensor,
    collective: Literal["allreduce", "reduce_scatter", "allgather"] = "allreduce",
) -> Predict:
    """What a call takes that carries so many bytes, as this rank's model of the transport says.

    Args:
        comm: the ranks.
        flat: where the bytes are: asked about are parts of it.
        collective: which call; of the others than allreduce each rank has a part of the bytes.
    """

    @cache  # the plans of many ranks take a while
    def seconds(nbytes: int, ranks: int | None = None) -> float | None:
        elements, size = max(1, nbytes // flat.element_size()), ranks or comm.size
        if collective == "allreduce":
            return comm.predict("allreduce", flat[:elements], ranks=ranks)
        each = max(1, elements // size)
        if collective == "allgather":
            return comm.predict("allgather", flat[:each], ranks=ranks)
        return comm.predict("reduce_scatter", flat[: size * each].view(size, each), ranks=ranks)

    return seconds


def planned_sizes(
    comm: Communicator, sent: Tensor, predicted: Predict, bucket_bytes: int | None
) -> tuple[int, int, str]:
    """What buckets hold at most, the last one, and why: rank 0's answer, a collective call.

    Args:
        comm: the ranks.
        sent: where all gradients are while they travel.
        predicted: what an allreduce of them takes.
        bucket_bytes: what they are to hold at most; None: what is cheapest.
    """
    found: tuple[int, int, str] | None = None
    if comm.rank == 0:
        if bucket_bytes is not None:
            found = (bucket_bytes, bucket_bytes, "as asked")
        elif sizes := cheapest_sizes(sent.numel() * sent.element_size(), predicted):
            found = (*sizes, "sizes by the cost model")
        else:
            fallback = FALLBACK_ON_DEVICES if family_of(sent).on_device else FALLBACK
            found = (*fallback, "the cost model says nothing")
    answer: tuple[int, int, str] = comm.broadcast_object(found, root=0)
    return answer


def _nbytes(parameter: nn.Parameter, wire: torch.dtype | None) -> int:
    return aligned(parameter) * (wire or parameter.dtype).itemsize


def _readable(nbytes: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= size:
            return f"{nbytes / size:.3g} {unit}"
    return f"{nbytes} B"
