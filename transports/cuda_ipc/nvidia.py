# ruff: noqa: D102 - what the methods do is said where they are declared, in device.py
"""An NVIDIA device, through cupy and the driver."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from transports.cuda_ipc import driver
from transports.cuda_ipc.by_host import signal_by_host
from transports.cuda_ipc.compiling import architecture_for, compiled
from transports.cuda_ipc.device import ITEM_BYTES, DeviceError, Mark, Signal, Stream
from transports.cuda_ipc.kernels import divide_argument, fold_argument, launch_shape
from transports.telling import tell

_REGISTER = 1 | 2  # for every context, and mapped
_NON_BLOCKING = 1  # a stream that the legacy default stream does not wait for, nor it for that
_NO_TIMING = 2
_ANY_DIRECTION = 4
_HOST_PAGE = mmap.PAGESIZE
_MOST_KEPT = 8192  # batches of signals


def cupy_module() -> ModuleType:
    """cupy, with a device to use.

    Raises:
        ModuleNotFoundError: it is not installed.
        DeviceError: it finds no device.
    """
    try:
        import cupy
    except ImportError as error:
        raise ModuleNotFoundError(
            "arrays on CUDA devices need cupy: pip install 'collectives-runtime[cuda13]', or "
            f"[cuda12] with a CUDA 12 driver ({error})"
        ) from None
    try:
        if cupy.cuda.runtime.getDeviceCount() < 1:
            raise DeviceError("there is no CUDA device")
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise DeviceError(f"there is no CUDA device: {error}") from None
    module: ModuleType = cupy
    return module


def nvidia_count() -> int:
    """How many devices this process sees."""
    return int(cupy_module().cuda.runtime.getDeviceCount())


@cache
def nvidia_device(ordinal: int, kernels: Path | None = None) -> NvidiaDevice:
    """The device with that number in this process; `kernels` is where those are kept."""
    return NvidiaDevice(ordinal, kernels)


def is_capturing(stream: Stream) -> bool:
    """Of the current device, without one being made here."""
    return bool(cupy_module().cuda.runtime.streamIsCapturing(stream))


class NvidiaDevice:
    """See `device.Device` for the methods."""

    def __init__(self, ordinal: int, kernels: Path | None = None) -> None:
        """The device with that number here, whose kernels are kept in a folder, if any.

        Raises:
            ValueError: there is none.
        """
        self._cupy = cupy_module()
        self._runtime = self._cupy.cuda.runtime
        count = self._runtime.getDeviceCount()
        if not 0 <= ordinal < count:
            raise ValueError(f"device must be in 0..{count - 1}, found {ordinal}")
        properties = self._runtime.getDeviceProperties(ordinal)
        name = properties["name"]
        self.name = name.decode() if isinstance(name, bytes) else str(name)
        self.ordinal = ordinal
        self._multiprocessors = int(properties["multiProcessorCount"])
        with self.activated():
            self._runtime.free(0)  # the context is made now, not in a call
            self.identity = driver.uuid_of(ordinal)
            major, minor = properties["major"], properties["minor"]
            # On which there is never anything: what is asked of it is how the device is.
            self._unused = self._runtime.streamCreateWithFlags(_NON_BLOCKING)
        self._architecture = architecture_for(10 * major + minor, self._cupy.cuda.nvrtc)
        self._folder = kernels
        self._kernels: dict[tuple[str, int, int], Any] = {}
        self._batches: dict[tuple[Signal, ...], Any] = {}
        self._registered: dict[int, tuple[int, int]] = {}  # for streams -> on the host, bytes
        self.waits_on_host = False

    @contextlib.contextmanager
    def activated(self) -> Iterator[object]:
        with self._cupy.cuda.Device(self.ordinal), self._told():
            yield self

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """What cupy raises, as the seam's errors."""
        try:
            yield
        except (self._runtime.CUDARuntimeError, self._cupy.cuda.driver.CUDADriverError) as error:
            raise DeviceError(f"{self.name}: {error}") from None

    # --- memory

    def allocate(self, nbytes: int) -> int:
        with self._cupy.cuda.Device(self.ordinal):
            try:
                return int(self._runtime.malloc(nbytes))
            except self._runtime.CUDARuntimeError as error:
                free, total = self._runtime.memGetInfo()
                raise MemoryError(
                    f"{self.name}: {nbytes} bytes cannot be had, {free} of {total} are free: "
                    f"{error}"
                ) from None

    def free(self, address: int) -> None:
        with self.activated():
            self._runtime.free(address)

    def export(self, address: int) -> bytes:
        with self.activated():
            return bytes(self._runtime.ipcGetMemHandle(address))

    def open(self, handle: bytes) -> int:
        with self.activated():
            return int(self._runtime.ipcOpenMemHandle(handle))

    def close(self, address: int) -> None:
        with self.activated():
            self._runtime.ipcCloseMemHandle(address)

    def register(self, address: int, nbytes: int) -> int:
        begin = address // _HOST_PAGE * _HOST_PAGE  # a driver takes whole pages
        length = -(-(address + nbytes - begin) // _HOST_PAGE) * _HOST_PAGE
        with self.activated():
            self._runtime.hostRegister(begin, length, _REGISTER)
            found = driver.device_pointer(begin) + address - begin
        self._registered[found] = (address, nbytes)
        return found

    def unregister(self, address: int) -> None:
        self._registered = {
            found: place for found, place in self._registered.items() if place[0] != address
        }
        with self.activated():
            self._runtime.hostUnregister(address // _HOST_PAGE * _HOST_PAGE)

    def can_reach(self, identity: str) -> bool:
        if identity == self.identity:
            return True
        with self._told():
            for ordinal in range(self._runtime.getDeviceCount()):
                if driver.uuid_of(ordinal) == identity:
                    return bool(self._runtime.deviceCanAccessPeer(self.ordinal, ordinal))
        return False  # nothing that this process can see

    # --- streams

    def new_stream(self) -> Stream:
        with self.activated():
            return int(self._runtime.streamCreateWithFlags(_NON_BLOCKING))

    def end_stream(self, stream: Stream) -> None:
        with self.activated():
            self._runtime.streamDestroy(stream)

    def mark(self, stream: Stream) -> Mark:
        event = _Event(self._runtime, self._runtime.eventCreateWithFlags(_NO_TIMING))
        self._runtime.eventRecord(event.address, stream)
        return event

    def follow(self, stream: Stream, mark: Mark) -> None:
        self._runtime.streamWaitEvent(stream, mark.address)

    def synchronize(self, stream: Stream) -> None:
        with self.activated():
            self._runtime.streamSynchronize(stream)

    def is_idle(self, stream: Stream) -> bool:
        with self.activated():
            try:
                return driver.is_done(stream)
            except driver.DriverError as error:
                raise DeviceError(f"{self.name}: {error}") from None

    def prepare_thread(self) -> None:
        with self._told():
            self._runtime.setDevice(self.ordinal)
            driver.allow_captures()

    def raise_failure(self) -> None:
        self.is_idle(self._unused)

    def is_capturing(self, stream: Stream) -> bool:
        return bool(self._runtime.streamIsCapturing(stream))

    # --- work

    def copy(self, stream: Stream, target: int, source: int, nbytes: int) -> None:
        self._runtime.memcpyAsync(target, source, nbytes, _ANY_DIRECTION, stream)

    def fold(
        self,
        stream: Stream,
        targets: Sequence[int],
        operands: Sequence[int],
        count: int,
        dtype: int,
        op: int,
    ) -> None:
        kernel = self._kernel("fold", dtype, op)
        blocks, threads = launch_shape(count * ITEM_BYTES[dtype], self._multiprocessors)
        argument = fold_argument(targets, operands, count)
        kernel((blocks,), (threads,), (argument,), stream=_LaunchStream(stream))

    def divide(self, stream: Stream, data: int, count: int, dtype: int, divisor: int) -> None:
        kernel = self._kernel("divide", dtype, 0)
        blocks, threads = launch_shape(count * ITEM_BYTES[dtype], self._multiprocessors)
        argument = divide_argument(data, count, divisor)
        kernel((blocks,), (threads,), (argument,), stream=_LaunchStream(stream))

    def signal(self, stream: Stream, signals: tuple[Signal, ...]) -> None:
        if self.waits_on_host:
            self._signal_by_host(stream, signals)
            return
        batches = self._batches.get(signals)
        if batches is None:
            if len(self._batches) >= _MOST_KEPT:
                self._batches.clear()
            batches = self._batches[signals] = driver.operations_of(signals)
        try:
            driver.put_operations(stream, batches)
        except driver.DriverError as error:
            if error.code != driver.NOT_SUPPORTED:
                raise
            self.waits_on_host = True
            tell(
                f"{self.name} has no stream memory operations ({error}): the host waits in every "
                "collective in their place"
            )
            self._signal_by_host(stream, signals)

    def count(self, stream: Stream, word: int, value: int) -> None:
        if self.waits_on_host:
            self._runtime.streamSynchronize(stream)
            self._word(word).value = value
        else:
            driver.write_word(stream, word, value)

    # --- inside

    def _signal_by_host(self, stream: Stream, signals: tuple[Signal, ...]) -> None:
        signal_by_host(signals, lambda: self._runtime.streamSynchronize(stream), self._word)

    def _word(self, address: int) -> ctypes.c_uint32:
        for found, (host, nbytes) in tuple(self._registered.items()):
            if found <= address < found + nbytes:
                return ctypes.c_uint32.from_address(host + address - found)
        raise DeviceError(f"{address:#x} lies in no memory that is registered")

    def _kernel(self, name: str, dtype: int, op: int) -> Any:
        found = self._kernels.get((name, dtype, op))
        if found is None:
            module = self._loaded(dtype, op)
            found = self._kernels[name, dtype, op] = module.get_function(name)
        return found

    def _loaded(self, dtype: int, op: int) -> Any:
        cuda = self._cupy.cuda
        module = cuda.function.Module()
        for anew in (False, True):
            data = compiled(cuda.nvrtc, dtype, op, self._architecture, self._folder, anew=anew)
            try:
                module.load(data)
                break
            except cuda.driver.CUDADriverError:  # what was kept is spoilt
                if anew:
                    raise
        return module


class _LaunchStream(NamedTuple):
    """A stream as cupy reads it where it launches a kernel."""

    ptr: Stream


class _Event:
    """An event that is given back when nobody refers to it."""

    def __init__(self, runtime: Any, address: int) -> None:
        self._runtime = runtime
        self.address = address

    def __del__(self) -> None:
        if not sys.is_finalizing():
            self._runtime.eventDestroy(self.address)
