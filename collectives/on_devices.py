"""Collectives on arrays of devices: checked and agreed on by hosts, run by streams.

A call returns once it is on the communicator's stream. Meanwhile the hosts agree on it, in the
queue of asynchronous calls: a barrier whose name is the call's text. So what the contract says of
calls that do not fit, of lost peers and of waits holds for these as well; who finds it raises it in
the next call, in `wait` or in `close`, as the arrays are on their way already.

The devices are connected by the first call with such an array, which therefore waits for all ranks.
"""

from __future__ import annotations

import importlib.util
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, NamedTuple

from collectives import settings
from collectives.arguments import check_out, check_timeout, refuse_overlap
from collectives.arrays import Array, is_same_memory, shape_of
from collectives.choosing import Request
from collectives.device_arrays import FAMILIES, DeviceFamily
from collectives.device_calls import DeviceCall
from collectives.device_connecting import DeviceConnecting
from collectives.device_work import DeviceWork
from collectives.which_device import check_carried, device_for, is_capturing
from collectives.work import Work
from transports.cuda_ipc.connection import Connected
from transports.cuda_ipc.device import Device, DeviceError
from transports.cuda_ipc.program import of_peer
from transports.cuda_ipc.watching import Watch
from transports.errors import CollectiveError, MismatchError
from transports.plan import Space
from transports.telling import tell


class OnStream(NamedTuple):
    """Where a caller is: its device, and the current stream there; None: whatever is current."""

    ordinal: int
    stream: int | None


