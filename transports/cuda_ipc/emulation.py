# ruff: noqa: D102 - what the methods do is said where they are declared, in device.py
"""Devices that are not there: the seam of `device` over host memory, for tests and for learning.

A machine of several devices, some of which may not reach each other; memory that other processes
map by a handle; streams that are late (`emulated_stream`). What a device could do wrong with a
faulty program is done wrong here: an address that it does not reach ends in an error that comes
later, work on two streams overlaps unless one is told to follow the other, and copies are made in
pieces. It says nothing about what a driver allows, or what anything costs.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import mmap
import os
import struct
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from transports import _native
from transports.cuda_ipc.by_host import signal_by_host
from transports.cuda_ipc.device import ITEM_BYTES, DeviceError, Mark, Signal, Stream
from transports.cuda_ipc.emulated_graph import CapturedMark, Graph
from transports.cuda_ipc.emulated_stream import EmulatedStream

SETTING = "COLLECTIVES_EMULATED_DEVICES"
HOST: Stream = -1
"""In a stream's place: the host itself, which follows by waiting, as its own work is never late."""
_LOOK_EVERY = 0.00005
_HANDLE = struct.Struct("<qqq16s")  # pid, descriptor, bytes, identity
_PIECE = 1 << 15  # bytes of a copy between which others may act
_NAME = "emulated-device"

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Machine:
    """What is emulated.

    Attributes:
        devices: how many there are.
        apart: pairs of devices that do not reach each other's memory.
        seed: of the streams' lateness.
        memory: bytes of each device, counted in each process by itself.
        unshared: no memory can be exported, as some containers have it.
        hosted: streams have no memory operations, so that hosts wait in their place.
    """

    devices: int = 1
    apart: frozenset[frozenset[int]] = frozenset()
    seed: int = 0
    memory: int = 1 << 32
    unshared: bool = False
    hosted: bool = False


def parse_machine(text: str) -> Machine:
    """`2`, or `devices=2,apart=0-1,seed=7,memory=1000000,unshared=1`.

    Raises:
        ValueError: it is neither; names what is wrong.
    """
    fields: dict[str, Any] = {}
    for word in (f"devices={text}" if text.isdigit() else text).split(","):
        name, _, value = word.partition("=")
        try:
            if name == "apart":
                pair = frozenset(int(number) for number in value.split("-"))
                if len(pair) != 2:
                    raise ValueError
                fields[name] = fields.get(name, frozenset()) | {pair}
            elif name in ("devices", "seed", "memory"):
                fields[name] = int(value)
            elif name in ("unshared", "hosted"):
                fields[name] = bool(int(value))
            else:
                raise ValueError
        except ValueError:
            raise ValueError(
                f"{SETTING}: expected a number, or devices=, apart=A-B, seed=, memory=, unshared=, "
                f"hosted= with numbers, found {word!r}"
            ) from None
    if fields.get("devices", 1) < 1:
        raise ValueError(f"{SETTING}: expected 1 device or more, found {fields['devices']}")
    return Machine(**fields)


class _Mapping:
    """Shared memory mapped here, and its address."""

    def __init__(self, descriptor: int, nbytes: int) -> None:
        self.descriptor = descriptor
        self.nbytes = nbytes
        self._map = mmap.mmap(descriptor, nbytes)
        self.bytes: Bytes = np.frombuffer(self._map, np.uint8)
        self.address = int(self.bytes.ctypes.data)


