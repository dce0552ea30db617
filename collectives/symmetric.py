"""Symmetric memory: arrays that every rank of a host can reach, for collectives without copies.

`empty` is a collective call. Its memory is one block, mapped by all ranks, a part for each; the
array a rank gets lies in its own part, at the same place in every part.

Freeing never communicates. A block is dropped by a rank once the last view of it there has died,
and used again, or given back, only in a later `empty`, in which the ranks tell each other what they
have dropped.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import operator
import os
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from collectives.arrays import Array
from collectives.messages import Messages
from transports import _native
from transports.errors import PeerLostError
from transports.rendezvous.awaiting import Look
from transports.rendezvous.local import Introduction, meet
from transports.shm.memory import allocate

_LINE = 64
_MOST_BYTES = 1 << 46  # no machine has it, and with all parts it can still be counted


@dataclass(frozen=True)
class _Block:
    """Memory of which every rank has a part; `parts[r]` is that of the communicator's rank r."""

    id: int
    memory: _native.SymmetricBlock
    nbytes: int
    parts: tuple[int, ...]


class _Sized(Protocol):
    @property
    def id(self) -> int: ...
    @property
    def nbytes(self) -> int: ...


_AnyBlock = TypeVar("_AnyBlock", bound=_Sized)


class Pool(Generic[_AnyBlock]):
    """The blocks of one kind that a communicator's `empty` has made.

    Attributes:
        own: all of them, oldest first.
        dropped: of these, by id, those without a view on this rank.
    """

    def __init__(self) -> None:
        self.own: list[_AnyBlock] = []
        self.dropped: set[int] = set()


class _Owner:
    """What the views of a block keep alive; its end says that this rank has dropped the block."""

    def __init__(self, memory: _native.SymmetricBlock) -> None:
        self._kept = memory.keep()


