"""The engine of device memory: puts programs on its stream, and lets waits go when a call fails.

One stream a communicator, so that its calls run in their order whatever streams the caller uses:
it follows the caller's when a call begins, and the caller's follows it when the result is wanted.
Nothing here waits for a peer. What a peer never does holds the stream, which the watch notices
(`watching`); then every flag is released and the stream runs to its end, on rubbish.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from transports.cuda_ipc.device import Device, DeviceError, Mark, State, Stream
from transports.cuda_ipc.flags import WORD_BYTES, FlagTable
from transports.cuda_ipc.program import Program, Transfer, Wiring
from transports.plan import Space

_SCRATCH_STEP = 1 << 21  # bytes; scratch grows in steps of a device's large pages
_LOOK_EVERY = 0.001
_RELEASE_SECONDS = 5.0  # that a device is given to run out once its flags are released

Words = npt.NDArray[np.uint32]


class Carrier(Protocol):
    """What moves messages between hosts; see transports/mpi/device_carrier.py."""

    sent_payload: int
    on_failure: Callable[[BaseException], None]

    @property
    def idle(self) -> bool:
        """Whether MPI has no message of it."""
        ...

    def expect(self, number: int, sends: Sequence[Transfer], receives: Sequence[Transfer]) -> None:
        """The messages of a call with this number, that is about to be put on the stream."""
        ...

    def carries_for(self, peer: int) -> bool:
        """Whether that rank is on another host."""
        ...

    def waits_for(self, peer: int, number: int) -> bool:
        """Whether a message of that rank for this call, or one before it, has still to come."""
        ...

    def unconfirmed(self) -> list[int]:
        """The ranks that have not said that they have all that was sent to them."""
        ...

    def release(self) -> None:
        """What is under way has failed."""
        ...

    def close(self) -> None:
        """Move nothing more."""
        ...


class DeviceEngine:
    """Runs programs of one rank on one device.

    Attributes:
        wiring: what programs are compiled for.
        stream: on which they run.
        put: how many calls have been put on the stream.
        carrier: moves messages between hosts, if there are several.
    """

    def __init__(
        self,
        device: Device,
        rank: int,
        table: FlagTable,
        words: Words,
        flags_at: int,
        outbox: Callable[[int, tuple[int, ...]], int],
        slot_bytes: int,
        carrier: Carrier | None = None,
    ) -> None:
        """Of flags that lie in `words` here and at `flags_at` for streams.

        `carrier` moves messages between hosts, if there are several.
        """
        self.device = device
        self.rank = rank
        self._table = table
        self._words = words
        self._flags_at = flags_at
        self.wiring = Wiring(
            rank=rank,
            size=table.size,
            slots=table.slots,
            slot_bytes=slot_bytes,
            outbox=outbox,
            slot_flag=lambda owner, slot, target: flags_at + table.slot(owner, slot, target),
            note_flag=lambda source, target: flags_at + table.note(source, target),
            far=frozenset(
                peer for peer in range(table.size) if carrier and carrier.carries_for(peer)
            ),
        )
        self.carrier = carrier
        self.stream: Stream = device.new_stream()
        self.put = 0
        self._scratches: list[int] = []
        self._scratch_bytes = 0  # of the last

    def next_number(self, after: Stream) -> int:
        """Of the call that `run` puts next, by which `done` counts; 0: it goes into a graph.

        What is captured runs whenever the graph does, and no number counts it.
        """
        return 0 if self.device.is_capturing(after) else self.put + 1

    def run(self, program: Program, after: Stream, bases: Mapping[str, int], number: int) -> Mark:
        """Put a call on the stream, to begin when `after` has done what is on it now.

        `number` is its own, of `next_number`.

        Returns:
            The mark of its end.
        """
        device = self.device
        with device.activated():
            device.follow(self.stream, device.mark(after))
            scratch = self._scratch_of(program.scratch_bytes) if program.scratch_bytes else 0
            if self.carrier is not None:
                self.carrier.expect(number, program.sends, program.receives)
            program.run(device, self.stream, {**bases, Space.SCRATCH.name: scratch})
            if number:
                self.put = number
                counter = self._flags_at + self._table.counter(self.rank)
                device.count(self.stream, counter, number % (1 << 32))
            return device.mark(self.stream)

    def done(self, rank: int, number: int) -> bool:
        """Whether a rank's stream has done its call `number`; of other ranks, too.

        Of a rank of another host: whether it has done all that this one needs of it. What was done
        after a release is rubbish: `is_released` is to be asked afterwards.
        """
        if self.carrier is not None and self.carrier.carries_for(rank):
            return not self.carrier.waits_for(rank, number)
        word = int(self._words[self._table.counter(rank) // WORD_BYTES])
        return (word - number) % (1 << 32) < 1 << 31

    def is_done(self) -> bool:
        """Whether all calls of this rank are."""
        return self.done(self.rank, self.put)

    def is_released(self) -> bool:
        """Whether any rank has released the flags."""
        return bool(self._words[self._table.released // WORD_BYTES])

    def release(self) -> None:
        """Let go all that wait, here and on peers of this host: the call has failed."""
        if self.carrier is not None:
            self.carrier.release()
        self._table.release(self._words)

    def run_out(self) -> bool:
        """After `release`: until nothing of this rank's is on the device; whether that came."""
        deadline = time.monotonic() + _RELEASE_SECONDS
        try:
            while not self.device.is_idle(self.stream):
                if time.monotonic() > deadline:
                    return False
                self.release()  # a peer's stream may have turned some of them since
                time.sleep(_LOOK_EVERY)
        except DeviceError:  # it runs nothing any more
            return False
        return True

    def untaken(self) -> Sequence[int]:
        """The ranks that have still to take what this one has sent."""
        flags = self._table
        late = [] if self.carrier is None else self.carrier.unconfirmed()
        return [
            peer
            for peer in range(flags.size)
            if peer != self.rank
            and (
                peer in late
                or any(
                    self._words[flags.slot(self.rank, slot, peer) // WORD_BYTES] == State.FULL
                    for slot in range(flags.slots)
                )
            )
        ]

    def close(self) -> None:
        """Give back the stream and scratch; nothing may be on it."""
        for address in self._scratches:
            self.device.free(address)
        self._scratches.clear()
        self.device.end_stream(self.stream)

    def _scratch_of(self, nbytes: int) -> int:
        """Where scratch begins: calls run one after the other and share it."""
        if nbytes > self._scratch_bytes:
            wanted = max(nbytes, 2 * self._scratch_bytes)
            wanted = -(-wanted // _SCRATCH_STEP) * _SCRATCH_STEP
            # What was there before is kept: giving it back would wait for those that use it.
            self._scratches.append(self.device.allocate(wanted))
            self._scratch_bytes = wanted
        return self._scratches[-1]