class EmulatedDevice:
    """A device of a `Machine`; see `device.Device` for the methods."""

    def __init__(self, machine: Machine, ordinal: int) -> None:
        """Device `ordinal` of those there are.

        Raises:
            ValueError: there is no such device.
        """
        if not 0 <= ordinal < machine.devices:
            raise ValueError(f"device must be in 0..{machine.devices - 1}, found {ordinal}")
        self.name = f"emulated device {ordinal}"
        self.identity = f"emulated-{ordinal}"
        self.ordinal = ordinal
        self.waits_on_host = machine.hosted
        self._machine = machine
        self._own: dict[int, _Mapping] = {}
        self._opened: dict[int, _Mapping] = {}
        self._registered: dict[int, int] = {}
        self._free = machine.memory
        self._discarded: deque[tuple[int, list[Mark]]] = deque()
        self._giving_back = threading.RLock()
        self._numbers = itertools.count(1)
        self._streams: dict[Stream, EmulatedStream] = {0: self._stream(0)}
        self.capture: Graph | None = None

    # --- memory

    def allocate(self, nbytes: int) -> int:
        if self.capture is not None:
            raise DeviceError(f"{self.name}: allocating is not permitted while a stream captures")
        return self.allocate_anyway(nbytes)

    def allocate_anyway(self, nbytes: int) -> int:
        """As `allocate`, of a pool such as programs have, which may do so during a capture."""
        self._give_back_discarded()
        if nbytes > self._free:
            raise MemoryError(f"{self.name} has {self._free} bytes left, asked for {nbytes}")
        descriptor = os.memfd_create(_NAME, os.MFD_CLOEXEC)
        os.ftruncate(descriptor, max(nbytes, 1))
        mapping = _Mapping(descriptor, max(nbytes, 1))
        mapping.bytes[:] = 0xA5  # memory is never clean
        self._free -= nbytes
        self._own[mapping.address] = mapping
        return mapping.address

    def free(self, address: int) -> None:
        self._synchronize()
        self._give_back(address)

    def discard(self, address: int) -> None:
        """As `free`, without waiting: once the streams have done what they have now."""
        marks = [stream.mark() for stream in self._streams.values() if stream.graph is None]
        self._discarded.append((address, marks))

    def export(self, address: int) -> bytes:
        if self._machine.unshared:
            raise DeviceError(f"{self.name} does not let memory be shared between processes")
        mapping = self._own[address]
        identity = self.identity.encode()
        return _HANDLE.pack(os.getpid(), mapping.descriptor, mapping.nbytes, identity)

    def open(self, handle: bytes) -> int:
        pid, descriptor, nbytes, raw = _HANDLE.unpack(handle)
        identity = raw.rstrip(b"\0").decode()
        if pid == os.getpid():
            raise DeviceError("invalid device context: a process cannot open what it has exported")
        if not self.can_reach(identity):
            raise DeviceError(f"{self.name} does not reach the memory of {identity}")
        try:
            opened = os.open(f"/proc/{pid}/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise DeviceError(f"process {pid} has no such memory: {error}") from None
        try:
            mapping = _Mapping(opened, nbytes)
        finally:
            os.close(opened)
        self._opened[mapping.address] = mapping
        return mapping.address

    def close(self, address: int) -> None:
        self._synchronize()
        del self._opened[address]

    def register(self, address: int, nbytes: int) -> int:
        self._registered[address] = nbytes
        return address

    def unregister(self, address: int) -> None:
        self._synchronize()
        del self._registered[address]

    def can_reach(self, identity: str) -> bool:
        other = int(identity.rpartition("-")[2])
        return frozenset((self.ordinal, other)) not in self._machine.apart

    def owns(self, address: int) -> bool:
        """Whether it lies in memory that this process has allocated here."""
        return any(
            begin <= address < begin + mapping.nbytes for begin, mapping in tuple(self._own.items())
        )

    # --- streams

    def activated(self) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext()

    def new_stream(self) -> Stream:
        number = next(self._numbers)
        self._streams[number] = self._stream(number)
        return number

    def end_stream(self, stream: Stream) -> None:
        self._streams.pop(stream).end()

    def mark(self, stream: Stream) -> Mark:
        if stream == HOST:
            return lambda: True
        marked = self._streams[stream]
        return marked.mark() if marked.graph is None else marked.graph.mark(marked)

    def follow(self, stream: Stream, mark: Mark) -> None:
        if stream == HOST:
            while not mark():
                time.sleep(_LOOK_EVERY)
            return
        held = self._streams[stream]
        if isinstance(mark, CapturedMark):
            mark.graph.follow(held, mark)
        elif held.graph is not None:
            raise DeviceError(f"{self.name}: a capture cannot follow work outside of it")
        else:
            held.put(lambda: held.hold_until(mark))

    def is_idle(self, stream: Stream) -> bool:
        found = self._streams[stream]
        if found.failure is not None:
            raise DeviceError(f"{self.name}: {found.failure}")
        return found.idle()

    def prepare_thread(self) -> None:
        pass

    def raise_failure(self) -> None:
        for stream in tuple(self._streams.values()):
            if stream.failure is not None:
                raise DeviceError(f"{self.name}: {stream.failure}")

    def is_capturing(self, stream: Stream) -> bool:
        return stream != HOST and self._streams[stream].graph is not None

    def begin_capture(self, stream: Stream) -> Graph:
        """What is put on the stream from now on goes into a graph."""
        self.capture = Graph(self._streams[stream])
        return self.capture

    def end_capture(self) -> None:
        """As `Graph.end`."""
        graph, self.capture = self.capture, None
        assert graph is not None, "a capture that has begun"
        graph.end()

    def launch(self, graph: Graph, stream: Stream) -> None:
        """Run a graph on a stream."""
        graph.launch(self._streams[stream])

    def synchronize(self, stream: Stream = 0) -> None:
        if self.is_capturing(stream):
            raise DeviceError(f"{self.name}: a stream that captures cannot be waited for")
        self._streams[stream].synchronize()
        self.is_idle(stream)

    def end(self) -> None:
        """Its threads end, and its memory; what was still to be done is not."""
        for stream in self._streams.values():
            stream.forsake()
        for mapping in self._own.values():
            os.close(mapping.descriptor)
        self._own.clear()

    # --- work

    def copy(self, stream: Stream, target: int, source: int, nbytes: int) -> None:
        on = self._streams[stream]

        def step() -> None:
            to, of = self._memory(target, nbytes), self._memory(source, nbytes)
            for begin in range(0, nbytes, _PIECE):
                to[begin : begin + _PIECE] = of[begin : begin + _PIECE]
                on.pause()

        on.put(step)

    def fold(
        self,
        stream: Stream,
        targets: Sequence[int],
        operands: Sequence[int],
        count: int,
        dtype: int,
        op: int,
    ) -> None:
        nbytes = count * ITEM_BYTES[dtype]
        on = self._streams[stream]

        def step() -> None:
            read = [self._memory(operand, nbytes) for operand in operands]
            on.pause()
            value = np.empty(nbytes, np.uint8)
            _native.reduce(dtype, op, read, value)
            for target in targets:
                self._memory(target, nbytes)[:] = value
                on.pause()

        on.put(step)

    def divide(self, stream: Stream, data: int, count: int, dtype: int, divisor: int) -> None:
        nbytes = count * ITEM_BYTES[dtype]
        self._streams[stream].put(
            lambda: _native.divide(dtype, self._memory(data, nbytes), divisor)
        )

    def signal(self, stream: Stream, signals: tuple[Signal, ...]) -> None:
        on = self._streams[stream]
        if self.waits_on_host:
            signal_by_host(signals, on.synchronize, self._word)
            return

        def step() -> None:
            for flag, state, waits in signals:
                word = self._memory(flag, 4).view(np.uint32)
                if waits:
                    on.hold_until(lambda word=word, state=state: bool(word[0] & state))  # type: ignore[misc]
                else:
                    word[0] = state
                on.pause()

        on.put(step)

    def count(self, stream: Stream, word: int, value: int) -> None:
        def step() -> None:
            self._memory(word, 4).view(np.uint32)[0] = value

        self._streams[stream].put(step)

    # --- inside

    def _give_back(self, address: int) -> None:
        mapping = self._own.pop(address)
        self._free += mapping.nbytes
        os.close(mapping.descriptor)

    def _give_back_discarded(self) -> None:
        with self._giving_back:  # what is discarded meanwhile, wherever, is added at the end
            for _ in range(len(self._discarded)):
                address, marks = self._discarded.popleft()
                if all(done() for done in marks):
                    self._give_back(address)
                else:
                    self._discarded.append((address, marks))

    def _stream(self, number: Stream) -> EmulatedStream:
        # Of the rank too, else all ranks' streams would stop alike.
        seed = hash((self._machine.seed, int(os.environ.get("RANK", "0")), number))
        return EmulatedStream(seed, f"{self.identity}-stream-{number}")

    def _memory(self, address: int, nbytes: int) -> Bytes:
        """The bytes at an address that this device reaches; read when the work is done."""
        if nbytes == 0:
            return np.empty(0, np.uint8)
        for begin, mapping in (*self._own.items(), *self._opened.items()):
            if begin <= address and address + nbytes <= begin + mapping.nbytes:
                return mapping.bytes[address - begin : address - begin + nbytes]
        for begin, length in tuple(self._registered.items()):
            if begin <= address and address + nbytes <= begin + length:
                return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))
        raise DeviceError(f"an illegal address: {nbytes} bytes at {address:#x}")

    def _word(self, address: int) -> ctypes.c_uint32:
        return ctypes.c_uint32.from_address(self._memory(address, 4).ctypes.data)

    def _synchronize(self) -> None:
        for stream in list(self._streams.values()):
            stream.synchronize()
