"""Arrays of an emulated device: what its memory looks like to a user, and what to copy it with.

As with a device's arrays, nobody on the host sees the elements but by copying them, and everything
is put on the current stream, which is late.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from transports.cuda_ipc.device import Stream
from transports.cuda_ipc.emulated_graph import Graph
from transports.cuda_ipc.emulation import SETTING, EmulatedDevice, parse_machine


@cache
def emulated_count() -> int:
    """How many devices the environment describes."""
    return parse_machine(os.environ[SETTING]).devices


def emulated_device(ordinal: int | None = None) -> EmulatedDevice:
    """A device of the machine that the environment describes; by default this rank's.

    Raises:
        ValueError: it describes none, or not as many.
    """
    text = os.environ.get(SETTING)
    if not text:
        raise ValueError(f"{SETTING} is not set: expected the number of devices to emulate")
    if ordinal is None:
        ordinal = int(os.environ.get("LOCAL_RANK", "0")) % parse_machine(text).devices
    return _made(text, ordinal)


_MADE: list[EmulatedDevice] = []


@cache
def _made(text: str, ordinal: int) -> EmulatedDevice:
    device = EmulatedDevice(parse_machine(text), ordinal)
    _MADE.append(device)
    return device


def device_of(address: int) -> EmulatedDevice | None:
    """The device of this process in whose own memory an address lies."""
    for device in _MADE:
        if device.owns(address):
            return device
    return None


class EmulatedArray:
    """A contiguous array in the memory of an emulated device.

    Attributes:
        shape: its shape.
        dtype: its numpy type.
        device: where it lies.
        address: of its first element.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: npt.DTypeLike,
        device: EmulatedDevice,
        address: int,
        owner: object,
    ) -> None:
        """On memory that lives as long as `owner`."""
        self.shape = tuple(shape)
        self.dtype = np.dtype(dtype)
        self.device = device
        self.address = address
        self._owner = owner

    def __repr__(self) -> str:
        return f"<EmulatedArray {self.dtype}{list(self.shape)} on {self.device.name}>"

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.size * self.dtype.itemsize

    def part(self, begin: int, end: int) -> EmulatedArray:
        """Entries `begin` to `end` of the first axis, in the same memory."""
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        shape = (end - begin, *self.shape[1:])
        return EmulatedArray(shape, self.dtype, self.device, self.address + begin * row, self)

    def reshape(self, *shape: int) -> EmulatedArray:
        """The same elements in another shape, one of whose lengths may be -1."""
        lengths = np.broadcast_to(np.empty((), np.bool_), (self.size,)).reshape(shape).shape
        return EmulatedArray(lengths, self.dtype, self.device, self.address, self)

    def set(self, values: Any) -> None:
        """Copy from a numpy array, once the current stream comes to it."""
        data = np.ascontiguousarray(values, self.dtype)
        if data.shape != self.shape:
            raise ValueError(f"expected shape {self.shape}, found {data.shape}")
        device, stream = self.device, current_stream(self.device)

        def step() -> None:
            memory = device._memory(self.address, self.nbytes)
            memory[:] = data.reshape(-1).view(np.uint8)

        device._streams[stream].put(step)

    def get(self) -> npt.NDArray[Any]:
        """A copy, made once the current stream has come to it."""
        self.device.synchronize(current_stream(self.device))
        memory = self.device._memory(self.address, self.nbytes)
        return memory.copy().view(self.dtype).reshape(self.shape)


_CURRENT = threading.local()  # as on a device, each thread has its own


def current_stream(device: EmulatedDevice) -> Stream:
    """On which the work of a user's arrays is put."""
    streams: dict[int, Stream] = getattr(_CURRENT, "by_ordinal", {})
    return streams.get(device.ordinal, 0)


def use_stream(device: EmulatedDevice, stream: Stream) -> None:
    """From now on, in this thread."""
    _CURRENT.by_ordinal = getattr(_CURRENT, "by_ordinal", {}) | {device.ordinal: stream}


@contextmanager
def captured(device: EmulatedDevice | None = None) -> Iterator[Graph]:
    """What is put on the current stream meanwhile is not run but goes into a graph, for `replay`.

    Raises:
        DeviceError: a stream has joined and was not followed to its end.
    """
    device = device or emulated_device()
    graph = device.begin_capture(current_stream(device))
    try:
        yield graph
    finally:
        device.end_capture()


def replay(graph: Graph, device: EmulatedDevice | None = None) -> None:
    """Run a graph on the current stream."""
    device = device or emulated_device()
    device.launch(graph, current_stream(device))


class Allocation:
    """Memory that is given back when nobody has it any more."""

    def __init__(self, device: EmulatedDevice, nbytes: int) -> None:
        self.device = device
        self.address = device.allocate_anyway(nbytes)
        if device.capture is not None:  # whose graph needs it whenever it runs
            device.capture.kept.append(self)

    def __del__(self) -> None:
        self.device.discard(self.address)


def empty(
    shape: tuple[int, ...], dtype: npt.DTypeLike = np.float32, device: EmulatedDevice | None = None
) -> EmulatedArray:
    """An array of unspecified content."""
    device = device or emulated_device()
    dtype = np.dtype(dtype)
    held = Allocation(device, math.prod(shape) * dtype.itemsize)
    return EmulatedArray(shape, dtype, device, held.address, held)


def to_device(values: Any, device: EmulatedDevice | None = None) -> EmulatedArray:
    """A copy of a numpy array on a device, made when the current stream comes to it."""
    data = np.asarray(values)
    found = empty(data.shape, data.dtype, device)
    found.set(data)
    return found
