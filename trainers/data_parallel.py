"""Data-parallel training: every rank holds the same model and gradients are averaged over ranks.

    model = DataParallel(net, comm)
    for inputs, targets in mine:
        loss(model(inputs), targets).backward()     # returns with the ranks' average in every .grad
        optimizer.step()
        optimizer.zero_grad()

Gradients live in a few flat buckets, in memory that all ranks reach (`comm.empty`): each
`parameter.grad` is a view into one. The allreduce of a bucket begins as soon as the last of its
gradients is there, while backward goes on; the one of the last bucket runs in the caller's thread,
since nothing is left to hide it behind.

All ranks get the same bits from an allreduce, hence the same parameters from the same optimizer.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn

from trainers.bucket_making import make_buckets
from trainers.clocks import clock_of, passed
from trainers.following import keep_for_backward
from trainers.gradient_averaging import GradientAveraging
from trainers.sharded import ShardedBucket
from trainers.sharing import broadcast_tensors
from trainers.step_times import BackwardMoments, BackwardTimes
from trainers.unequal_steps import hint_at_unequal_steps
from trainers.unused import UnusedParameterError
from trainers.wrapping import check_agreement, check_trainable

__all__ = ["DataParallel", "UnusedParameterError"]

if TYPE_CHECKING:
    from collectives import Communicator

_UNMOVED = (
    "expected a ShardedOptimizer, which moves the pieces of a sharded model's parameters, found "
    "none made after a backward: to torch's own optimizers and clip_grad_norm_ every gradient of "
    "the parameters is None; clip by model.clip_gradients"
)
WIRES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_COMPILED = "_orig_mod."  # what torch.compile puts before the names of a module's parameters


class DataParallel(nn.Module):
    """A model whose copies on all ranks of `comm` stay equal. Making one is a collective call.

    A backward through it ends when every `parameter.grad` is the average over ranks. If the ranks'
    losses are means over unequal numbers of samples, multiply each by `weight` before. Gradients
    that are there already are added to, as usual: call `zero_grad()` after each step.

    Args:
        module: the model; rank 0's parameters and buffers are sent to all.
        comm: the ranks that train it together.
        bucket_bytes: how much one allreduce carries at most; a larger parameter goes alone. By
            default what the model of this transport's cost says: see `plan`.
        unused: what becomes of a parameter that has got no gradient on this rank: "error" ends
            the backward with one that names it, "zero" counts it as zero. Of which no
            rank has got one stays None, as in plain torch; sharded, it is zero.
        wire: a 16-bit type, or its name, in which gradients travel. The ranks' values are added up
            in float32 and rounded once. By default they travel as they are.
        broadcast_buffers: give all ranks rank 0's buffers, those of checkpoints, at the begin of
            each forward that trains and is not in `no_sync`.
        shard: each rank gets the averages of only a part of the gradients, and is to move only that
            part (`pieces`, see `trainers.sharded`): "elements" cuts anywhere, for optimizers that
            work element by element, into equal parts; "parameters" leaves each parameter whole.
            After a backward every `parameter.grad` is None then.

    Attributes:
        names: of the parameters, as `module` has them.
        plan: the buckets, and what averaging them is predicted to take.
        predicted: what the averaging of gradients is predicted to take, by its bytes and the number
            of ranks.
        gather_predicted: the same of gathering parameters, where they are sharded.
        clock: by which it is timed.
        gathered: begin and end of the last `gather_parameters`, by the clock; None: there was none.

    Raises:
        TypeError: a parameter is of a type that cannot be averaged, or `wire` is no 16-bit type.
        ValueError: no parameter is to be trained, or an argument is none of those named above.
    """

    def __init__(
        self,
        module: nn.Module,
        comm: Communicator,
        *,
        bucket_bytes: int | None = None,
        unused: Literal["error", "zero"] = "error",
        wire: torch.dtype | str | None = None,
        broadcast_buffers: bool = True,
        shard: Literal["elements", "parameters"] | None = None,
    ) -> None:
        super().__init__()
        if shard not in (None, "elements", "parameters"):
            raise ValueError(f"shard: expected 'elements', 'parameters' or None, found {shard!r}")
        if unused not in ("error", "zero"):
            raise ValueError(f"unused: expected 'error' or 'zero', found {unused!r}")
        if isinstance(wire, str):
            wire = WIRES.get(wire, wire)
        if isinstance(wire, str) or wire not in (None, *WIRES.values()):
            raise TypeError(f"wire: expected torch.float16 or torch.bfloat16, found {wire!r}")
        if bucket_bytes is not None and bucket_bytes < 1:
            raise ValueError(f"bucket_bytes: expected 1 or more, found {bucket_bytes}")
        self.module = module
        self.comm = comm
        self.shard = shard
        self.names = {
            parameter: name.removeprefix(_COMPILED) for name, parameter in module.named_parameters()
        }
        trained = [parameter for parameter in self.names if parameter.requires_grad]
        check_trainable(self.names, trained)
        options = {
            "bucket_bytes": bucket_bytes,
            "unused": unused,
            "wire": str(wire),
            "shard": shard,
        }
        check_agreement(comm, self.names, options)
        broadcast_tensors(comm, [*module.parameters(), *module.buffers()])
        # Those that a checkpoint has: what follows from settings is as it was sent at first.
        state = module.state_dict()
        self._sent_buffers = [name for name, _ in module.named_buffers() if name in state]
        self._sends_buffers = broadcast_buffers and comm.size > 1 and bool(self._sent_buffers)
        made = make_buckets(
            comm,
            trained[::-1],
            bucket_bytes=bucket_bytes,
            wire=wire,
            shard=shard,
            marked=unused == "zero" and shard is None,
        )
        self.buckets, self.plan = made.buckets, made.plan
        self.predicted, self.gather_predicted = made.predicted, made.gather_predicted
        self.gathered: tuple[Any, Any] | None = None
        self.clock = clock_of(trained)
        self._is_moved = False  # whether somebody has the pieces, to move them
        self._averaging = GradientAveraging(
            comm,
            made.buckets,
            self.names,
            unused=unused,
            sharded=shard is not None,
            clock=self.clock,
        )

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """The module's own forward."""
        if self._averaging.is_under_way:
            self._averaging.forget_backward()
        trains = self.training and torch.is_grad_enabled()
        unmoved = self.shard is not None and not self._is_moved
        if trains and unmoved and self._averaging.moments is not None:
            raise RuntimeError(_UNMOVED)
        if self._sends_buffers and trains and self._averaging.synchronizes:
            self._send_buffers()
        output = self.module(*inputs, **named)
        if trains and torch.compiler.is_compiling():
            self._averaging.awaited.backward = True
        elif torch.is_grad_enabled():
            keep_for_backward(self._averaging, output, self.names)
        return output

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        """Backwards inside only add up this rank's gradients; the next one outside averages all."""
        averaging = self._averaging
        before, averaging.synchronizes = averaging.synchronizes, False
        try:
            yield
        finally:
            averaging.synchronizes = before

    def weight(self, samples: int, total: int | None = None) -> float:
        """What to multiply this rank's mean loss with, where ranks have unequal numbers of samples.

        The average over ranks is then the gradient of the mean over all samples.

        Args:
            samples: of this rank in this step.
            total: of all ranks; None: the ranks tell each other, a collective call.

        Raises:
            ValueError: this rank alone has more than all have, or fewer than none.
        """
        if total is None:
            total = int(self.comm.allreduce(np.array([samples]))[0])
        if not 0 <= samples <= total:
            raise ValueError(
                f"samples: expected 0 to {total}, which all ranks together have, found {samples}"
            )
        return samples * self.comm.size / max(total, 1)

    def contribute_nothing(self) -> None:
        """Takes part in a step in which this rank has no samples: its gradients count as zero.

        In place of forward and backward, while other ranks have theirs; in `no_sync` it does
        nothing.
        """
        if not self._averaging.synchronizes:
            return
        if self._sends_buffers and self.training:
            self._send_buffers()
        self._averaging.contribute_nothing()

    @torch.no_grad()
    def clip_gradients(self, limit: float) -> float:
        """Scales all gradients down so that their global norm is at most `limit`; returns the norm.

        Called after a backward, by all ranks: it does the same on every one. Where gradients are
        sharded it is a collective call.
        """
        for bucket in self.buckets:
            bucket.take_all()
        norms = [torch.linalg.vector_norm(bucket.averaged).cpu() for bucket in self.buckets]
        square = torch.stack(norms).double().square().sum().reshape(1)
        if self.shard is not None:
            square = self.comm.allreduce(square)
        norm = math.sqrt(square.item())
        if norm > limit:
            for bucket in self.buckets:
                bucket.averaged.mul_(limit / norm)
        return norm

    @property
    def times(self) -> BackwardTimes | None:
        """Of the last backward that averaged; waits until it is done."""
        if self.moments is None:
            return None
        self.clock.settle(self.moments.done)
        return self.moments.times(self.clock)

    @property
    def moments(self) -> BackwardMoments | None:
        """The same in moments of `clock`, without waiting."""
        return self._averaging.moments

    @property
    def gather_seconds(self) -> float:
        """What the last `gather_parameters` took; waits until it is done."""
        if self.gathered is None:
            return 0.0
        self.clock.settle(self.gathered[1])
        return passed(self.clock, *self.gathered)

    # --- what this rank takes care of

    @property
    def pieces(self) -> dict[str, nn.Parameter]:
        """What this rank's optimizer is to move, by the parameter's name; with gradients.

        The parameters themselves; where they are sharded, this rank's piece of each of which it
        has one, after which `gather_parameters` is to be called.
        """
        self._is_moved = True
        if self.shard is None:
            return {self.names[p]: p for bucket in self.buckets for p in bucket.parameters}
        return {
            self.names[bucket.parameters[place]]: piece
            for bucket in self.sharded_buckets
            for place, piece in bucket.pieces.items()
        }

    def gather_parameters(self) -> None:
        """Gives all ranks the pieces as they are now; a collective call if there are any."""
        if self.shard is None:
            return
        began = self.clock.moment()
        for bucket in self.sharded_buckets:
            bucket.gather_weights(self.comm)
        self.gathered = began, self.clock.moment()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets all gradients."""
        super().zero_grad(set_to_none)
        for bucket in self.buckets:
            bucket.forget_gradients()

    @property
    def sharded_buckets(self) -> list[ShardedBucket]:
        """The buckets, if they are sharded."""
        return [bucket for bucket in self.buckets if isinstance(bucket, ShardedBucket)]

    # --- a forward

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _send_buffers(self) -> None:
        with hint_at_unequal_steps():
            broadcast_tensors(self.comm, map(self.module.get_buffer, self._sent_buffers))
