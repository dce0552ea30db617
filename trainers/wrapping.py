"""What is looked at before a model is wrapped: what can be averaged, and what ranks agree on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from trainers.following import is_followed

if TYPE_CHECKING:
    from collectives import Communicator

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_trainable(names: Mapping[nn.Parameter, str], trained: Sequence[nn.Parameter]) -> None:
    """Refuses parameters that cannot be averaged, or that are already.

    Raises:
        ValueError: there are none, or another DataParallel follows one.
        TypeError: one is of a type that is not carried.
    """
    if not trained:
        raise ValueError("expected parameters to train, found none that requires_grad")
    for parameter in trained:
        if is_followed(parameter):
            raise ValueError(
                f"{names[parameter]}: expected a parameter of no other DataParallel, found one "
                "whose gradients another averages already (it lives as long as a loss of its does)"
            )
        if parameter.dtype not in FLOATS:
            raise TypeError(
                f"{names[parameter]}: expected one of {', '.join(map(str, FLOATS))}, found "
                f"{parameter.dtype}"
            )


def check_agreement(
    comm: Communicator, names: Mapping[nn.Parameter, str], options: Mapping[str, Any]
) -> None:
    """Refuses ranks that would train different models; a collective call.

    Raises:
        ValueError: on every rank; it names the first difference, with what rank 0 has.
    """
    mine = {
        **{f"{name}=": value for name, value in options.items()},
        **{
            name: f"{str(parameter.dtype).removeprefix('torch.')}{list(parameter.shape)}"
            + ("" if parameter.requires_grad else ", which is not trained")
            for parameter, name in names.items()
        },
    }
    for rank, theirs in enumerate(everyones := comm.allgather_object(list(mine.items()))):
        for expected, found in zip_longest(everyones[0], theirs, fillvalue=("nothing more", "")):
            if expected != found:
                words = [f"{name} {value}".strip() for name, value in (expected, found)]
                raise ValueError(
                    f"the ranks have different models: rank 0 has {words[0]}, rank {rank} has "
                    f"{words[1]}"
                )
