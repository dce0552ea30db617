"""Symmetric memory on devices: arrays that every rank's device can reach."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from collectives.arrays import Array, is_same_memory
from collectives.device_arrays import CUPY, EMULATED, TORCH_CUDA, TORCH_EMULATED, DeviceFamily
from collectives.settings import emulates_devices
from collectives.symmetric import Pool, Symmetric, checked_dtype
from transports.cuda_ipc.connection import Connected, Mapped, map_together
from transports.cuda_ipc.watching import Watch
from transports.plan import Space


@dataclass(frozen=True)
class DeviceBlock:
    """An allocation of every rank, each mapped by all."""

    id: int
    memory: Mapped

    @property
    def nbytes(self) -> int:
        """Of each."""
        return self.memory.nbytes


class DeviceSymmetric(Symmetric):
    """Adds `empty(..., device=)` to a communicator."""

    _await_scatter: Callable[[], None]  # of OnDevices
    _with_devices: Callable[[DeviceFamily, int], tuple[Connected, Watch]]  # of OnDevices

    def _begin_device_symmetric(self) -> None:
        self._device_pool: Pool[DeviceBlock] = Pool()
        self._device_blocks: dict[int, DeviceBlock] = {}  # all that this communicator can reach

    def _empty_on_device(self, lengths: tuple[int, ...], dtype: Any, device: str) -> Array:
        torch_dtype, itemsize, name = checked_dtype(dtype)
        family = _family_for(torch_dtype)
        self._await_scatter()
        connected, watch = self._with_devices(family, self._ordinal_of(device, family))
        watch.raise_failure()
        ordinal = connected.device.ordinal
        kind = torch_dtype or dtype
        if not connected.all_reach_all:
            return family.empty(lengths, family.like(kind, ordinal))
        nbytes = math.prod(lengths) * itemsize
        with self._calling("empty"):
            block = self._block_from(
                self._device_pool, nbytes, f"{name}{list(lengths)} on devices",
                lambda least, what: self._new_device_block(connected, least, what),
                self._forget_device_blocks,
            )  # fmt: skip
        owner = _Owner(block)
        self._device_pool.dropped.discard(block.id)
        dropped = self._device_pool.dropped
        weakref.finalize(owner, dropped.add, block.id).atexit = False
        return family.over(block.memory.addresses[self.rank], lengths, kind, ordinal, owner)

    def _ordinal_of(self, device: str, family: DeviceFamily) -> int:
        kind, _, number = str(device).partition(":")
        if kind != "cuda" or (number and not number.isdigit()):
            raise ValueError(f"device must be cpu, cuda or cuda:N, found {device!r}")
        return int(number) if number else family.current_ordinal()

    def _new_device_block(self, connected: Connected, nbytes: int, what: str) -> DeviceBlock:
        memory = map_together(
            connected.device, self.rank, self.hosts, nbytes, f"empty: {what}", self.allgather_object
        )
        block = DeviceBlock(self._next_block_name(), memory)
        self._device_pool.own.append(block)
        self._adopt_device_block(block)
        return block

    def _forget_device_blocks(self, blocks: Sequence[DeviceBlock]) -> None:
        """On every rank: nobody has a view of them any more."""
        for block in blocks:
            self._let_go(block.id)
            block.memory.unmap()
        self.allgather_object(None)  # no rank gives back what another maps still
        for block in blocks:
            block.memory.free()

    def _let_go(self, name: int) -> None:
        self._device_blocks.pop(name, None)
        for split in self._living_kin():
            split[0]._let_go(name)

    def _adopt_device_block(self, block: DeviceBlock) -> None:
        """Reach a block from now on, here and on the communicators split from this one."""
        self._device_blocks[block.id] = block
        for split, ranks in self._living_kin():
            split._adopt_device_block(_seen_by(ranks, block))

    def _living_kin(self) -> list[tuple[Any, tuple[int, ...]]]:
        return [(split, ranks) for weak, ranks in self._kin if (split := weak()) is not None]

    def _share_with(self, split: Symmetric, ranks: tuple[int, ...]) -> None:
        super()._share_with(split, ranks)
        assert isinstance(split, DeviceSymmetric)
        for block in self._device_blocks.values():
            split._adopt_device_block(_seen_by(ranks, block))

    def _places_of(
        self,
        collective: str,
        family: DeviceFamily,
        x: Array,
        out: Array | None,
        counts: tuple[int, ...] | None,
    ) -> list[tuple[Space, DeviceBlock, int]]:
        """Which arrays of the call lie in symmetric memory, and where; as `_symmetric_of`."""
        if not self._device_blocks:
            return []
        found = []
        somewhere = collective not in ("gather", "allgather") or 0 not in (counts or ())
        if somewhere and (place := self._block_of(family, x)) is not None:
            found.append((Space.INPUT, *place))
        if out is not None and collective not in ("reduce", "gather"):
            if collective == "alltoall" and is_same_memory(family, x, out):
                return []
            if (place := self._block_of(family, out)) is not None:
                found.append((Space.OUTPUT, *place))
        return found

    def _block_of(self, family: DeviceFamily, x: Array) -> tuple[DeviceBlock, int] | None:
        if not family.is_contiguous(x):
            return None
        begin, nbytes = family.address_of(x), family.count_of(x) * family.itemsize_of(x)
        for block in self._device_blocks.values():
            offset = begin - block.memory.addresses[block.memory.rank]
            if offset >= 0 and offset + nbytes <= block.nbytes:
                return block, offset
        return None

    def _close_device_symmetric(self, connected: Connected) -> None:
        """Reach into the blocks of peers no more; must come before this rank says it has left."""
        for block in self._device_pool.own:
            block.memory.unmap()
            if (
                block.id in self._device_pool.dropped
            ):  # else views live on, and end with the process
                connected.free_when_left(block.memory)
        self._device_pool = Pool()
        self._device_blocks = {}


class _Owner:
    """What the views of a block keep alive; its end says that this rank has dropped the block."""

    def __init__(self, block: DeviceBlock) -> None:
        self._block = block


def _seen_by(ranks: tuple[int, ...], block: DeviceBlock) -> DeviceBlock:
    memory = block.memory
    addresses = tuple(memory.addresses[rank] for rank in ranks)
    own = ranks.index(memory.rank)
    return DeviceBlock(block.id, Mapped(memory.device, own, addresses, memory.nbytes))


def _family_for(torch_dtype: Any) -> DeviceFamily:
    if emulates_devices():
        return EMULATED if torch_dtype is None else TORCH_EMULATED
    return CUPY if torch_dtype is None else TORCH_CUDA
