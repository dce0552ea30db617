"""Whether all ranks still hold the same parameters, bit for bit, as data-parallel training wants.

Nothing in a step makes ranks equal that are not: an optimizer that draws differently, or memory
that forgets a bit, leaves a rank with a model of its own, whose gradients go on being averaged into
those of the others. Losses hardly tell.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import TYPE_CHECKING

import torch
from torch import nn

from trainers.errors import DivergedError
from transports.telling import listed

if TYPE_CHECKING:
    from collectives import Communicator


def check_replicas(network: nn.Module, comm: Communicator, step: int) -> str:
    """Compares the parameters of all ranks; a collective call.

    Args:
        network: this rank's.
        comm: the ranks.
        step: how many steps have been done, for the message.

    Returns:
        What all of them have: 16 hexadecimal digits of the SHA-256 of every parameter's own.

    Raises:
        DivergedError: on every rank; names the ranks that differ from most, and the first
            parameter that does.
    """
    own = {name: _digest(tensor) for name, tensor in network.named_parameters()}
    everyones = comm.allgather_object(own)
    for name in own:
        found = [each[name] for each in everyones]
        (most, _), *others = Counter(found).most_common()
        if others:
            apart = [rank for rank, each in enumerate(found) if each != most]
            raise DivergedError(
                f"after step {step} {name} of {listed(apart)} is not, bit for bit, what the other "
                f"{comm.size - len(apart)} of {comm.size} ranks hold, though every rank has taken "
                "the same steps: something there computes differently, or its memory errs",
                told_elsewhere=comm.rank != 0,
            )
    whole = hashlib.sha256("".join(own.values()).encode())
    return whole.hexdigest()[:16]


def _digest(parameter: torch.Tensor) -> str:
    data = parameter.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(data.numpy().data).hexdigest()
