"""How the devices of a communicator's ranks are connected, on one host or several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from collectives import settings
from collectives.device_closing import DeviceClosing
from transports.cuda_ipc.connection import Carry, Connected, connect_devices
from transports.cuda_ipc.device import Device
from transports.cuda_ipc.engine import Carrier
from transports.cuda_ipc.kernels import MOST_OPERANDS
from transports.cuda_ipc.watching import Watch
from transports.mpi.connection import Group
from transports.mpi.device_carrier import DeviceCarrier
from transports.telling import tell

if TYPE_CHECKING:
    from collectives.communicator import Communicator


class DeviceConnecting(DeviceClosing):
    """Adds to a communicator how its devices are connected."""

    hosts: tuple[int, ...]
    _group: Group | None
    _device_carrier: Carrier | None = None
    if TYPE_CHECKING:

        @property
        def local(self) -> Communicator:
            """Of Hosts."""

    def _connect_devices(self, device: Device) -> tuple[Connected, Watch]:
        if self.size > MOST_OPERANDS:
            raise ValueError(
                f"expected at most {MOST_OPERANDS} ranks with arrays on devices, found {self.size}"
            )
        with self._calling("connecting devices"):
            several = len(set(self.hosts)) > 1
            asked = settings.device_slots(several), settings.mpi_reaches_devices()
            everyone = self.allgather_object(asked)
            slots, slot_bytes = everyone[0][0]
            here = self.local if several else self
            connected = connect_devices(
                device, self.rank, self.hosts, slots, slot_bytes, self.allgather_object,
                here._share_host_memory, self._by_carrier() if several else None,
                all(reaches for _, reaches in everyone),  # else ranks would look elsewhere
            )  # fmt: skip
        name = f"device-watch-{self._job}-{self.rank}"
        watch = Watch(connected.engine, self._engine, self.size, name, connected.has_left)
        self._device_carrier = connected.engine.carrier
        if connected.engine.carrier is not None:
            connected.engine.carrier.on_failure = watch.fail_between_hosts
        self._connected, self._watch = connected, watch
        apart = _apart(connected, self.hosts)
        if self.rank == 0 and apart and "/" not in self._job:
            tell(f"not all devices reach each other's memory: {apart} go by the host's")
        return connected, watch

    def _by_carrier(self) -> Carry:
        """What moves messages between hosts."""
        group = self._group
        assert group is not None, "several hosts that nothing connects"

        def carry(*of: Any) -> DeviceCarrier:
            found = DeviceCarrier(group, self.rank, self.hosts, *of)
            group.world.keep(found)
            return found

        return carry

    def _share_host_memory(self, nbytes: int, what: str) -> tuple[npt.NDArray[np.uint8], ...]:
        block = self._new_block(nbytes, what)
        kept = block.memory.keep()
        return tuple(block.memory.part(rank, kept) for rank in range(self.size))


def _apart(connected: Connected, hosts: Sequence[int]) -> str:
    """Messages between devices of one host that do not reach each other, if there are such."""
    pairs = {
        tuple(sorted((one, other)))
        for one, row in enumerate(connected.reach)
        for other, reaches in enumerate(row)
        if not reaches and hosts[one] == hosts[other]
    }
    if not pairs:
        return ""
    return "messages between ranks " + ", ".join(f"{a} and {b}" for a, b in sorted(pairs))
