"""Where messages of other hosts come to, for streams to take them from."""

from __future__ import annotations

import mmap

import numpy as np

from transports.cuda_ipc.device import Device, DeviceError
from transports.errors import CollectiveError


class Inboxes:
    """Of one rank: as much room for each rank of another host as that one's outbox has.

    It is made when a program first wants it: of many ranks few send to each other.
    """

    def __init__(self, device: Device, nbytes: int, direct: bool, registered: list[int]) -> None:
        """Of so many bytes each, on the device if MPI reaches that directly, else in host memory.

        The addresses of the latter are added to `registered`.
        """
        self._device = device
        self._nbytes = nbytes
        self._direct = direct
        self._registered = registered
        self._memories: list[mmap.mmap] = []  # kept until no carrier knows of them
        self._begins: dict[int, tuple[int, int]] = {}  # by rank: for streams, and for MPI

    def of(self, peer: int) -> int:
        """Where that of a rank begins, for streams.

        Raises:
            CollectiveError: there is no such memory.
        """
        if peer not in self._begins:
            what = f"{self._nbytes} bytes for messages of rank {peer}, on another host"
            try:
                self._begins[peer] = self._on_device() if self._direct else self._on_host()
            except (DeviceError, MemoryError, OSError) as error:
                raise CollectiveError(f"{what}: {error}") from None
        return self._begins[peer][0]

    def place_of(self, address: int) -> int:
        """What an address that streams know is for MPI."""
        for begin, place in tuple(self._begins.values()):  # a thread of its own asks
            if 0 <= address - begin < self._nbytes:
                return place + address - begin
        return address  # on the device

    def close(self, gives_back: bool) -> None:
        """Streams use it no more; `gives_back`: nor does MPI, so what is on the device can go."""
        if self._direct and gives_back:
            for begin, _ in self._begins.values():
                self._device.free(begin)
        self._begins = {}

    def _on_device(self) -> tuple[int, int]:
        begin = self._device.allocate(self._nbytes)
        return begin, begin

    def _on_host(self) -> tuple[int, int]:
        memory = mmap.mmap(-1, self._nbytes)  # pages of its own
        place = int(np.frombuffer(memory, np.uint8).ctypes.data)
        begin = self._device.register(place, self._nbytes)
        self._memories.append(memory)
        self._registered.append(place)
        return begin, place
