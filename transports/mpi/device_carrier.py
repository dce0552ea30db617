"""Moves between hosts what streams of devices send each other.

A stream writes a message for another host into host memory, or, where MPI reads that of devices,
leaves it on its device, and sets the message's flag as it does for a rank of its own host. From the
program of a call both ends know which messages are due, in which order and where. So a thread of
the sender waits for the flag and sends; one of the receiver receives to where its stream looks, and
sets the flag there. The flags keep slots apart as they do on one host: a slot of the sender is
empty once MPI has taken it, one of the receiver once its stream has turned its flag back.

What has arrived is told of, once for all messages of a call, since a rank may only go once the
others have what it has sent.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from transports.cuda_ipc.device import State
from transports.cuda_ipc.program import Transfer
from transports.mpi.connection import Group
from transports.mpi.world import TAG_OF_DEVICES, TAG_OF_NEWS

_NAPS = (0.00002, 0.002)  # seconds between looks: at first, and at most
_BYE = -1

Words = npt.NDArray[np.uint32]


@dataclass(eq=False)
class _Moving:
    """A message that MPI has and has not done with."""

    request: Any
    transfer: Transfer
    sends: bool


class DeviceCarrier:
    """Of one rank's device in one communicator.

    Attributes:
        failure: what MPI has refused, once it has.
        sent_payload: bytes of messages that it has sent.
    """

    def __init__(
        self,
        group: Group,
        rank: int,
        hosts: Sequence[int],
        words: Words,
        word_of: Callable[[int], int],
        released: int,
        slot_bytes: int,
        place_of: Callable[[int], int],
    ) -> None:
        """For this rank of a group with a number.

        Args:
            group: the ranks, by MPI.
            rank: this one.
            hosts: of every rank.
            words: the flags.
            word_of: which of them is at an address that streams know.
            released: that of which says that all flags are released.
            slot_bytes: at most of a message.
            place_of: where MPI finds what is at an address that streams know.
        """
        assert group.number is not None, "the number of a communicator that is connected"
        self._mpi = group.world.library.mpi
        self._comm = group.world.communicator()
        self._members = group.members
        self._rank_of = {member: rank for rank, member in enumerate(group.members)}
        begin = group.world.tag_of(group.number)
        self._tag, self._news_tag = begin + TAG_OF_DEVICES, begin + TAG_OF_NEWS
        self._words = words
        self._word_of = word_of
        self._released = released
        self._slot_bytes = slot_bytes
        self._place_of = place_of
        far = [peer for peer, host in enumerate(hosts) if host != hosts[rank]]
        self._to: dict[int, deque[Transfer]] = {peer: deque() for peer in far}
        self._from: dict[int, deque[Transfer]] = {peer: deque() for peer in far}
        self._in_use: set[int] = set()  # words of messages that MPI has
        self._moving: list[_Moving] = []
        self._news: list[tuple[Any, Any]] = []  # on their way: requests and what they send
        self._due: Counter[int] = Counter()  # messages still to come, by peer
        self._put: Counter[int] = Counter()  # messages to send, those that were sent with them
        self._taken: Counter[int] = Counter()  # messages that have come
        self._confirmed: Counter[int] = Counter()  # messages that a peer has said it has
        self._left: set[int] = set()
        self._gives_up = False
        self._closed = False
        self._asks = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._name = f"device-carrier-{group.number}-{rank}"
        self.failure: BaseException | None = None
        self.sent_payload = 0

    # --- while calls are made

    def expect(self, sends: Sequence[Transfer], receives: Sequence[Transfer]) -> None:
        """The messages of a call that is about to be put on the stream."""
        if not sends and not receives:
            return
        with self._changed:
            for each in sends:
                self._put[each.peer] += 1
                self._to[each.peer].append(each)
            for each in receives:
                self._due[each.peer] += 1
                self._from[each.peer].append(each)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
            self._changed.notify()

    def carries_for(self, peer: int) -> bool:
        """Whether that rank is on another host."""
        return peer in self._to

    @property
    def idle(self) -> bool:
        """Whether MPI has no message of it."""
        return not self._moving

    def waits_for(self, peer: int) -> bool:
        """Whether a message of that rank has still to come."""
        return self._due[peer] > 0

    def unconfirmed(self) -> list[int]:
        """The ranks that have not said that they have all that was sent to them."""
        late = [peer for peer in self._to if self._confirmed[peer] < self._put[peer]]
        if late and not self._asks:
            with self._changed:
                self._asks = True  # so the thread goes on listening
                self._changed.notify()
        return late

    def release(self) -> None:
        """What is under way has failed: nothing more is moved."""
        with self._changed:
            self._gives_up = True
            self._changed.notify()

    def _run(self) -> None:
        pause, longest = _NAPS
        while True:
            with self._changed:
                while not self._closed and not self._has_work():
                    self._changed.wait()
                if self._closed:
                    return
            try:
                moved = self._step()
            except BaseException as error:
                self.failure = error
                return
            pause = _NAPS[0] if moved else min(2 * pause, longest)
            time.sleep(pause)

    def _has_work(self) -> bool:
        return bool(
            self._moving
            or self._news
            or any(self._to.values())
            or any(self._from.values())
            or (self._asks and self.unconfirmed())
        )

    def _step(self) -> bool:
        """Move what can be moved; whether anything could."""
        if self._gives_up or self._words[self._released]:
            self._give_up()
        moved = self._hear()
        for peer, sends in self._to.items():
            while sends and self._is(sends[0], State.FULL):
                self._start(sends.popleft(), self._members[peer], sends=True)
                moved = True
        for peer, receives in self._from.items():
            while receives and self._is(receives[0], State.EMPTY):
                self._start(receives.popleft(), self._members[peer], sends=False)
                moved = True
        return self._finish() or moved

    def _is(self, transfer: Transfer, state: State) -> bool:
        word = self._word_of(transfer.flag)
        return word not in self._in_use and int(self._words[word]) == state

    def _start(self, transfer: Transfer, member: int, *, sends: bool) -> None:
        comm, byte = self._comm, self._mpi.BYTE
        # As much as there is room for: of calls that do not fit, hosts tell each other.
        length = transfer.nbytes if sends else (self._slot_bytes if transfer.nbytes else 0)
        buffer = None
        if length:
            buffer = self._mpi.buffer.fromaddress(self._place_of(transfer.address), length)
        start = comm.Isend if sends else comm.Irecv
        request = start([buffer, length, byte], member, self._tag)
        self._in_use.add(self._word_of(transfer.flag))
        self._moving.append(_Moving(request, transfer, sends))

    def _finish(self) -> bool:
        """What MPI has done with: whether there is any."""
        moving, self._moving = self._moving, []
        done: list[_Moving] = []
        for each in moving:
            (done if each.request.Test() else self._moving).append(each)
        for each in done:
            word, peer = self._word_of(each.transfer.flag), each.transfer.peer
            self._in_use.discard(word)
            if not self._gives_up:
                # What came is in memory: MPI's own locks stand between it and this.
                self._words[word] = State.EMPTY if each.sends else State.FULL
            if each.sends:
                self.sent_payload += each.transfer.nbytes
                continue
            self._taken[peer] += 1
            with self._changed:
                self._due[peer] -= 1
                last = self._due[peer] == 0
            if last:
                self._tell(peer, self._taken[peer])
        self._news = [each for each in self._news if not each[0].Test()]
        return bool(done)

    def _give_up(self) -> None:
        with self._changed:
            self._gives_up = True
            for transfers in (*self._to.values(), *self._from.values()):
                transfers.clear()
            self._due.clear()
        for each in self._moving:
            if not each.sends:
                each.request.Cancel()

    # --- what carriers tell each other

    def _tell(self, peer: int, what: int) -> None:
        data = np.array([what], np.int64)
        request = self._comm.Isend(
            [data, data.nbytes, self._mpi.BYTE], self._members[peer], self._news_tag
        )
        self._news.append((request, data))

    def _hear(self) -> bool:
        heard = False
        status = self._mpi.Status()
        while message := self._comm.Improbe(self._mpi.ANY_SOURCE, self._news_tag, status):
            peer, data = self._rank_of[status.Get_source()], np.zeros(1, np.int64)
            message.Recv([data, data.nbytes, self._mpi.BYTE])
            heard = True
            if data[0] == _BYE:
                self._left.add(peer)
            else:
                self._confirmed[peer] = int(data[0])
        return heard

    # --- the end, as that of any carrier: `transports.mpi.world`

    def close(self) -> None:
        """Move nothing more; waits for nobody. What others have sent in vain is taken later."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
        if self._moving or any(self._to.values()) or any(self._from.values()):
            self._give_up()
        for peer in self._to:
            self._tell(peer, _BYE)

    def progress(self) -> None:
        """Once closed: a step towards `done`."""
        self._hear()
        self._finish()
        while message := self._comm.Improbe(self._mpi.ANY_SOURCE, self._tag, self._mpi.Status()):
            message.Recv([bytearray(self._slot_bytes), self._slot_bytes, self._mpi.BYTE])

    @property
    def done(self) -> bool:
        """Whether all have closed, and MPI has nothing of it any more."""
        left = len(self._left) == len(self._to)
        return self._closed and left and not self._moving and not self._news

    @property
    def broken(self) -> bool:
        """Whether a call has failed, so that others may not come to the end."""
        return self._gives_up or self.failure is not None

    def stop(self) -> None:
        """Nothing is kept."""
        self._moving.clear()
        self._news.clear()
