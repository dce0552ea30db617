"""How ranks meet over MPI: every rank reports to rank 0, and what that says comes down a tree.

Rank 0 knows who is missing, and says so. Nothing here blocks in MPI: while a rank waits it looks
at its deadline and at what else may end the waiting.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Sequence
from typing import Any

from transports.errors import CollectiveTimeout
from transports.reminder import Reminder
from transports.rendezvous.awaiting import GRACE_SECONDS, Look
from transports.telling import tell

_NAPS = (0.00002, 0.002)  # seconds between looks: at first, and at most


class Assembly:
    """The ranks of one meeting.

    Attributes:
        rank: of this process, among `members`.
        timeout: seconds that the meeting may take.
    """

    def __init__(
        self,
        comm: Any,
        tag: int,
        members: Sequence[int],
        timeout: float,
        look: Look,
        silence: float,
    ) -> None:
        """A meeting of `members`, ranks of `comm`, which begins now; `tag` is for it alone.

        `look` raises if something else ends the waiting; after `silence` seconds it is told of.
        """
        self.timeout = timeout
        self.rank = list(members).index(comm.Get_rank())
        self._comm = comm
        self._tag = tag
        self._members = members
        self._look = look
        self._deadline = time.monotonic() + timeout
        self._reminder = Reminder(silence if self.rank == 0 else 2 * silence)
        self._sends: list[tuple[Any, bytes]] = []

    def collect(self, note: Any) -> list[Any]:
        """On rank 0 what every rank says, in order; elsewhere nothing.

        Raises:
            CollectiveTimeout: some rank did not come; the text names it.
        """
        if self.rank != 0:
            self._send(0, note)
            return []
        found = {0: note}
        waiting = _Waiting(self, 0)
        while len(found) < len(self._members):
            missing = [rank for rank in range(len(self._members)) if rank not in found]
            for rank in missing:
                if (heard := self._hear(rank)) is not None:
                    found[rank] = heard[0]
                    waiting.restart()
            if len(found) < len(self._members):
                waiting.nap(
                    f"{_listed(missing)} of {len(self._members)} to come to the rendezvous over MPI"
                )
        return [found[rank] for rank in range(len(self._members))]

    def spread(self, note: Any = None) -> Any:
        """What rank 0 says, to every rank; an exception is raised by all.

        Raises:
            CollectiveTimeout: rank 0 says nothing.
        """
        bit = 1
        while self.rank != 0 and not self.rank & bit:
            bit <<= 1
        if self.rank == 0:
            bit = 1 << (len(self._members) - 1).bit_length()
        else:
            waiting = _Waiting(self, GRACE_SECONDS)
            while (heard := self._hear(self.rank - bit)) is None:
                waiting.nap("rank 0 to answer in the rendezvous over MPI")
            note = heard[0]
        while bit := bit >> 1:
            if self.rank + bit < len(self._members):
                self._send(self.rank + bit, note)
        self._settle()
        if isinstance(note, Exception):
            raise note
        return note

    def _send(self, rank: int, note: Any) -> None:
        data = pickle.dumps(note)
        request = self._comm.Isend([data, len(data), self._byte], self._members[rank], self._tag)
        self._sends.append((request, data))

    def _hear(self, rank: int) -> tuple[Any] | None:
        message = self._comm.Improbe(self._members[rank], self._tag, status := self._status())
        if message is None:
            return None
        room = bytearray(status.Get_count(self._byte))
        message.Recv([room, len(room), self._byte])
        return (pickle.loads(room),)

    def _settle(self) -> None:
        """What this rank has said has gone."""
        waiting = _Waiting(self, GRACE_SECONDS)
        while not all(request.Test() for request, _ in self._sends):
            waiting.nap("another rank to hear what is said in the rendezvous over MPI")
        self._sends.clear()

    @property
    def _byte(self) -> Any:
        return _mpi().BYTE

    @staticmethod
    def _status() -> Any:
        return _mpi().Status()


class _Waiting:
    """Naps between looks, ever longer."""

    def __init__(self, assembly: Assembly, grace: float) -> None:
        self._assembly = assembly
        self._grace = grace
        self.restart()

    def restart(self) -> None:
        self._pause, self._longest = _NAPS

    def nap(self, whom: str) -> None:
        its = self._assembly
        its._look()
        if time.monotonic() > its._deadline + self._grace:
            raise CollectiveTimeout(f"rank {its.rank} has waited {its.timeout:g} s for {whom}")
        if waited := its._reminder.due():
            tell(f"rank {its.rank} has waited {waited:.3g} s for {whom}")
        time.sleep(self._pause)
        self._pause = min(2 * self._pause, self._longest)


def _mpi() -> Any:
    from mpi4py import MPI

    return MPI


def _listed(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:10])) + (", ..." if len(ranks) > 10 else "")
    return f"rank{'s' * (len(ranks) > 1)} {shown}"
