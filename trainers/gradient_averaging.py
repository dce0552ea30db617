"""The averaging of gradients: what follows a backward through a model, and ends it.

It begins the allreduce of a bucket when the last of its gradients has come, and at the end of the
backward waits for all. It knows the parameters but not the model: `following` says why.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from collectives import CollectiveError
from trainers.buckets import Bucket
from trainers.following import Awaited, follow
from trainers.step_times import BackwardMoments
from trainers.unequal_steps import hint_at_unequal_steps
from trainers.unused import unused

if TYPE_CHECKING:
    from collectives import Communicator
    from trainers.clocks import Clock, TimedCall

_NESTED = (
    "a backward through this model began before the one before it had ended: gradients are "
    "computed in nested backwards (checkpointing with use_reentrant=True), which cannot be "
    "followed, or that one failed and no forward came between"
)


class GradientAveraging:
    """Averages the gradients of a model's parameters over ranks, backward by backward.

    Args:
        comm: the ranks.
        buckets: of the parameters that are trained.
        names: of all parameters.
        unused: what becomes of a parameter without a gradient, see `DataParallel`.
        sharded: whether a bucket's averages are shared out among the ranks.
        clock: by which backwards are timed.

    Attributes:
        awaited: whether a backward of a compiled forward is.
        synchronizes: whether backwards average, or add up this rank's gradients only.
        moments: of the last backward that averaged.
    """

    def __init__(
        self,
        comm: Communicator,
        buckets: Sequence[Bucket],
        names: Mapping[nn.Parameter, str],
        *,
        unused: Literal["error", "zero"],
        sharded: bool,
        clock: Clock,
    ) -> None:
        self.comm = comm
        self.clock = clock
        self.buckets = buckets
        self.awaited = Awaited()
        self.synchronizes = True
        self.moments: BackwardMoments | None = None
        self._names = names
        self._trains = {parameter: parameter.requires_grad for parameter in names}
        self._communicates = comm.size > 1 or sharded
        self._factor = 1.0 / comm.size
        self._unused = unused
        self._backward: int | None = None  # autograd's number of the one under way
        # Gradients on several devices come in several threads.
        self._turn = threading.RLock()
        self._ready: Any = None
        self._works: list[TimedCall] = []
        for number, bucket in enumerate(buckets):
            for place, parameter in enumerate(bucket.parameters):
                follow(self, parameter, number, place)

    @property
    def is_under_way(self) -> bool:
        """Whether a backward has begun and not ended."""
        return self._backward is not None or bool(self._works)

    def contribute_nothing(self) -> None:
        """In place of a backward: this rank's gradients count as zero."""
        self.forget_backward()
        self._begin(None)
        self._average(may_miss=True)

    def has_come(self, number: int, place: int) -> None:
        """The gradient of a parameter is there: the `place`th of the `number`th bucket."""
        with self._turn:
            self._take(number, place)

    def _take(self, number: int, place: int) -> None:
        bucket = self.buckets[number]
        gradient = bucket.parameters[place].grad
        if gradient is not None and gradient.layout != torch.strided:
            raise TypeError(
                f"{self._name(number, place)}: expected a dense gradient, found one of "
                f"{gradient.layout}"
            )
        if not self.synchronizes:
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
            # At its end, before it returns: in the thread that called it, or autograd's of a GPU.
            engine = torch.autograd.Variable._execution_engine
            engine.queue_callback(self._average)
        bucket.missing.discard(place)
        if not bucket.missing:
            self._ready = self.clock.moment()
            with hint_at_unequal_steps():
                self._begin_calls()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forget_backward(self) -> None:
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
                    f"{self._names[parameter]}: expected requires_grad {trains}, as when the model "
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
            begin = partial(bucket.begin_averaging, self.comm, async_op=True)
            self._works.append(self.clock.timed(begin))

    def _average(self, *, may_miss: bool = False) -> None:
        """The end of a backward: waits for the allreduces, and does those that are left."""
        self._backward = None
        if any(bucket.missing for bucket in self.buckets):
            self._count_missing(may_miss=may_miss)
        calls = []
        if self._communicates:
            with hint_at_unequal_steps():
                for work in self._works:
                    work.wait()
                    calls.append((work.began, work.ended))
                began = self.clock.moment()
                self.buckets[-1].begin_averaging(self.comm, async_op=False)
            calls.append((began, self.clock.moment()))
            for bucket in self.buckets:
                bucket.end_averaging()
            self._works = []
        for bucket in self.buckets:
            bucket.leave_out()
            bucket.kept.clear()
        earlier = self.moments
        self.moments = BackwardMoments(self._ready, self.clock.moment(), tuple(calls))
        if earlier is not None:
            # A host that is far ahead of its GPU stands in the driver once a peer is lost, where
            # nothing can tell it so.
            self.clock.reach(earlier.done)

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
        self._ready = self.clock.moment()
        self._begin_calls()

    def _name(self, number: int, place: int) -> str:
        return self._names[self.buckets[number].parameters[place]]