class Symmetric(Messages):
    """The symmetric memory of a communicator."""

    _me: Introduction
    _silence: float
    _job: str
    _secret: str
    hosts: tuple[int, ...]
    _empty_on_device: Callable[[tuple[int, ...], Any, str], Array]  # of DeviceSymmetric

    def _begin_symmetric(self) -> None:
        self._blocks: dict[int, _Block] = {}  # all that this communicator can reach
        self._pool: Pool[_Block] = Pool()
        self._allocations = 0
        self._kin: list[tuple[weakref.ref[Symmetric], tuple[int, ...]]] = []

    def empty(
        self, shape: int | Sequence[int], dtype: Any = np.float32, device: str | None = None
    ) -> Array:
        """Make an array in symmetric memory; every rank must call it, with the same arguments.

        Collectives on such arrays, and on contiguous views of them, move bytes straight between
        the ranks' arrays where the arrays lie at the same place on every rank; where they lie is
        then part of what the ranks must agree on. That holds on this communicator and on those
        split from it; elsewhere, and where the ranks are on several hosts, it is an ordinary array.

        Args:
            shape: of the array.
            dtype: a numpy type, or a torch type for a torch tensor.
            device: None or "cpu" for host memory; "cuda" or "cuda:N" for this rank's device, with a
                numpy type for a cupy array.

        Returns:
            An array of unspecified content. Its memory may be used again by a later `empty` once
            it and all views of it have died on every rank.

        Raises:
            TypeError: shape or dtype is none, or elements hold Python objects or no bytes.
            ValueError: a length is negative, or there is no such device.
            MismatchError: the ranks ask for different arrays.
            MemoryError: there is not as much memory.
        """
        lengths = _checked_shape(shape)
        torch_dtype, itemsize, name = checked_dtype(dtype)
        if device not in (None, "cpu"):
            return self._empty_on_device(lengths, dtype, str(device))
        nbytes = math.prod(lengths) * itemsize
        with self._calling("empty"):
            if len(set(self.hosts)) > 1:
                self._agree_on_empty(f"{name}{list(lengths)}")
                return (
                    np.empty(lengths, dtype)
                    if torch_dtype is None
                    else _torch_empty(lengths, dtype)
                )
            block = self._block_from(
                self._pool, nbytes, f"{name}{list(lengths)}",
                lambda least, what: self._new_block(max(least, _LINE), what), self._forget_all,
            )  # fmt: skip
        flat = self._view(block)[:nbytes]
        if torch_dtype is None:
            return flat.view(dtype).reshape(lengths)
        return sys.modules["torch"].from_numpy(flat).view(torch_dtype).reshape(lengths)

    def _block_from(
        self,
        pool: Pool[_AnyBlock],
        nbytes: int,
        what: str,
        make: Callable[[int, str], _AnyBlock],
        forget: Callable[[Sequence[_AnyBlock]], None],
    ) -> _AnyBlock:
        """A block of at least `nbytes` that no rank uses, the same one on every rank."""
        dropped = self._agree_on_empty(what, sorted(pool.dropped))
        free_everywhere = set.intersection(*map(set, dropped))
        free = [block for block in pool.own if block.id in free_everywhere]
        fitting = [block for block in free if nbytes <= block.nbytes <= 2 * nbytes + 4096]
        if fitting:
            return min(fitting, key=lambda block: block.nbytes)
        for block in free:  # else a program of ever other shapes would keep them all
            pool.own.remove(block)
            pool.dropped.discard(block.id)
        if free:
            forget(free)
        return make(nbytes, what)

    def _agree_on_empty(self, what: str, dropped: Sequence[int] = ()) -> list[Sequence[int]]:
        """What every rank has dropped, if all ask for the same."""
        everyone = self.allgather_object((what, dropped))
        for rank, (other, _) in enumerate(everyone):
            if other != everyone[0][0]:
                self._engine.mismatch(
                    f"empty: rank 0 asks for {everyone[0][0]}, rank {rank} asks for {other}"
                )
        return [dropped for _, dropped in everyone]

    def _new_block(self, nbytes: int, what: str) -> _Block:
        self._allocations += 1
        job = f"{self._job}/memory-{self._allocations}"
        descriptor = -1
        failure: Exception | None = None
        if self.rank == 0:
            try:
                if nbytes > _MOST_BYTES:
                    raise MemoryError("that much shared memory cannot be had")
                descriptor = allocate(_native.symmetric_file_bytes(self.size, nbytes))
            except MemoryError as error:  # every rank must hear of it
                failure = MemoryError(
                    f"empty: {what} is {nbytes} bytes on every rank, times {self.size} ranks: "
                    f"{error}"
                )
            except OSError as error:
                failure = error
        try:
            if (failure := self.broadcast_object(failure)) is not None:
                raise failure
            memory, failure = self._map_together(job, descriptor, nbytes)
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        failures: list[Exception | None] = self.allgather_object(failure)
        for rank, each in enumerate(failures):
            if each is not None:
                raise MemoryError(f"rank {rank} could not map symmetric memory: {each}")
        assert memory is not None, "memory that no rank has failed to map"
        block = _Block(_name_of(job), memory, nbytes, tuple(range(self.size)))
        self._pool.own.append(block)
        self._adopt(block)
        return block

    def _next_block_name(self) -> int:
        """Of a block that is made elsewhere, the same on every rank and of no other block."""
        self._allocations += 1
        return _name_of(f"{self._job}/memory-{self._allocations}")

    def _map_together(
        self, job: str, descriptor: int, nbytes: int
    ) -> tuple[_native.SymmetricBlock | None, Exception | None]:
        """The memory that rank 0 has made, or why this rank could not map it."""
        with self._meeting(range(self.size)) as look:
            meeting = meet(
                self._me, job=job, secret=self._secret, settings={},
                offer=lambda ranks: os.dup(descriptor), timeout=self.timeout,
                look=look, silence=self._silence,
            )  # fmt: skip
        with meeting:
            try:
                return _native.SymmetricBlock(meeting.descriptor, self.size, nbytes), None
            except (OSError, ValueError) as error:
                return None, error

    @contextlib.contextmanager
    def _meeting(self, ranks: Sequence[int]) -> Iterator[Look]:
        """While `ranks` of this communicator meet: what to look at meanwhile, and whom to blame."""

        def look() -> None:
            self._engine.check(ranks)

        try:
            yield look
        except PeerLostError as error:
            look()  # what ended it for others says more than that they have gone
            # Its connections end before the process has: the others are to hear the same.
            self._engine.peer_lost(str(error))

    def _view(self, block: _Block) -> Array:
        owner = _Owner(block.memory)
        self._pool.dropped.discard(block.id)
        # The callback refers to the set alone: the array may outlive the communicator.
        weakref.finalize(owner, self._pool.dropped.add, block.id).atexit = False
        return block.memory.part(self.rank, owner)

    # --- with the communicators split from this one

    def _adopt(self, block: _Block) -> None:
        """Reach a block from now on, here and on the communicators split from this one."""
        self._blocks[block.id] = block
        self._engine.add_symmetric(block.id, block.memory, block.parts)
        for weak, ranks in self._kin:
            if (split := weak()) is not None:
                split._adopt(_seen_by(ranks, block))

    def _forget_all(self, blocks: Sequence[_Block]) -> None:
        for block in blocks:
            self._forget(block.id)

    def _forget(self, name: int) -> None:
        self._blocks.pop(name, None)
        self._engine.remove_symmetric(name)
        for weak, _ in self._kin:
            if (split := weak()) is not None:
                split._forget(name)

    def _share_with(self, split: Symmetric, ranks: tuple[int, ...]) -> None:
        """Let a communicator of these `ranks` reach what this one can, now and later."""
        self._kin = [(weak, of) for weak, of in self._kin if weak() is not None]
        self._kin.append((weakref.ref(split), ranks))
        for block in self._blocks.values():
            split._adopt(_seen_by(ranks, block))


def _name_of(job: str) -> int:
    return int.from_bytes(hashlib.sha256(job.encode()).digest()[:7])


def _seen_by(ranks: tuple[int, ...], block: _Block) -> _Block:
    parts = tuple(block.parts[rank] for rank in ranks)
    return _Block(block.id, block.memory, block.nbytes, parts)


def _checked_shape(shape: int | Sequence[int]) -> tuple[int, ...]:
    try:
        lengths = tuple(map(operator.index, shape))  # type: ignore[arg-type]
    except TypeError:
        try:
            lengths = (operator.index(shape),)  # type: ignore[arg-type]
        except TypeError:
            raise TypeError(f"shape must be an integer or several, found {shape!r}") from None
    if min(lengths, default=0) < 0:
        raise ValueError(f"shape must not have negative lengths, found {lengths}")
    return lengths


def checked_dtype(dtype: Any) -> tuple[Any, int, str]:
    """(the torch type or None, bytes of an element, name)."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(dtype, torch.dtype):
        return dtype, int(dtype.itemsize), str(dtype)
    if dtype is None:  # which numpy takes for float64
        raise TypeError("dtype must be a numpy or torch type, found None")
    try:
        found = np.dtype(dtype)
    except (TypeError, ValueError, SyntaxError):
        raise TypeError(f"dtype must be a numpy or torch type, found {dtype!r}") from None
    if found.hasobject:
        raise TypeError(f"elements of {found} hold Python objects, which cannot be shared")
    if found.itemsize == 0:
        raise TypeError(f"elements of {found} have no bytes")
    return None, found.itemsize, str(found)


def _torch_empty(lengths: tuple[int, ...], dtype: Any) -> Array:
    return sys.modules["torch"].empty(lengths, dtype=dtype)
