"""Data-parallel training: every rank holds the same model and gradients are averaged over ranks.

Gradients live in a few flat buckets: each `parameter.grad` is a view into one, so that averaging is
one in-place allreduce per bucket, with nothing copied before or after it.

    model = DataParallel(net, comm)
    model.zero_gradients()
    loss(model(inputs), targets).backward()
    model.average_gradients(weight=mine / everyones)
    optimizer.step()

All ranks get the same bits from an allreduce, hence the same parameters from the same optimizer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collectives import Communicator

BUCKET_BYTES = 32 << 20


class GradientBucket:
    """Gradients of several parameters of one type, end to end in one flat tensor."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = parameters
        total = sum(parameter.numel() for parameter in parameters)
        self.flat = torch.zeros(total, dtype=parameters[0].dtype)
        self._views: list[Tensor] = []
        offset = 0
        for parameter in parameters:
            piece = self.flat[offset : offset + parameter.numel()]
            # The parameter's own strides: channels-last gradients then go in without a transpose.
            self._views.append(piece.as_strided(parameter.size(), _dense_strides(parameter)))
            offset += parameter.numel()

    def attach(self) -> None:
        """Makes every gradient a view of the bucket, keeping values that were put elsewhere."""
        for parameter, view in zip(self.parameters, self._views, strict=True):
            if parameter.grad is view:
                continue
            if parameter.grad is None:  # `zero_grad(set_to_none=True)`, or it took no part
                view.zero_()
            else:
                view.copy_(parameter.grad)
            parameter.grad = view

    def zero(self) -> None:
        """Sets all gradients to zero."""
        self.flat.zero_()
        for parameter, view in zip(self.parameters, self._views, strict=True):
            parameter.grad = view


class DataParallel(nn.Module):
    """A model whose copies on all ranks of `comm` stay equal.

    Args:
        module: the model, on the CPU; rank 0's parameters and buffers are sent to all.
        comm: the ranks that train it together.
        bucket_bytes: how much one allreduce carries at most; a larger parameter goes alone.
    """

    def __init__(
        self, module: nn.Module, comm: Communicator, *, bucket_bytes: int = BUCKET_BYTES
    ) -> None:
        super().__init__()
        self.module = module
        self.comm = comm
        self.communication_seconds = 0.0
        broadcast_tensors(comm, [*module.parameters(), *module.buffers()])
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.buckets = [GradientBucket(group) for group in _grouped(trained, bucket_bytes)]

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """The module's own forward."""
        return self.module(*inputs, **named)

    def zero_gradients(self) -> None:
        """Sets all gradients to zero, in their buckets."""
        for bucket in self.buckets:
            bucket.zero()

    def average_gradients(self, weight: float | None = None) -> None:
        """Replaces every gradient by the weighted sum of all ranks' gradients.

        Args:
            weight: this rank's part of the global batch; the ranks' weights add up to one. With
                losses that are means over a rank's own samples, (own samples) / (all samples) gives
                the gradient of the mean over the global batch, however unevenly it is shared out.
                None means equal parts.
        """
        if weight is None:
            weight = 1.0 / self.comm.size
        for bucket in self.buckets:
            bucket.attach()
            if weight != 1.0:
                bucket.flat.mul_(weight)
        begin = time.perf_counter()
        for bucket in self.buckets:
            self.comm.allreduce(bucket.flat, out=bucket.flat)
        self.communication_seconds += time.perf_counter() - begin

    @torch.no_grad()
    def clip_gradients(self, limit: float) -> float:
        """Scales all gradients down so that their global norm is at most `limit`; returns the norm.

        Called after `average_gradients` it does the same on every rank.
        """
        norm = math.sqrt(sum(bucket.flat.double().square().sum().item() for bucket in self.buckets))
        if norm > limit:
            for bucket in self.buckets:
                bucket.flat.mul_(limit / norm)
        return norm


@torch.no_grad()
def broadcast_tensors(comm: Communicator, tensors: Iterable[Tensor], root: int = 0) -> None:
    """Gives all ranks root's values of `tensors`, one broadcast per element type."""
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_type.setdefault(tensor.dtype, []).append(tensor)
    for group in by_type.values():
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in group])
        comm.broadcast(flat, root=root, out=flat)
        offset = 0
        for tensor in group:
            tensor.copy_(flat[offset : offset + tensor.numel()].view(tensor.shape))
            offset += tensor.numel()


def share_of(batch: int, rank: int, size: int) -> range:
    """Which samples of a global batch are `rank`'s: base each, one more for the first ones."""
    base, remainder = divmod(batch, size)
    begin = rank * base + min(rank, remainder)
    return range(begin, begin + base + (rank < remainder))


def _grouped(parameters: Sequence[nn.Parameter], limit: int) -> list[list[nn.Parameter]]:
    """Parameters in the order their gradients become ready (backwards), cut into buckets."""
    groups: list[list[nn.Parameter]] = []
    room: dict[torch.dtype, tuple[int, list[nn.Parameter]]] = {}
    for parameter in reversed(parameters):
        size = parameter.numel() * parameter.element_size()
        left, group = room.get(parameter.dtype, (0, []))
        if not group or size > left:
            left, group = limit, []
            groups.append(group)
        group.append(parameter)
        room[parameter.dtype] = (left - size, group)
    return groups


def _dense_strides(parameter: Tensor) -> tuple[int, ...]:
    """The parameter's strides where they leave no gaps, else those of a contiguous tensor."""
    return torch.empty_like(parameter, device="meta").stride()
