"""Connects the devices of ranks: who reaches whose memory, and each rank's outbox, mapped by all.

What the ranks tell each other goes through a `Talk`, a collective call each, so every rank makes
the same calls here whatever goes wrong on it: what one could not do, all hear.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from transports.cuda_ipc.device import Device, DeviceError
from transports.cuda_ipc.engine import Carrier, DeviceEngine
from transports.cuda_ipc.flags import WORD_BYTES, FlagTable
from transports.cuda_ipc.inboxes import Inboxes
from transports.errors import CollectiveError

_PAGE = 1 << 21  # bytes, in whose multiples a driver hands out memory of its own to each

Talk: TypeAlias = Callable[[Any], list[Any]]
"""Gives everyone's, by rank."""

Shared: TypeAlias = Callable[[int, str], tuple[npt.NDArray[np.uint8], ...]]
"""Host memory of so many bytes for each rank of this host, for what; their parts, in order."""

Carry: TypeAlias = Callable[
    [
        npt.NDArray[np.uint32],
        Callable[[int], int],
        int,
        int,
        Callable[[int], int],
        Callable[[], None],
    ],
    Carrier,
]
"""A carrier of flags; which of them is at an address; the one of a release; the bytes of a slot;
what an address that streams know is for MPI; what prepares its thread."""


@dataclass(eq=False)
class Mapped:
    """One allocation of every rank, as this rank reaches it.

    Attributes:
        rank: whose is not a mapping but the allocation.
        addresses: by rank; 0 where it does not reach that rank's.
        nbytes: of each, at least as many as were asked for.
    """

    device: Device
    rank: int
    addresses: tuple[int, ...]
    nbytes: int

    def unmap(self) -> None:
        """Reach into those of the others no more; once only."""
        for rank, address in enumerate(self.addresses):
            if rank != self.rank and address:
                self.device.close(address)

    def free(self) -> None:
        """Give this rank's own back, once nobody maps it any more."""
        self.device.free(self.addresses[self.rank])


