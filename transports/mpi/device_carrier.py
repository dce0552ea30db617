"""Moves between hosts what streams of devices send each other.

A stream writes a message for another host into host memory, or, where MPI reads that of devices,
leaves it on its device, and sets the message's flag as it does for a rank of its own host. From the
program of a call both ends know which messages are due, in which order and where. So a thread of
the sender waits for the flag and sends; one of the receiver receives to where its stream looks, and
sets the flag there. The flags keep slots apart as they do on one host: a slot of the sender is
empty once MPI has taken it, one of the receiver once its stream has turned its flag back.

What has arrived is told of, once a call, since a rank may only go once the others have what it has
sent. The thread lives on after the communicator until all ranks have closed theirs: what others
have sent in vain must come to somebody.
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
_LONGEST_NAP_CLOSED = 0.01
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
        on_failure: called with what MPI has refused, by whichever thread has heard of it.
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
        prepare_thread: Callable[[], None] = lambda: None,
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
            prepare_thread: called by the thread that moves messages, before it does.
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
        self._prepare_thread = prepare_thread
        far = [peer for peer, host in enumerate(hosts) if host != hosts[rank]]
        self._to: dict[int, deque[Transfer]] = {peer: deque() for peer in far}
        self._from: dict[int, deque[Transfer]] = {peer: deque() for peer in far}
        # By peer, of calls that still wait for messages: their number, and how many messages have
        # come when they do not any more.
        self._ends: dict[int, deque[tuple[int, int]]] = {peer: deque() for peer in far}
        self._in_use: set[int] = set()  # words of messages that MPI has
        self._moving: list[_Moving] = []
        self._others: list[tuple[Any, Any]] = []  # news, and messages in vain: requests and buffers
        self._due: Counter[int] = Counter()  # messages of calls so far, by peer
        self._taken: Counter[int] = Counter()  # ... that have come
        self._put: Counter[int] = Counter()  # messages to send, those that were sent with them
        self._confirmed: Counter[int] = Counter()  # ... that a peer has said it has
        self._left: set[int] = set()
        self._gives_up = False
        self._has_failed = False
        self._closed = False
        self._said_bye = False
        self._stopped = False
        self._asks = False
        # Entered as a lock, which a signal's handler cannot leave half entered; a condition's own
        # entry is Python's code.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._turn = threading.Lock()  # whoever moves things
        self._thread: threading.Thread | None = None
        self._name = f"device-carrier-{group.number}-{rank}"
        self.on_failure: Callable[[BaseException], None] = lambda error: None
        self.sent_payload = 0

    # --- while calls are made

    def expect(self, number: int, sends: Sequence[Transfer], receives: Sequence[Transfer]) -> None:
        """The messages of a call with this number, that is about to be put on the stream."""
        with self._lock:
            for each in sends:
                self._put[each.peer] += 1
                self._to[each.peer].append(each)
            for each in receives:
                self._due[each.peer] += 1
                self._from[each.peer].append(each)
            for peer in {each.peer for each in receives}:
                self._ends[peer].append((number, self._due[peer]))
            self._wake()

    def carries_for(self, peer: int) -> bool:
        """Whether that rank is on another host."""
        return peer in self._to

    @property
    def idle(self) -> bool:
        """Whether MPI has no message of it, nor gets one."""
        with self._turn:
            waiting = any(self._to.values()) or any(self._from.values())
            return not self._moving and (self._gives_up or not waiting)

    def waits_for(self, peer: int, number: int) -> bool:
        """Whether a message of that rank for this call, or one before it, has still to come."""
        with self._lock:
            ends = self._ends[peer]
            return bool(ends) and ends[0][0] <= number

    def unconfirmed(self) -> list[int]:
        """The ranks that have not said that they have all that was sent to them."""
        late = [peer for peer in self._to if self._confirmed[peer] < self._put[peer]]
        if late and not self._asks:
            with self._lock:
                self._asks = True  # so the thread goes on listening
                self._changed.notify()
        return late

    def release(self) -> None:
        """What is under way has failed: nothing more is moved."""
        with self._lock:
            self._has_failed = True
            self._changed.notify()

    def _wake(self) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            thread.start()
            self._thread = thread
        self._changed.notify()

    def _run(self) -> None:
        try:
            self._prepare_thread()
        except BaseException as error:
            self._fail(error)
        pause, longest = _NAPS
        while True:
            with self._lock:
                while not self._closed and not self._stopped and not self._has_work():
                    self._changed.wait()
                if self._stopped or self.done:
                    return
            moved = self._step()
            longest = _LONGEST_NAP_CLOSED if self._closed else _NAPS[1]
            pause = _NAPS[0] if moved else min(2 * pause, longest)
            time.sleep(pause)

    def _has_work(self) -> bool:
        return bool(
            self._moving
            or self._others
            or any(self._to.values())
            or any(self._from.values())
            or (self._asks and self.unconfirmed())
        )

    def _step(self) -> bool:
        """Move what can be moved; whether anything could."""
        with self._turn:
            moved = self._guarded(self._hear)
            if self._is_released():
                self._give_up()
            else:
                moved = self._guarded(self._start_all) or moved
            if self._closed:
                self._say_bye()
                self._guarded(self._take_in_vain)
            return self._finish() or moved

    def _guarded(self, part: Callable[..., bool | None], *of: Any) -> bool:
        """What one part says; the others are done whatever becomes of it."""
        try:
            return bool(part(*of))
        except BaseException as error:
            self._fail(error)
            return False

    def _is_released(self) -> bool:
        return self._has_failed or bool(self._words[self._released])

    def _start_all(self) -> bool:
        moved = False
        for peer, sends in self._to.items():
            while sends and self._is(sends[0], State.FULL):
                if self._is_released():  # else what is there may be rubbish
                    return moved
                self._start(sends.popleft(), self._members[peer], sends=True)
                moved = True
        for peer, receives in self._from.items():
            while receives and self._is(receives[0], State.EMPTY):
                self._start(receives.popleft(), self._members[peer], sends=False)
                moved = True
        return moved

    def _is(self, transfer: Transfer, state: State) -> bool:
        word = self._word_of(transfer.flag)
        return word not in self._in_use and int(self._words[word]) == state

    def _start(self, transfer: Transfer, member: int, *, sends: bool) -> None:
        # As much as there is room for: of calls that do not fit, hosts tell each other.
        length = transfer.nbytes if sends or not transfer.address else self._slot_bytes
        buffer = None
        if length:
            buffer = self._mpi.buffer.fromaddress(self._place_of(transfer.address), length)
        start = self._comm.Isend if sends else self._comm.Irecv
        request = start([buffer, length, self._mpi.BYTE], member, self._tag)
        self._in_use.add(self._word_of(transfer.flag))
        self._moving.append(_Moving(request, transfer, sends))

    def _finish(self) -> bool:
        """What MPI has done with: whether there is any."""
        done: list[_Moving] = []
        for each in tuple(self._moving):
            if self._is_over(each.request):
                self._moving.remove(each)
                done.append(each)
        self._others = [each for each in self._others if not self._is_over(each[0])]
        for each in done:
            word = self._word_of(each.transfer.flag)
            self._in_use.discard(word)
            if not self._is_released():
                # What came is in memory: MPI's own locks stand between it and this.
                self._words[word] = State.EMPTY if each.sends else State.FULL
        for each in done:
            if each.sends:
                self.sent_payload += each.transfer.nbytes
            elif not self._is_released():
                self._guarded(self._count, each.transfer.peer)
        return bool(done)

    def _is_over(self, request: Any) -> bool:
        try:
            return bool(request.Test())
        except BaseException as error:  # this one alone: MPI still has the others
            self._fail(error)
            return True

    def _count(self, peer: int) -> None:
        """One more message of `peer`; at the end of a call's it hears that they have come."""
        with self._lock:
            self._taken[peer] += 1
            ends, last = self._ends[peer], False
            while ends and ends[0][1] <= self._taken[peer]:
                ends.popleft()
                last = True
        if last:
            self._tell(peer, self._taken[peer])

    def _fail(self, error: BaseException) -> None:
        if not self._has_failed:
            self._has_failed = True
            self.on_failure(error)

    def _give_up(self) -> None:
        if self._gives_up:
            return
        with self._lock:
            self._gives_up = self._has_failed = True
            for transfers in (*self._to.values(), *self._from.values()):
                transfers.clear()
            for ends in self._ends.values():
                ends.clear()
        for each in self._moving:
            if not each.sends:
                self._guarded(each.request.Cancel)

    # --- what carriers tell each other

    def _tell(self, peer: int, what: int) -> None:
        data = np.array([what], np.int64)
        content = [data, data.nbytes, self._mpi.BYTE]
        self._others.append((self._comm.Isend(content, self._members[peer], self._news_tag), data))

    def _hear(self) -> bool:
        heard = False
        status = self._mpi.Status()
        while message := self._comm.Improbe(self._mpi.ANY_SOURCE, self._news_tag, status):
            peer, data = self._rank_of[status.Get_source()], np.zeros(1, np.int64)
            message.Recv([data, data.nbytes, self._mpi.BYTE])  # so short that it is here
            heard = True
            if data[0] == _BYE:
                self._left.add(peer)
            else:
                self._confirmed[peer] = int(data[0])
        return heard

    # --- the end, as that of any carrier: `transports.mpi.world`

    def close(self) -> None:
        """Nothing more is put; waits for nobody. The thread goes on until all have closed."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._wake()

    def progress(self) -> None:
        """Once closed: a step towards `done`."""
        self._step()

    def _say_bye(self) -> None:
        if not self._said_bye:
            self._said_bye = True
            for peer in self._to:
                self._guarded(self._tell, peer, _BYE)

    def _take_in_vain(self) -> None:
        """What others have sent for calls that this rank has given up, or never made."""
        while self._comm.Iprobe(self._mpi.ANY_SOURCE, self._tag):
            room = bytearray(self._slot_bytes)  # before the message is taken out of the queue
            message = self._comm.Improbe(self._mpi.ANY_SOURCE, self._tag)
            if message is None:
                return
            self._others.append((message.Irecv([room, len(room), self._mpi.BYTE]), room))

    @property
    def done(self) -> bool:
        """Whether all have closed, and MPI has nothing of it any more."""
        all_have = self._said_bye and len(self._left) == len(self._to)
        return all_have and not self._moving and not self._others

    @property
    def broken(self) -> bool:
        """Whether a call has failed, so that others may not come to the end."""
        return self._has_failed

    def stop(self) -> None:
        """Nothing is kept."""
        with self._lock:
            self._stopped = True
            self._changed.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._moving.clear()
        self._others.clear()