class OnDevices(DeviceConnecting):
    """Adds arrays on devices to a communicator."""

    transport: str
    close: Callable[[], None]  # of Communicator, as
    abort: Callable[[BaseException], None]
    _carries_devices: bool

    def _begin_on_devices(self, carries: bool) -> None:
        self._carries_devices = carries
        self._watch: Watch | None = None
        self._device_turn = threading.Lock()
        self._in_graphs: list[Array] = []  # arrays of our own that captured calls use
        self._scatter_before: Callable[[], Work | None] = lambda: None  # an asynchronous one
        self._begin_device_calls()

    def _start_on_device(
        self,
        asked: Request,
        family: DeviceFamily,
        x: Array,
        source: Array | None,
        shape: tuple[int, ...] | None,
        out: Array | None,
        async_op: bool,
        timeout: float | None,
        stream: int | None = None,
    ) -> Any:
        """As `_start`, of an array on a device; follows what is on `stream`, or the current one."""
        before = self._scatter_before()
        if async_op and before is not None and not before.done() and not self._queue.is_here:
            return self._put_behind(asked, family, x, source, shape, out, timeout)
        self._await_scatter()
        with self._alone_on_device(asked.collective):
            work = self._put_on_device(asked, family, x, source, shape, out, timeout, stream)
        return work if async_op else work.wait()

    def _await_scatter(self) -> None:
        """One that is under way may be on devices, and then comes first, or connects them."""
        before = self._scatter_before()
        if before is not None and not self._queue.is_here:
            before.until_run()

    def _put_behind(
        self,
        asked: Request,
        family: DeviceFamily,
        x: Array,
        source: Array | None,
        shape: tuple[int, ...] | None,
        out: Array | None,
        timeout: float | None,
    ) -> Work:
        """In the queue, behind a scatter that is in it: the caller does not wait."""
        stream = family.stream_of(family.ordinal_of(x))
        if out is None and shape is not None:
            out = family.empty(shape, x)  # by this thread, whose streams will use it

        def job() -> DeviceWork:
            with self._alone_on_device(asked.collective):
                return self._put_on_device(asked, family, x, source, shape, out, timeout, stream)

        work = self._queue.submit(f"{asked.collective} on devices", job)
        self._scatter_before = weakref.ref(work)
        return work

    @contextmanager
    def _alone_on_device(self, collective: str) -> Iterator[None]:
        if not self._device_turn.acquire(blocking=False):
            raise CollectiveError(
                f"{collective}: another thread is in a collective of this communicator: two at "
                "once are not carried"
            )
        try:
            yield
        finally:
            self._device_turn.release()

    def _put_on_device(
        self,
        asked: Request,
        family: DeviceFamily,
        x: Array,
        source: Array | None,
        shape: tuple[int, ...] | None,
        out: Array | None,
        timeout: float | None,
        stream: int | None,
    ) -> DeviceWork:
        seconds = self.timeout if timeout is None else check_timeout(timeout)
        connected, watch = self._with_devices(family, family.ordinal_of(x))
        watch.raise_failure()
        self._engine.check(())
        device = connected.device
        given, x_given = out, x
        if out is not None and shape is not None:
            check_out(out, shape, x, family)
            refuse_overlap(x, out, family)
            self._refuse_other_device(family, out, "out")
        collective = asked.collective
        where = self._places_of(collective, family, x, out, asked.counts)
        request = asked._replace(symmetric=tuple(space for space, *_ in where))
        call = self._device_call(request, where)
        if source is not None:
            source = family.contiguous(source)
        if collective == "alltoall" and out is not None and is_same_memory(family, x, out):
            source = family.empty(shape_of(x), x)  # its chunks lie elsewhere in the output
            family.copy_into(source, x)
        target = None
        if shape is not None:
            target = given
            if target is None or not family.is_contiguous(target):
                target = family.empty(shape, x)
        bases = {
            Space.INPUT.name: 0 if source is None else family.address_of(source),
            Space.OUTPUT.name: 0 if target is None else family.address_of(target),
        }
        for space, block, offset in where:
            for peer, address in enumerate(block.memory.addresses):
                bases[of_peer(peer, space)] = address + offset
        watch.until_room(len(call.program.operations))
        after = family.stream_of(device.ordinal) if stream is None else stream
        text, number = call.agreement.text, connected.engine.next_number(after)
        kept = (x_given, source, target, given)
        if number == 0:
            self._check_captured(call, device)
            watch.look_after_graphs()
            # What is made here is the graph's for as long as it may run.
            self._in_graphs += [
                each for each in (source, target) if each is not x_given and each is not given
            ]
        elif device.is_capturing(connected.engine.stream):
            raise CollectiveError(
                f"{text}: another stream captures a call of this communicator in a graph: expected "
                "its calls in that graph, or after it"
            )
        # Looked after before it is put there: where hosts wait in the place of streams, that waits.
        if number:  # what is captured in a graph runs with the graph, whenever that is
            watch.add(number, text, seconds, len(call.program.operations), kept)
        agree = self._agreement(call, seconds)
        if not self._queue.is_here:
            self._queue.submit(text, agree)
        try:
            mark = connected.engine.run(call.program, after, bases, number)
        except BaseException as error:  # a part of it is there, and others wait
            failure = CollectiveError(f"{text}: {str(error) or type(error).__name__}")
            watch.fail(failure, told=True)
            self._engine.abort(f"rank {self.rank}: {failure}")
            if isinstance(error, DeviceError | MemoryError):
                raise failure from None
            raise
        call.has_run = True
        if self._queue.is_here:  # whose turn this is: at its end it would come after later calls
            agree()

        def deliver(kept: object = kept) -> Array | None:
            """The result, on the caller's stream; until then all that the call needs is kept."""
            with device.activated():
                device.follow(family.stream_of(device.ordinal), mark)
            if target is not None and given is not None and target is not given:
                family.copy_into(given, target)
            return given if given is not None and shape is not None else target

        return DeviceWork(text, number, watch, deliver)

    def _check_captured(self, call: DeviceCall, device: Device) -> None:
        if device.waits_on_host:
            raise CollectiveError(
                f"{call.agreement.text}: {device.name} has no stream memory operations, so the "
                "host waits in their place, and nothing can be captured in a graph"
            )
        if self._connected is not None and self._connected.engine.carrier is not None:
            raise CollectiveError(
                f"{call.agreement.text}: the ranks are on several hosts, which move what goes "
                "between them call by call, so nothing can be captured in a graph"
            )
        if not call.has_run:
            raise CollectiveError(
                f"{call.agreement.text}: expected a call that has been made before, since this one "
                "is captured in a graph, where nothing can be compiled or allocated: make it once "
                "outside of the graph"
            )

    def _streams_now(self) -> dict[str, OnStream]:
        """For calls that go through the queue, whose thread has a device and streams of its own."""
        found = {}
        for family in FAMILIES:
            if family.in_use():
                with suppress(RuntimeError):  # cupy, imported where there is no driver
                    at = self._connected
                    ordinal = family.current_ordinal() if at is None else at.device.ordinal
                    found[family.name] = OnStream(ordinal, family.stream_of(ordinal))
        return found

    def _scatter_on_device(
        self,
        asked: Request,
        family: str,
        dtype: Any,
        x: Array | None,
        shape: tuple[int, ...],
        out: Array | None,
        seconds: float,
        on: OnStream | None,
    ) -> Any:
        kind = next(each for each in FAMILIES if each.name == family)
        asked = asked._replace(on_devices=True)
        is_root = self.rank == asked.root
        if not is_root and on is None:  # this program has no such arrays yet
            at = self._connected
            on = OnStream(kind.current_ordinal() if at is None else at.device.ordinal, None)
        like = x if on is None or is_root else kind.like(dtype, on.ordinal)
        source = x if is_root else None
        after = None if on is None else on.stream
        return self._start_on_device(asked, kind, like, source, shape, out, True, seconds, after)

    def _agreement(self, call: DeviceCall, seconds: float) -> Callable[[], None]:
        engine, watch = self._engine, self._watch
        assert watch is not None, "a call on devices that are not connected"

        def agree() -> None:
            try:
                engine.execute(call.agreement, None, None, seconds, True)
            except BaseException as error:
                # The engine of the host keeps a mismatch for close(), if no call has raised it.
                watch.fail(error, told=isinstance(error, MismatchError))
                raise

        return agree

    # --- the devices

    def _with_devices(self, family: DeviceFamily, ordinal: int) -> tuple[Connected, Watch]:
        """The connected devices; connects them the first time, a call of all ranks."""
        check_carried(family, self._carries_devices)
        if self._connected is None or self._watch is None:
            if is_capturing(family, ordinal):  # asked first: making a device is not permitted then
                raise CollectiveError(
                    "the first call on devices connects them and cannot be captured in a graph: "
                    "make one before"
                )
            return self._connect_devices(device_for(family, ordinal))
        if ordinal != self._connected.device.ordinal:
            raise ValueError(
                f"x: expected an array on {self._connected.device.name} (device "
                f"{self._connected.device.ordinal}), where this rank's were before, found one on "
                f"device {ordinal}"
            )
        return self._connected, self._watch

    @property
    def carries_devices(self) -> bool:
        """Whether calls may have arrays on devices: neither refused by `init` nor without cupy."""
        return self._carries_devices and (settings.emulates_devices() or _has_cupy())

    @property
    def device(self) -> int | None:
        """The number here of this rank's device; None as long as none is connected."""
        return None if self._connected is None else self._connected.device.ordinal

    def _own_device(self) -> Device | None:
        """That a communicator split from this one is to connect at once, too."""
        if self.transport != "cuda_ipc" or self._connected is None:
            return None
        return self._connected.device

    def _connect_at_once(self, device: Device) -> None:
        try:
            connected, _ = self._connect_devices(device)
        except BaseException as error:
            self.abort(error)
            self.close()
            raise
        sharing = sum(each == device.identity for each in connected.identities)
        if self.rank == 0 and sharing > 1 and "/" not in self._job:
            tell(f"{sharing} ranks share {device.name} (device {device.ordinal}), in turn")

    def _refuse_other_device(self, family: DeviceFamily, array: Array, name: str) -> None:
        assert self._connected is not None
        found, expected = family.ordinal_of(array), self._connected.device.ordinal
        if found != expected:
            raise ValueError(
                f"{name}: expected an array on device {expected} as x, found one on device {found}"
            )


@cache
def _has_cupy() -> bool:
    return importlib.util.find_spec("cupy") is not None
