"""From checked arguments to the engine: the path of every call, short where it is walked often."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from collectives.arguments import (
    check_flag,
    check_out,
    check_timeout,
    refuse_out,
    refuse_overlap,
)
from collectives.arrays import NUMPY, Array, Family, family_of, is_same_memory, shape_of
from collectives.calls import Calls
from collectives.choosing import Request
from collectives.schedule import Algorithm
from collectives.work import WorkQueue
from transports import _native
from transports.plan import Space

_MOST_READY = 4096  # a program that never repeats a shape must not grow for ever


class _Given:
    """Memory of a call: an array the engine uses, and the array it stands for."""

    def __init__(
        self, family: Family, array: Array | None, stands_for: Array | None = None
    ) -> None:
        self._family = family
        self.array = array
        self._stands_for = array if stands_for is None else stands_for

    def memory(self) -> Any:
        return None if self.array is None else self._family.memory(self.array)

    def finish(self) -> Array:
        if self.array is not self._stands_for:
            self._family.copy_into(self._stands_for, self.array)
        return self._stands_for


class Execution:
    """Runs calls over an engine, at once or in the queue of asynchronous ones."""

    rank: int
    size: int
    _timeout: float
    _engine: _native.Engine
    _calls: Calls
    _queue: WorkQueue
    _ready: dict[Any, _native.Call]
    _parts: dict[int, str]  # by the thread: of which call its calls are parts
    _start_on_device: Callable[..., Any]  # as _start, where arrays lie on devices; OnDevices has it

    @property
    def timeout(self) -> float:
        """Seconds that a wait may take, where a call names none."""
        return self._timeout

    @timeout.setter
    def timeout(self, seconds: float) -> None:
        self._timeout = check_timeout(seconds)
        self._engine.set_timeout(self._timeout)  # of what it repeats by itself

    @contextmanager
    def _calling(self, name: str) -> Iterator[None]:
        """Calls made inside are parts of `name` and named so; of names in names the first."""
        thread = threading.get_ident()  # the queue's may be in one while the caller's is not
        before = self._parts.get(thread, "")
        queued = 0
        try:
            self._parts[thread] = before or name
            self._engine.queue(1)  # what it repeats by itself has the name it was made with
            queued = 1
            yield
        finally:
            self._engine.queue(-queued)
            if before:
                self._parts[thread] = before
            else:
                self._parts.pop(thread, None)

    def _start(
        self,
        collective: str,
        family: Family,
        x: Array,
        source: Array | None,
        shape: tuple[int, ...] | None,
        out: Array | None,
        async_op: bool,
        timeout: float | None,
        *,
        count: int,
        op: str | None = None,
        root: int = 0,
        counts: tuple[int, ...] | None = None,
        algorithm: str | Algorithm | None = None,
        deterministic: bool = False,
    ) -> Any:
        """Run a call from `source` to an array of `shape`, or to nothing where it is None."""
        part_of = self._parts.get(threading.get_ident(), "") if self._parts else ""
        if family.on_device:
            asked = Request(
                collective, family.dtype_of(x), family.itemsize_of(x), count, op, root, algorithm,
                counts, check_flag(deterministic, "deterministic"), part_of=part_of,
                on_devices=True,
            )  # fmt: skip
            return self._start_on_device(asked, family, x, source, shape, out, async_op, timeout)
        symmetric = (
            self._symmetric_of(collective, family, x, out, counts)
            if self._engine.has_symmetric
            else ()
        )
        key = (
            collective, family.kind_of(x), count, op, root, algorithm, counts, deterministic,
            symmetric, part_of,
        )  # fmt: skip
        try:
            call = self._ready.get(key)
        except TypeError:  # something in it cannot be hashed, hence is no name
            call = None
        call = call or self._make_ready(key, family, x, out)
        if call.one_sided:
            source = x  # where it lies tells where that of a peer does, though it may not be read
        plain = source is None or family.is_contiguous(source)
        given = out if shape is not None else None
        if out is None or shape is None:
            target = None if shape is None else family.empty(shape, x)
            out = target
        else:
            target = out if check_out(out, shape, x, family) else family.empty(shape, x)
            if collective == "alltoall" and is_same_memory(family, x, target):
                # Chunks lie elsewhere in the output than in the input, so that is kept apart.
                source = family.empty(shape_of(x), x)
                family.copy_into(source, x)
            # Where it does not read x, as off the root of a broadcast, it cannot compare the two.
            reads = source is x and not (call.one_sided and call.input_bytes == 0)
            if not (plain and reads and target is out and not async_op and self._queue.idle):
                # What the engine itself refuses where it works on x and out at once.
                refuse_out(out, shape, x, family)
                refuse_overlap(x, out, family)
        if not plain:
            source = family.contiguous(source)
        repeatable = (
            family is NUMPY
            and (given is not None or shape is None)
            # As they are given: a copy may lie where others do not.
            and plain
            and (source is None or source is x)
            and (target is None or target is given)
            and counts is None
            and timeout is None
            and not part_of
            # What is remembered must not lead back to this object, as a user's algorithm might.
            and (algorithm is None or isinstance(algorithm, str))
        )
        if repeatable:
            self._engine.remember(collective, x, given, root, op, algorithm, deterministic, call)
        if target is None or target is not out or async_op or not self._queue.idle:
            taken = None if target is None else _Given(family, target, out)
            return self._launch(call, _Given(family, source), taken, async_op, timeout)
        try:
            self._engine.execute(
                call,
                None if source is None else family.memory(source),
                family.memory(target),
                self.timeout if timeout is None else check_timeout(timeout),
                False,
                target,
                source,
            )
        except ValueError:
            if shape is not None:
                refuse_out(out, shape, x, family)  # if it was that, in our words
            raise
        return out

    def _symmetric_of(
        self,
        collective: str,
        family: Family,
        x: Array,
        out: Array | None,
        counts: tuple[int, ...] | None,
    ) -> tuple[Space, ...]:
        """Which arrays of the call lie in symmetric memory, as they lie there.

        `out` does not count where not every rank has one, nor x where that of some rank is empty,
        and lies nowhere. An alltoall in place has none: it reads a copy of x.
        """
        found = []
        somewhere = collective not in ("gather", "allgather") or 0 not in (counts or ())
        if somewhere and self._lies_in_symmetric(family, x):
            found.append(Space.INPUT)
        if out is not None and collective not in ("reduce", "gather"):
            if collective == "alltoall" and is_same_memory(family, x, out):
                return ()
            if self._lies_in_symmetric(family, out):
                found.append(Space.OUTPUT)
        return tuple(found)

    def _lies_in_symmetric(self, family: Family, x: Array) -> bool:
        if family_of(x).name != family.name or not family.is_contiguous(x):
            return False
        address = family.address_of(x)
        return self._engine.is_symmetric(address, family.count_of(x) * family.itemsize_of(x))

    def _is_strided_symmetric(self, family: Family, x: Array) -> bool:
        if family_of(x).name != family.name or family.is_contiguous(x):
            return False
        return self._engine.is_symmetric(family.address_of(x), family.itemsize_of(x))

    def _make_ready(
        self, key: tuple[Any, ...], family: Family, x: Array, out: Array | None
    ) -> _native.Call:
        """The call of a key seen for the first time; all that is slow happens here."""
        collective, _, count, op, root, algorithm, counts, deterministic, symmetric, part_of = key
        dtype, itemsize = family.dtype_of(x), family.itemsize_of(x)
        request = Request(
            collective, dtype, itemsize, count, op, root, algorithm, counts,
            check_flag(deterministic, "deterministic"), symmetric, part_of=part_of,
            strided=tuple(
                space for space, array in ((Space.INPUT, x), (Space.OUTPUT, out))
                if array is not None and self._is_strided_symmetric(family, array)
            ),
        )  # fmt: skip
        call = self._calls.get(request)
        if len(self._ready) >= _MOST_READY:
            self._ready.clear()
        self._ready[key] = call
        return call

    def _launch(
        self,
        call: _native.Call,
        source: _Given | None,
        target: _Given | None,
        async_op: bool,
        timeout: float | None,
    ) -> Any:
        """Run `call` in its turn; what it reads and writes is kept alive until it has run."""
        seconds = self.timeout if timeout is None else check_timeout(timeout)

        def job() -> Any:
            given = source.memory() if source is not None else None
            taken = target.memory() if target is not None else None
            owner = target.array if target is not None else None
            whose = source.array if source is not None else None
            self._engine.execute(call, given, taken, seconds, async_op, owner, whose)
            return target.finish() if target is not None else None

        if not async_op and self._queue.may_go:
            return job()
        work = self._queue.submit(call.text, job)
        return work if async_op else work.wait()

    def _in_turn(self, text: str, job: Callable[[], Any]) -> Any:
        return job() if self._queue.may_go else self._queue.submit(text, job).wait()
