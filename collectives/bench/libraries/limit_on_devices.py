"""The devices' own limit as a library: their memory's, which no collective on them can beat.

Every rank copies on its device as many bytes as `limit.copied` says that the collective must move
at least, all ranks at once: on one device they share its bandwidth, as the ranks of a collective
do. No flags are in it, so of small messages it is what putting a copy there takes, and it says
nothing of the links between devices.
"""

from __future__ import annotations

import time
from typing import Any

from collectives.bench.cases import Case, NotCarried
from collectives.bench.libraries.limit import Limit, copied
from collectives.bench.libraries.limit import connect as connect_on_host
from collectives.bench.tasks import LINE
from transports.cuda_ipc.device import Device

METHODS = ("device copy",)


class LimitOnDevices:
    """One rank's part in finding the limit."""

    def __init__(self, host: Limit, device: Device) -> None:
        """Ranks meet in host memory, by the flags of `host`."""
        self.rank = host.rank
        self.size = host.size
        self.device = device
        self.stream = device.new_stream()
        self._host = host

    def describe(self) -> dict[str, str]:
        """What was tried, and on what."""
        about = {"library": "limit of this machine", "methods": ", ".join(METHODS)}
        return {**about, "device": self.device.name}

    def task(self, case: Case, variant: str, cache_bytes: int) -> CopyTask:
        """A case made ready."""
        return CopyTask(self, case)

    def meet(self, case: Case) -> None:
        """Return once every rank has come here."""
        self._host.call("copy", case, [], (1, LINE), 1)


class CopyTask:
    """A case made ready: two arrays on the device."""

    most_calls = None

    def __init__(self, limit: LimitOnDevices, case: Case) -> None:
        """Makes them.

        Raises:
            NotCarried: no copy reads and writes in this collective's proportion.
            MemoryError: the device has not as much.
        """
        self._limit, self._case = limit, case
        self._arrays: list[int] = []
        moves = copied(case, limit.rank, limit.size, 0, 0)
        if not moves:
            raise NotCarried(f"{case.collective} moves nothing on devices")
        self._nbytes = sum(nbytes for *_, nbytes in moves)
        for _ in range(2):
            self._arrays.append(limit.device.allocate(max(1, self._nbytes)))

    def seconds(self, calls: int) -> float:
        """Times so many copies in a row, begun by all ranks together."""
        self._copy(1)
        self._limit.meet(self._case)
        begin = time.perf_counter()
        self._copy(calls)
        return time.perf_counter() - begin

    def check(self, plant: int = 0) -> dict[str, Any]:
        """As a task's: a limit has no result."""
        return {"wrong": 0}

    def expected(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def _copy(self, calls: int) -> None:
        device, stream = self._limit.device, self._limit.stream
        source, target = self._arrays
        with device.activated():
            for _ in range(calls):
                device.copy(stream, target, source, self._nbytes)
        device.synchronize(stream)

    def __del__(self) -> None:
        while getattr(self, "_arrays", None):
            self._limit.device.free(self._arrays.pop())


def connect(options: dict[str, Any]) -> LimitOnDevices:
    """Takes part with the memory file that the benchmark handed down."""
    from collectives import settings
    from collectives.which_device import own_device

    return LimitOnDevices(connect_on_host(options), own_device(settings.local_rank()))
