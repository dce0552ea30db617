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
import time
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from collectives import CollectiveError
from trainers.bucket_making import make_buckets
from trainers.sharded import ShardedBucket
from trainers.sharing import broadcast_tensors
from trainers.step_times import BackwardTimes
from trainers.unused import UnusedParameterError, unused
from trainers.wrapping import FOLLOWED_BY, check_agreement, check_trainable

__all__ = ["DataParallel", "UnusedParameterError"]

if TYPE_CHECKING:
    from collectives import Communicator
    from collectives.work import Work

_NESTED = (
    "a backward through this model began before the one before it had ended: gradients are "
    "computed in nested backwards (checkpointing with use_reentrant=True), which cannot be "
    "followed, or that one failed and no forward came between"
)
WIRES = (torch.float16, torch.bfloat16)
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
            the backward with one that names it, "zero" counts it as zero.
        wire: a 16-bit type in which gradients travel. The ranks' values are added up in float32
            and rounded once. By default they travel as they are.
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
        times: of the last backward that averaged.
        gather_seconds: what the last `gather_parameters` took.

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
        wire: torch.dtype | None = None,
        broadcast_buffers: bool = True,
        shard: Literal["elements", "parameters"] | None = None,
    ) -> None:
        super().__init__()
        if shard not in (None, "elements", "parameters"):
            raise ValueError(f"shard: expected 'elements', 'parameters' or None, found {shard!r}")
        if unused not in ("error", "zero"):
            raise ValueError(f"unused: expected 'error' or 'zero', found {unused!r}")
        if wire is not None and wire not in WIRES:
            raise TypeError(f"wire: expected torch.float16 or torch.bfloat16, found {wire}")
        if bucket_bytes is not None and bucket_bytes < 1:
            raise ValueError(f"bucket_bytes: expected 1 or more, found {bucket_bytes}")
        self.module = module
        self.comm = comm
        self.shard = shard
        self._communicates = comm.size > 1 or shard is not None
        self._factor = 1.0 / comm.size
        self._unused = unused
        self._wire = wire
        self.names = {
            parameter: name.removeprefix(_COMPILED) for name, parameter in module.named_parameters()
        }
        self._trains = {parameter: parameter.requires_grad for parameter in self.names}
        trained = [parameter for parameter, trains in self._trains.items() if trains]
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
        made = make_buckets(comm, trained[::-1], bucket_bytes=bucket_bytes, wire=wire, shard=shard)
        self.buckets, self.plan = made.buckets, made.plan
        self.predicted, self.gather_predicted = made.predicted, made.gather_predicted
        self.times: BackwardTimes | None = None
        self.gather_seconds = 0.0
        self._synchronizes = True
        self._backward: int | None = None  # autograd's number of the one under way
        self._ready = 0.0
        self._works: list[Work] = []
        self._follow_gradients()

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """The module's own forward."""
        if self._backward is not None or self._works:
            self._forget_backward()
        trains = self.training and torch.is_grad_enabled()
        if self._sends_buffers and trains and self._synchronizes:
            self._send_buffers()
        return self.module(*inputs, **named)

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        """Backwards inside only add up this rank's gradients; the next one outside averages all."""
        before, self._synchronizes = self._synchronizes, False
        try:
            yield
        finally:
            self._synchronizes = before

    def weight(self, samples: int, total: int | None = None) -> float:
        """What to multiply this rank's mean loss with, where ranks have unequal numbers of samples.

        The average over ranks is then the gradient of the mean over all samples.

        Args:
            samples: of this rank in this step.
            total: of all ranks; None: the ranks tell each other, a collective call.
        """
        if total is None:
            total = int(self.comm.allreduce(np.array([samples]))[0])
        return samples * self.comm.size / max(total, 1)

    def contribute_nothing(self) -> None:
        """Takes part in a step in which this rank has no samples: its gradients count as zero.

        In place of forward and backward, while other ranks have theirs; in `no_sync` it does
        nothing.
        """
        if not self._synchronizes:
            return
        if self._sends_buffers and self.training:
            self._send_buffers()
        self._forget_backward()
        self._begin(None)
        self._average(may_miss=True)

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

    # --- what this rank takes care of

    @property
    def pieces(self) -> dict[str, nn.Parameter]:
        """What this rank's optimizer is to move, by the parameter's name; with gradients.

        The parameters themselves; where they are sharded, this rank's piece of each of which it
        has one, after which `gather_parameters` is to be called.
        """
        if self.shard is None:
            return {self.names[p]: p for bucket in self.buckets for p in bucket.parameters}
        return {
            self.names[bucket.parameters[place]]: piece
            for bucket in self.sharded_buckets
            for place, piece in bucket.pieces.items()
        }

    def gather_parameters(self) -> None:
        """Gives all ranks the pieces as they are now; a collective call if there are any."""
        begin = time.perf_counter()
        for bucket in self.sharded_buckets:
            bucket.gather_weights(self.comm)
        self.gather_seconds = time.perf_counter() - begin if self.shard else 0.0

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets all gradients."""
        super().zero_grad(set_to_none)
        for bucket in self.buckets:
            bucket.forget_gradients()

    @property
    def sharded_buckets(self) -> list[ShardedBucket]:
        """The buckets, if they are sharded."""
        return [bucket for bucket in self.buckets if isinstance(bucket, ShardedBucket)]

    # --- a backward

    def _follow_gradients(self) -> None:
        # Weak: parameters hold their hooks, and must not keep alive what holds the parameters.
        weak = weakref.ref(self)
        for number, bucket in enumerate(self.buckets):
            for place, parameter in enumerate(bucket.parameters):
                hook = _hook(weak, number, place)
                setattr(parameter, FOLLOWED_BY, weak)
                parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    def _has_come(self, number: int, place: int) -> None:
        """The gradient of a parameter is there: the `place`th of the `number`th bucket."""
        bucket = self.buckets[number]
        gradient = bucket.parameters[place].grad
        if gradient is not None and gradient.layout != torch.strided:
            raise TypeError(
                f"{self._name(number, place)}: expected a dense gradient, found one of "
                f"{gradient.layout}"
            )
        if not self._synchronizes:
            bucket.take(place)
            bucket.kept.add(place)
            return
        # Divided here, where it is moved anyway: the ranks' sum is then their average.
        bucket.take(place, self._factor)
        backward = torch._C._current_graph_task_id()
        if backward != self._backward:
            if self._backward is not None:
                raise RuntimeError(_NESTED)
            self._begin(backward)
            # At its end, in the thread that called it, before it returns.
            engine = torch.autograd.Variable._execution_engine
            engine.queue_callback(self._average)
        bucket.missing.discard(place)
        if not bucket.missing:
            self._ready = time.perf_counter()
            self._begin_calls()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _forget_backward(self) -> None:
        """After one that did not end, as it raised an error."""
        self._backward = None
        if self._works:
            self._await_calls()
            raise RuntimeError(
                "the last backward through this model raised an error after it had begun to "
                "communicate: the ranks may have different gradients"
            )

    def _await_calls(self) -> None:
        works, self._works = self._works, []
        for work in works:
            work.wait()

    def _begin(self, backward: int | None) -> None:
        for parameter, trains in self._trains.items():
            if parameter.requires_grad != trains:
                raise RuntimeError(
                    f"{self.names[parameter]}: expected requires_grad {trains}, as when the model "
                    f"was wrapped, found {parameter.requires_grad}; wrap it anew"
                )
        self._backward = backward
        for bucket in self.buckets:
            bucket.await_all()

    def _begin_calls(self) -> None:
        """Begins the allreduces of buckets that are whole, in the order that all ranks have."""
        if not self._communicates:
            return
        # Not the last: it is waited for at once, and a call in this thread is quicker.
        for bucket in self.buckets[len(self._works) : -1]:
            if bucket.missing:
                return
            self._works.append(bucket.begin_averaging(self.comm, async_op=True))

    def _average(self, *, may_miss: bool = False) -> None:
        """The end of a backward: waits for the allreduces, and does those that are left."""
        self._backward = None
        if any(bucket.missing for bucket in self.buckets):
            self._count_missing(may_miss=may_miss)
        calls = []
        if self._communicates:
            for work in self._works:
                work.wait()
                calls.append((work.began, work.ended))
            begin = time.perf_counter()
            self.buckets[-1].begin_averaging(self.comm, async_op=False)
            calls.append((begin, time.perf_counter()))
            for bucket in self.buckets:
                bucket.end_averaging()
            self._works = []
        for bucket in self.buckets:
            bucket.kept.clear()
        self.times = BackwardTimes(self._ready, time.perf_counter(), tuple(calls))

    @torch.no_grad()
    def _count_missing(self, *, may_miss: bool) -> None:
        """Lets gradients that have not come be zero, or refuses it."""
        missing = [
            self._name(number, place)
            for number, bucket in enumerate(self.buckets)
            for place in sorted(bucket.missing)
            if not bucket.has_kept(place)
        ]
        if missing and not may_miss and self._unused == "error":
            # What is under way would write over the gradients of the next backward.
            with contextlib.suppress(CollectiveError):
                self._await_calls()
            raise unused(missing, self.comm.rank)
        for bucket in self.buckets:
            bucket.take_missing(self._factor)
        self._ready = time.perf_counter()
        self._begin_calls()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _send_buffers(self) -> None:
        broadcast_tensors(self.comm, map(self.module.get_buffer, self._sent_buffers))

    def _name(self, number: int, place: int) -> str:
        return self.names[self.buckets[number].parameters[place]]


def _hook(weak: weakref.ref[DataParallel], number: int, place: int) -> Callable[[Tensor], None]:
    def has_come(parameter: Tensor) -> None:
        model = weak()
        if model is not None:
            model._has_come(number, place)

    return has_come
