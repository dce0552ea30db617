"""Buckets: gradients of several parameters end to end in one flat array, and how they are cut.

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
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collectives import Communicator

HANDOVER_SECONDS = 40e-6
"""What a call costs that runs beside the computing, its own time not counted: measured."""

FALLBACK = (4 << 20, 256 << 10)
"""`most` and `last` where this machine's model says nothing."""

ALIGNMENT = 64  # bytes, at which each parameter begins in a bucket: a cache line

Predict: TypeAlias = Callable[..., float | None]
"""Seconds of an allreduce: of so many bytes, on so many ranks if they are given."""

_SIZES = tuple(1 << power for power in range(12, 27))


@dataclass(frozen=True)
class BucketPlan:
    """How gradients are cut into buckets; print it.

    Attributes:
        nbytes: of each bucket, in the order in which they become ready.
        seconds: what each allreduce is predicted to take, or None where that is not known.
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
            text += f"; predicted {total * 1e3:.3g} ms of allreduce"
            if count > 1:
                text += f", of which {known[-1] * 1e3:.2g} ms cannot hide"
        return f"{text} ({self.reason})"


class Bucket:
    """Gradients of several parameters of one type on one device, end to end in `flat`.

    Args:
        parameters: whose; in the order in which their gradients become ready.
        flat: as long as `elements_of(parameters)`.
        sent: where they are while they travel; `flat` itself if they need no other place.

    Attributes:
        missing: places of the parameters whose gradient is still to come in this backward.
        kept: those whose gradient has come in a backward that was not averaged.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], flat: Tensor, sent: Tensor) -> None:
        self.parameters = tuple(parameters)
        self.flat = flat.zero_()  # the gaps are to count as nothing in a norm
        self.sent = self.flat if sent.data_ptr() == flat.data_ptr() else sent
        self.missing: set[int] = set()
        self.kept: set[int] = set()
        self._views = [
            view_of(flat, offset, parameter)
            for parameter, offset in zip(self.parameters, offsets_of(parameters), strict=True)
        ]

    def await_all(self) -> None:
        """Begins a backward: no gradient has come."""
        self.missing.update(range(len(self.parameters)))

    def take(self, place: int) -> None:
        """Makes the gradient of a parameter a view of the bucket."""
        parameter, view = self.parameters[place], self._views[place]
        gradient = parameter.grad
        if gradient is view:  # added to where it is
            return
        if gradient is None:
            view.zero_()
        else:
            view.copy_(gradient.detach())
        parameter.grad = view

    def count_missing_as_zero(self) -> None:
        """Lets gradients that have not come be zero, or what earlier backwards have added up."""
        for place in self.missing:
            if place not in self.kept:
                self.parameters[place].grad = None
            self.take(place)
        self.missing.clear()


def offsets_of(parameters: Sequence[Tensor]) -> list[int]:
    """Where each parameter begins in a bucket of them, in elements."""
    offsets = []
    end = 0
    for parameter in parameters:
        offsets.append(end)
        end += _aligned(parameter)
    return offsets


def elements_of(parameters: Sequence[Tensor]) -> int:
    """How long a bucket of the parameters is, gaps included."""
    return sum(map(_aligned, parameters))


def view_of(flat: Tensor, offset: int, parameter: Tensor) -> Tensor:
    """The piece of `flat` for a parameter, in its shape.

    With the parameter's own strides: gradients of channels-last weights then go in without a
    transpose.
    """
    piece = flat[offset : offset + parameter.numel()]
    return piece.as_strided(parameter.size(), dense_strides(parameter))


def dense_strides(parameter: Tensor) -> tuple[int, ...]:
    """The parameter's strides where they leave no gaps, else those of a contiguous tensor."""
    return torch.empty_like(parameter, device="meta").stride()


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


def predictor(comm: Communicator, flat: Tensor) -> Predict:
    """What an allreduce of gradients takes, as this rank's model of the transport says.

    Args:
        comm: the ranks.
        flat: where the gradients are: asked about are parts of it.
    """

    def seconds(nbytes: int, ranks: int | None = None) -> float | None:
        part = flat[: max(1, nbytes // flat.element_size())]
        return comm.predict("allreduce", part, op="avg", ranks=ranks)

    return seconds


def _aligned(parameter: Tensor) -> int:
    unit = max(1, ALIGNMENT // parameter.element_size())
    return -(-parameter.numel() // unit) * unit


def _nbytes(parameter: nn.Parameter, wire: torch.dtype | None) -> int:
    return _aligned(parameter) * (wire or parameter.dtype).itemsize


def _readable(nbytes: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= size:
            return f"{nbytes / size:.3g} {unit}"
    return f"{nbytes} B"
