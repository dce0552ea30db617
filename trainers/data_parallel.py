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
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from trainers.buckets import (
    FALLBACK,
    Bucket,
    BucketPlan,
    cheapest_sizes,
    elements_of,
    grouped,
    predictor,
)
from trainers.sharing import broadcast_tensors

if TYPE_CHECKING:
    from collectives import Communicator
    from collectives.work import Work

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WIRES = (torch.float16, torch.bfloat16)
_COMPILED = "_orig_mod."  # what torch.compile puts before the names of a module's parameters


@dataclass(frozen=True)
class BackwardTimes:
    """What a backward's communication took; seconds as `time.perf_counter` has them.

    Attributes:
        ready: when the last gradient was there.
        done: when every bucket was averaged. Between the two nothing was computed.
        calls: when each bucket's allreduce began and ended, in order.
    """

    ready: float
    done: float
    calls: tuple[tuple[float, float], ...]


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
        broadcast_buffers: give all ranks rank 0's buffers at the begin of each forward that trains.

    Attributes:
        names: of the parameters, as `module` has them.
        plan: the buckets, and what their allreduces are predicted to take.
        predicted: what an allreduce of gradients is predicted to take, by its bytes and the number
            of ranks.
        times: of the last backward that averaged.

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
    ) -> None:
        super().__init__()
        if unused not in ("error", "zero"):
            raise ValueError(f"unused: expected 'error' or 'zero', found {unused!r}")
        if wire is not None and wire not in WIRES:
            raise TypeError(f"wire: expected torch.float16 or torch.bfloat16, found {wire}")
        if bucket_bytes is not None and bucket_bytes < 1:
            raise ValueError(f"bucket_bytes: expected 1 or more, found {bucket_bytes}")
        self.module = module
        self.comm = comm
        self._unused = unused
        self._wire = wire
        self.names = {
            parameter: name.removeprefix(_COMPILED) for name, parameter in module.named_parameters()
        }
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._check(trained)
        broadcast_tensors(comm, [*module.parameters(), *module.buffers()])
        self._sends_buffers = (
            broadcast_buffers and comm.size > 1 and any(True for _ in module.buffers())
        )
        self.buckets: list[Bucket] = []
        self.plan = self._make_buckets(trained[::-1], bucket_bytes)
        self.times: BackwardTimes | None = None
        self._synchronizes = True
        self._backward: int | None = None  # autograd's number of the one under way
        self._ready = 0.0
        self._works: list[Work] = []
        self._follow_gradients()

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """The module's own forward."""
        if self._backward is not None:
            self._forget_backward()
        if self._sends_buffers and self.training and torch.is_grad_enabled():
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

        In place of forward and backward, while other ranks have theirs.
        """
        if self._sends_buffers and self.training:
            self._send_buffers()
        self._forget_backward()
        self._begin(None)
        self._average(may_miss=True)

    @torch.no_grad()
    def clip_gradients(self, limit: float) -> float:
        """Scales all gradients down so that their global norm is at most `limit`; returns the norm.

        Called after a backward it does the same on every rank.
        """
        norms = [torch.linalg.vector_norm(bucket.flat).to("cpu") for bucket in self.buckets]
        norm = float(torch.linalg.vector_norm(torch.stack(norms).double()))
        if norm > limit:
            for bucket in self.buckets:
                bucket.flat.mul_(limit / norm)
        return norm

    # --- making the buckets

    def _check(self, trained: Sequence[nn.Parameter]) -> None:
        if not trained:
            raise ValueError("expected parameters to train, found none that requires_grad")
        for parameter in trained:
            if parameter.dtype not in _FLOATS:
                raise TypeError(
                    f"{self.names[parameter]}: expected one of "
                    f"{', '.join(map(str, _FLOATS))}, found {parameter.dtype}"
                )

    def _make_buckets(
        self, parameters: Sequence[nn.Parameter], bucket_bytes: int | None
    ) -> BucketPlan:
        """The buckets, as rank 0 has planned them, and the plan."""
        kinds: dict[tuple[torch.dtype, torch.device], list[nn.Parameter]] = {}
        for parameter in parameters:
            kinds.setdefault((parameter.dtype, parameter.device), []).append(parameter)
        room = {kind: self._room(*kind, elements_of(theirs)) for kind, theirs in kinds.items()}
        _, sent = room[parameters[0].dtype, parameters[0].device]
        self.predicted = predictor(self.comm, sent)
        most, last, reason = self._sizes(sent, bucket_bytes)
        taken = dict.fromkeys(room, 0)
        for group in grouped(parameters, most, last, self._wire):
            kind = (group[0].dtype, group[0].device)
            begin = taken[kind]
            taken[kind] = end = begin + elements_of(group)
            flat, sent = (memory[begin:end] for memory in room[kind])
            self.buckets.append(Bucket(group, flat, sent))
        nbytes = tuple(bucket.sent.numel() * bucket.sent.element_size() for bucket in self.buckets)
        seconds = tuple(map(self.predicted, nbytes))
        return BucketPlan(nbytes, seconds, most, last, reason)

    def _sizes(self, sent: Tensor, bucket_bytes: int | None) -> tuple[int, int, str]:
        """What buckets hold at most, the last one, and why; rank 0's answer."""
        found: tuple[int, int, str] | None = None
        if self.comm.rank == 0:
            if bucket_bytes is not None:
                found = (bucket_bytes, bucket_bytes, "as asked")
            elif sizes := cheapest_sizes(sent.numel() * sent.element_size(), self.predicted):
                found = (*sizes, "sizes by the cost model")
            else:
                found = (*FALLBACK, "the cost model says nothing")
        answer: tuple[int, int, str] = self.comm.broadcast_object(found, root=0)
        return answer

    def _room(
        self, dtype: torch.dtype, device: torch.device, elements: int
    ) -> tuple[Tensor, Tensor]:
        """Where gradients of a kind lie, and where they are while they travel."""
        travels = dtype if self._wire is None else self._wire
        sent: Tensor = self.comm.empty(elements, travels)
        if device.type == "cpu" and travels == dtype:
            return sent, sent
        return torch.empty(elements, dtype=dtype, device=device), sent

    # --- a backward

    def _follow_gradients(self) -> None:
        # Weak: parameters hold their hooks, and must not keep alive what holds the parameters.
        weak = weakref.ref(self)
        for number, bucket in enumerate(self.buckets):
            for place, parameter in enumerate(bucket.parameters):
                hook = _hook(weak, number, place)
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
        bucket.take(place)
        if not self._synchronizes:
            bucket.kept.add(place)
            return
        backward = torch._C._current_graph_task_id()
        if backward != self._backward:
            if self._backward is not None:
                raise RuntimeError(
                    "a backward through this model began before the one before it had ended: "
                    "gradients are computed in nested backwards (checkpointing with "
                    "use_reentrant=True), which cannot be followed, or that one failed and no "
                    "forward came between"
                )
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
            self._works = []
            raise RuntimeError(
                "the last backward through this model raised an error after it had begun to "
                "communicate: the ranks may have different gradients"
            )

    def _begin(self, backward: int | None) -> None:
        self._backward = backward
        for bucket in self.buckets:
            bucket.await_all()

    def _begin_calls(self) -> None:
        """Begins the allreduces of buckets that are whole, in the order that all ranks have."""
        if self.comm.size == 1:
            return
        # Not the last: it is waited for at once, and a call in this thread is quicker.
        for bucket in self.buckets[len(self._works) : -1]:
            if bucket.missing:
                return
            self._works.append(self._call(bucket, async_op=True))

    def _call(self, bucket: Bucket, *, async_op: bool) -> Any:
        """The allreduce of a bucket."""
        if bucket.sent is bucket.flat:
            return self.comm.allreduce(bucket.flat, out=bucket.flat, op="avg", async_op=async_op)
        if self._wire is None:
            bucket.sent.copy_(bucket.flat)
            return self.comm.allreduce(bucket.sent, out=bucket.sent, op="avg", async_op=async_op)
        # Divided before: a sum could be beyond what 16 bits hold.
        bucket.sent.copy_(bucket.flat / self.comm.size)
        return self.comm.allreduce(
            bucket.sent, out=bucket.sent, deterministic=True, async_op=async_op
        )

    @torch.no_grad()
    def _average(self, *, may_miss: bool = False) -> None:
        """The end of a backward: waits for the allreduces, and does those that are left."""
        self._backward = None
        missing = [
            self._name(number, place)
            for number, bucket in enumerate(self.buckets)
            for place in sorted(bucket.missing - bucket.kept)
        ]
        if missing and not may_miss and self._unused == "error":
            raise _unused(missing, self.comm.rank)
        if any(bucket.missing for bucket in self.buckets):
            for bucket in self.buckets:
                bucket.count_missing_as_zero()
            self._ready = time.perf_counter()
            self._begin_calls()
        calls = []
        if self.comm.size > 1:
            for work in self._works:
                work.wait()
                calls.append((work.began, work.ended))
            begin = time.perf_counter()
            self._call(self.buckets[-1], async_op=False)
            calls.append((begin, time.perf_counter()))
            for bucket in self.buckets:
                if bucket.sent is not bucket.flat:
                    bucket.flat.copy_(bucket.sent)
        for bucket in self.buckets:
            bucket.kept.clear()
        self._works = []
        self.times = BackwardTimes(self._ready, time.perf_counter(), tuple(calls))

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _send_buffers(self) -> None:
        broadcast_tensors(self.comm, self.module.buffers())

    def _name(self, number: int, place: int) -> str:
        return self.names[self.buckets[number].parameters[place]]


class UnusedParameterError(RuntimeError):
    """Parameters that are to be trained have got no gradient in a backward."""


_MOST_NAMES = 8


def _unused(names: Sequence[str], rank: int) -> UnusedParameterError:
    shown = ", ".join(names[:_MOST_NAMES])
    if len(names) > _MOST_NAMES:
        shown += f" and {len(names) - _MOST_NAMES} more"
    return UnusedParameterError(
        f"rank {rank}: no gradient came for {shown}: expected one for every parameter that "
        "requires_grad (its output did not take part in the loss?); unused='zero' counts missing "
        "ones as zero"
    )


def _hook(weak: weakref.ref[DataParallel], number: int, place: int) -> Callable[[Tensor], None]:
    def has_come(parameter: Tensor) -> None:
        model = weak()
        if model is not None:
            model._has_come(number, place)

    return has_come
