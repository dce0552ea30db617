"""Buckets: gradients of several parameters end to end in one flat array, averaged by one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from collectives.arrays import family_of

if TYPE_CHECKING:
    from collectives import Communicator

ALIGNMENT = 64  # bytes, at which each parameter begins in a bucket: a cache line


class Bucket:
    """Gradients of several parameters of one type on one device, end to end in `flat`.

    Args:
        parameters: whose; in the order in which their gradients become ready.
        flat: as long as `elements_of(parameters)`.
        sent: where they are while they travel; `flat` itself if they need no other place.
        marked: whether an element more for each parameter says on how many ranks it has a gradient,
            so that one of which no rank has any is known without a further call.

    Attributes:
        offsets: where the gradient of each parameter begins, in elements.
        missing: places of the parameters whose gradient is still to come in this backward.
        kept: those whose gradient has come in a backward that was not averaged.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        flat: Tensor,
        sent: Tensor,
        *,
        marked: bool = False,
    ) -> None:
        self.parameters = tuple(parameters)
        self.offsets = offsets_of(parameters)
        self.flat = flat.zero_()  # the gaps are to count as nothing in a norm
        self.sent = self.flat if sent.data_ptr() == flat.data_ptr() else sent
        self._call_on = as_called_on(self.sent)
        end = sum(map(aligned, parameters))
        self._unmarked = self.flat[:end]
        self._marks = self.flat[end : end + len(self.parameters)] if marked else None
        self.missing: set[int] = set()
        self.kept: set[int] = set()
        self._views = [
            view_of(flat, offset, parameter)
            for parameter, offset in zip(self.parameters, self.offsets, strict=True)
        ]

    def begin_averaging(self, comm: Communicator, *, async_op: bool) -> Any:
        """The call that adds it up over ranks; what it gives is there after `end_averaging`."""
        self.put_out()
        return comm.allreduce(
            self._call_on, out=self._call_on, deterministic=self.is_narrowed, async_op=async_op
        )

    @property
    def is_narrowed(self) -> bool:
        """Whether gradients travel in a narrower type than their own."""
        return self.sent.dtype != self.flat.dtype

    def put_out(self) -> None:
        """Puts the gradients where they travel from."""
        if self.sent is not self.flat:
            self.sent.copy_(self.flat)

    def end_averaging(self) -> None:
        """Takes in what the call has given."""
        if self.sent is not self.flat:
            self.flat.copy_(self.sent)

    @property
    def averaged(self) -> Tensor:
        """The averaged gradients of which this rank takes care."""
        return self._unmarked

    def await_all(self) -> None:
        """Begins a backward: no gradient has come."""
        self.missing.update(range(len(self.parameters)))
        if self._marks is not None:
            self._marks.fill_(1)

    def take(self, place: int, factor: float = 1.0) -> None:
        """Makes the gradient of a parameter a view of the bucket, multiplied by `factor`."""
        parameter, view = self.parameters[place], self._views[place]
        gradient = parameter.grad
        if gradient is None:
            view.zero_()
        elif gradient is view:  # added to where it is
            if factor != 1.0:
                view.mul_(factor)
            return
        elif factor == 1.0:
            view.copy_(gradient.detach())
        else:
            torch.mul(gradient.detach(), factor, out=view)
        parameter.grad = view

    def has_kept(self, place: int) -> bool:
        """Whether there is a gradient that earlier backwards have added up, for this one to send.

        Not if it was set to None since.
        """
        return place in self.kept and self.parameters[place].grad is self._views[place]

    def take_all(self) -> None:
        """Takes in gradients that the program has put elsewhere."""
        for place, parameter in enumerate(self.parameters):
            if parameter.grad is not None:
                self.take(place)

    def take_missing(self, factor: float) -> None:
        """Lets gradients that have not come be what is there, added up or averaged, or zero."""
        for place in self.missing:
            if self._marks is not None and self.parameters[place].grad is None:
                self._marks[place] = 0
            self.take(place, factor)
        self.missing.clear()

    def leave_out(self) -> None:
        """Takes the gradients away that no rank had, by what came of the marks."""
        if self._marks is None or bool(self._marks.all()):
            return
        for place in (self._marks == 0).nonzero().flatten().tolist():
            self.parameters[place].grad = None

    def forget_gradients(self) -> None:
        """After the parameters' gradients were set to None."""
        self.kept.clear()


def as_called_on(tensor: Tensor) -> Any:
    """The memory of a tensor as collectives take it quickest: as numpy's, if that has it."""
    if tensor.dtype == torch.bfloat16 or family_of(tensor).on_device:
        return tensor
    return tensor.numpy()


def offsets_of(parameters: Sequence[Tensor]) -> list[int]:
    """Where each parameter begins in a bucket of them, in elements."""
    offsets = []
    end = 0
    for parameter in parameters:
        offsets.append(end)
        end += aligned(parameter)
    return offsets


def elements_of(parameters: Sequence[Tensor], size: int, *, marked: bool = False) -> int:
    """How long a bucket of the parameters is, gaps included: equal parts for so many ranks."""
    unit = size * _unit(parameters[0])
    marks = len(parameters) * marked
    return -(-(sum(map(aligned, parameters)) + marks) // unit) * unit


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


def aligned(parameter: Tensor) -> int:
    """Elements from where a parameter begins to where the next one does."""
    unit = _unit(parameter)
    return -(-parameter.numel() // unit) * unit


def _unit(parameter: Tensor) -> int:
    return max(1, ALIGNMENT // parameter.element_size())
