"""What ranks share: the same tensors, and the samples of a batch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trainers.placement import travels_on

if TYPE_CHECKING:
    from collectives import Communicator


@torch.no_grad()
def broadcast_tensors(comm: Communicator, tensors: Iterable[Tensor], root: int = 0) -> None:
    """Gives all ranks root's values of `tensors`, one broadcast per element type and device."""
    by_type: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        by_type.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for (_, device), group in by_type.items():
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in group])
        if travels_on(comm, device) is None:
            flat = flat.cpu()
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
