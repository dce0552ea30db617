"""The seam to a device: what the engine asks of it, and nothing else.

Two things implement it: `nvidia` through cupy and the driver, and `emulation` over host memory,
with streams that run late and in any order that a device could. The second shows faults of the
engine's ordering; it proves nothing about a driver.

All work is put on a *stream* and done later, in the stream's order. Ranks order their streams by
*flags*: words of host memory that every rank maps and every device reaches. A flag has one of
three states, and a stream can wait for a state or leave it, so that a program of waits and puts is
the same each time it runs: it can be captured in a graph and replayed.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from enum import IntEnum
from typing import Any, NamedTuple, Protocol, TypeAlias


class State(IntEnum):
    """Of a flag. A wait looks for the state's bit."""

    EMPTY = 1
    FULL = 2
    RELEASED = 3
    """Both bits: nothing waits here any more, for the call has failed."""


ITEM_BYTES = (2, 2, 4, 8, 1, 2, 4, 8, 1, 2, 4, 8, 1)
"""Of the element types, as transports/native/kernels.hpp numbers them."""


class Signal(NamedTuple):
    """Wait until the word at `flag` has a bit of `state`, or set it to `state`."""

    flag: int
    state: State
    waits: bool


Stream: TypeAlias = int
"""The address of a stream, as `cudaStream_t` is; 0 is the default one."""


Mark: TypeAlias = Any
"""A point in the work of a stream."""


class DeviceError(RuntimeError):
    """What a device says of work that went wrong on it, whenever it comes to say so."""


class Device(Protocol):
    """One device, as one rank's process uses it. Addresses are ints, in this process's space.

    Attributes:
        name: for people.
        identity: the same for one device in every process, whatever number it has there.
        ordinal: its number in this process.
        waits_on_host: whether the host waits for signals, in the place of streams.
    """

    name: str
    identity: str
    ordinal: int
    waits_on_host: bool

    def allocate(self, nbytes: int) -> int:
        """Memory of the device that can be exported.

        Raises:
            MemoryError: there is not as much.
        """
        ...

    def free(self, address: int) -> None:
        """Give back what `allocate` gave; waits for work that uses it."""
        ...

    def export(self, address: int) -> bytes:
        """The name by which another process opens an allocation.

        Raises:
            DeviceError: the machine does not let memory be shared so.
        """
        ...

    def open(self, handle: bytes) -> int:
        """Map what another process has exported; never what this one has.

        Raises:
            DeviceError: it cannot be mapped.
        """
        ...

    def close(self, address: int) -> None:
        """Unmap what `open` has mapped; waits for work that uses it."""
        ...

    def register(self, address: int, nbytes: int) -> int:
        """Let streams reach host memory; returns its address for them.

        Raises:
            DeviceError: they cannot.
        """
        ...

    def unregister(self, address: int) -> None:
        """Of the host address that was registered."""
        ...

    def can_reach(self, identity: str) -> bool:
        """Whether this device's streams reach the memory of that one."""
        ...

    def activated(self) -> AbstractContextManager[object]:
        """Work is put on streams while this is entered."""
        ...

    def new_stream(self) -> Stream:
        """One whose work need not wait for that of any other."""
        ...

    def end_stream(self, stream: Stream) -> None:
        """Of `new_stream`; its work still runs to its end."""
        ...

    def mark(self, stream: Stream) -> Mark:
        """The end of all that is on the stream now."""
        ...

    def follow(self, stream: Stream, mark: Mark) -> None:
        """What is put on `stream` from now on runs after what was marked on another."""
        ...

    def copy(self, stream: Stream, target: int, source: int, nbytes: int) -> None:
        """Between any two memories the device reaches, apart from each other."""
        ...

    def fold(
        self,
        stream: Stream,
        targets: Sequence[int],
        operands: Sequence[int],
        count: int,
        dtype: int,
        op: int,
    ) -> None:
        """Fold `count` elements of the operands, in their order, and write them to every target.

        Of one operand, the bytes as they are. A target may be one of the operands exactly.
        `dtype` and `op` are numbers of transports/native/kernels.hpp.
        """
        ...

    def divide(self, stream: Stream, data: int, count: int, dtype: int, divisor: int) -> None:
        """Divide elements in place, 16-bit floats in float32: the last step of an average."""
        ...

    def signal(self, stream: Stream, signals: tuple[Signal, ...]) -> None:
        """Wait for flags and set them, in the order given.

        A flag is set once all that is before it on the stream is done and visible to all. The same
        tuple may be given again and again: what is made of it may be kept.
        """
        ...

    def count(self, stream: Stream, word: int, value: int) -> None:
        """Set a word that no stream waits for, once all before it on the stream is done."""
        ...

    def synchronize(self, stream: Stream) -> None:
        """Return once all that was put on the stream is done.

        Raises:
            DeviceError: something of it went wrong.
        """
        ...

    def is_idle(self, stream: Stream) -> bool:
        """Whether all that was put on the stream is done.

        Raises:
            DeviceError: something of it went wrong.
        """
        ...

    def prepare_thread(self) -> None:
        """Called once by a thread that only asks, before it does."""
        ...

    def raise_failure(self) -> None:
        """Waits for nothing and disturbs no capture.

        Raises:
            DeviceError: something has gone wrong on the device.
        """
        ...

    def is_capturing(self, stream: Stream) -> bool:
        """Whether what is put on the stream goes into a graph instead of being run."""
        ...