@dataclass(eq=False)
class Connected:
    """The devices of the ranks, connected.

    Attributes:
        device: this rank's.
        engine: runs programs on it.
        identities: of every rank's device.
        reach: `reach[a][b]`: whether the device of rank a reaches the memory of that of rank b.
        here: the ranks of this host.
        gone: ranks that had ended when this one closed, whose mappings have ended with them.
    """

    device: Device
    engine: DeviceEngine
    identities: tuple[str, ...]
    reach: tuple[tuple[bool, ...], ...]
    words: npt.NDArray[np.uint32]
    table: FlagTable
    outbox: Mapped
    here: tuple[int, ...]
    inboxes: Inboxes
    registered: list[int] = field(default_factory=list)
    gone: frozenset[int] = frozenset()

    @property
    def all_reach_all(self) -> bool:
        """Whether every device reaches the memory of every other."""
        return all(map(all, self.reach))

    @property
    def carries_nothing(self) -> bool:
        """Whether no carrier uses memory of the device or the host any more."""
        return self.engine.carrier is None or self.engine.carrier.idle

    def leave(self) -> None:
        """Say that this rank reaches into the memory of others no more."""
        self.words[self.table.left(self.engine.rank) // 4] = 1
        if self.engine.carrier is not None:
            self.engine.carrier.close()

    def unregister(self) -> None:
        """Streams reach the flags no more."""
        self.inboxes.close(gives_back=self.carries_nothing)
        for address in self.registered:
            self.device.unregister(address)
        self.registered.clear()

    def has_left(self, rank: int) -> bool:
        """Whether a rank has said so."""
        return bool(self.words[self.table.left(rank) // 4])

    def free_when_left(self, memory: Mapped) -> None:
        """Give memory of this rank back once all others have left: now or when others connect.

        What is mapped by a rank that never says that it has left is given back by the end of the
        process.
        """
        _TO_BE_FREED.append((self, memory))
        _free_what_is_left()


_TO_BE_FREED: list[tuple[Connected, Mapped]] = []


def _free_what_is_left() -> None:
    for connected, memory in list(_TO_BE_FREED):
        nobody = all(rank in connected.gone or connected.has_left(rank) for rank in connected.here)
        if nobody and connected.carries_nothing:
            _TO_BE_FREED.remove((connected, memory))
            memory.free()


def map_together(
    device: Device, rank: int, hosts: Sequence[int], nbytes: int, what: str, talk: Talk
) -> Mapped:
    """An allocation of `nbytes` on every rank, mapped by those of its host that reach it.

    Raises:
        MemoryError: some rank has not as much memory; the text names it.
        CollectiveError: some rank could not export or map.
    """
    # Smaller ones lie in an allocation with others, and a handle names the whole of it.
    nbytes = -(-max(nbytes, 1) // _PAGE) * _PAGE
    own, told = 0, ("", b"")
    try:
        own = device.allocate(nbytes)
        told = (device.identity, device.export(own))
        failure: tuple[type[Exception], str] | None = None
    except MemoryError as error:
        failure = MemoryError, str(error)
    except DeviceError as error:
        failure = CollectiveError, str(error)
    everyone = talk((told, failure))
    addresses = [0] * len(everyone)
    addresses[rank] = own
    try:
        _raise_first([failed for _, failed in everyone], what, nbytes)
        try:
            for peer, ((identity, handle), _) in enumerate(everyone):
                if peer == rank or hosts[peer] != hosts[rank]:
                    continue
                if device.can_reach(identity):
                    addresses[peer] = device.open(handle)
        except DeviceError as error:
            failure = CollectiveError, str(error)
        _raise_first(talk(failure), what, nbytes)
    except BaseException:
        Mapped(device, rank, tuple(addresses), nbytes).unmap()
        if own:
            device.free(own)
        raise
    return Mapped(device, rank, tuple(addresses), nbytes)


def _raise_first(failures: list[Any], what: str, nbytes: int) -> None:
    for rank, failure in enumerate(failures):
        if failure is not None:
            kind, text = failure
            raise kind(f"{what}: rank {rank}, {nbytes} bytes: {text}")


def connect_devices(
    device: Device,
    rank: int,
    hosts: Sequence[int],
    slots: int,
    slot_bytes: int,
    talk: Talk,
    share: Shared,
    carry: Carry | None = None,
    direct: bool = False,
) -> Connected:
    """Connect; every rank of the communicator calls it.

    Args:
        device: this rank's.
        rank: this one.
        hosts: of every rank.
        slots: of an outbox.
        slot_bytes: of each.
        talk: among all ranks.
        share: among those of this host.
        carry: makes what moves messages between hosts, where there are several.
        direct: whether that reaches the device's memory by itself.

    Raises:
        MemoryError: some rank has no memory for its outbox.
        CollectiveError: the machine does not let devices share memory.
    """
    _free_what_is_left()
    size = len(hosts)
    here = tuple(peer for peer in range(size) if hosts[peer] == hosts[rank])
    table = FlagTable(size, slots)
    outbox = map_together(device, rank, hosts, slots * slot_bytes, "the outbox of a device", talk)
    everyone = talk((device.identity, [address != 0 for address in outbox.addresses]))
    reach = tuple(tuple(row) for _, row in everyone)
    places: list[tuple[int, int]] = []
    begins: list[int] = []
    own: npt.NDArray[np.uint8] | None = None  # kept as long as a carrier may use it
    found: list[int] = []
    failure: tuple[type[Exception], str] | None = None
    try:
        words = share(table.nbytes, "flags")[0].view(np.uint32)
        if rank == here[0]:
            table.begin(words)
        places.append((int(words.ctypes.data), words.nbytes))
        if not all(map(all, reach)):
            parts = share(slots * slot_bytes, "an outbox on the host")
            own = parts[here.index(rank)]
            begins = [int(part.ctypes.data) for part in parts]  # by the order of the ranks here
            # All at once: parts share pages, and a page cannot be registered twice.
            places.append((min(begins), max(begins) + slots * slot_bytes - min(begins)))
        for address, length in places:
            found.append(device.register(address, length))
    except MemoryError as error:  # of this host: the others are to hear of it
        failure = MemoryError, str(error)
    except DeviceError as error:
        failure = CollectiveError, str(error)
    # Nobody sends before the flags are there, and everyone's device reaches them.
    try:
        _raise_first(talk(failure), "host memory that devices reach", sum(n for _, n in places))
    except BaseException:
        for (address, _), _ in zip(places, found, strict=False):
            device.unregister(address)
        outbox.unmap()
        outbox.free()
        raise
    flags_at = found[0]
    staged = {
        peer: found[1] + begin - min(begins) for peer, begin in zip(here, begins, strict=False)
    }
    registered = [address for address, _ in places]
    inboxes = Inboxes(device, slots * slot_bytes, direct, registered)

    def outbox_of(owner: int, targets: tuple[int, ...]) -> int:
        if owner not in here:
            return inboxes.of(owner)
        near = [target for target in targets if target in here]
        on_device = all(reach[target][owner] for target in near)
        if on_device and (direct or len(near) == len(targets)):
            return outbox.addresses[owner]
        return staged[owner]

    def place_of(address: int) -> int:
        at = address - staged[rank]
        if own is not None and 0 <= at < slots * slot_bytes:
            return int(own.ctypes.data) + at
        return inboxes.place_of(address)

    carrier = None
    if carry is not None:
        carrier = carry(
            words, lambda flag: (flag - flags_at) // WORD_BYTES, table.released // WORD_BYTES,
            slot_bytes, place_of, device.prepare_thread,
        )  # fmt: skip
    engine = DeviceEngine(device, rank, table, words, flags_at, outbox_of, slot_bytes, carrier)
    identities = tuple(identity for identity, _ in everyone)
    return Connected(
        device, engine, identities, reach, words, table, outbox, here, inboxes, registered
    )
