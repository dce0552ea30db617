"""This process in MPI: one private communicator of all ranks, and what is still under way on it.

MPI's own end waits for all ranks, so everything of ours must be over before: a carrier lives on
after its communicator until all ranks have closed theirs.
"""

from __future__ import annotations

import os
import time
from typing import Any, Protocol

from transports import _native
from transports.mpi.library import Library, MpiError, load
from transports.telling import tell

_POLL_SECONDS = 0.001
_LEAVING_SECONDS = 10.0  # for the others to leave, too, where something has failed
TAGS = 6
"""Tags of a communicator: frames, payloads that go by themselves, its rendezvous, that of its
communicator for MPI's own collectives, and those of its devices."""
TAG_OF_DEVICES, TAG_OF_NEWS = 4, 5
"""Messages of devices, and what their carriers tell each other."""

_WORLD: list[World] = []


class Carrier(Protocol):
    """What moves messages of one communicator."""

    @property
    def done(self) -> bool:
        """Whether all others have closed theirs, too, and nothing is on its way."""
        ...

    @property
    def broken(self) -> bool:
        """Whether something has failed, so that others may not come to the end."""
        ...

    def close(self) -> None:
        """Nothing more is sent; may be called again."""
        ...

    def progress(self) -> object:
        """Once closed: a step towards `done`."""
        ...

    def stop(self) -> None:
        """It is done: what it holds can go."""
        ...


class World:
    """All ranks that MPI has started.

    Attributes:
        library: MPI itself.
        rank: of this process.
        size: how many there are.
        numbers: of communicators of ours, those up to this one have been given.
        has_failed: the program ends with an error.
        patience: seconds that any wait may take, at the program's end as well.
    """

    def __init__(self, library: Library) -> None:
        """Nothing is said to anybody yet."""
        self.library = library
        self.rank: int = library.mpi.COMM_WORLD.Get_rank()
        self.size: int = library.mpi.COMM_WORLD.Get_size()
        self.numbers = 0
        self.has_failed = False
        self.patience = 0.0
        self._process = os.getpid()
        self._private: Any = None
        self._carriers: list[Carrier] = []

    @property
    def place_to_meet(self) -> tuple[Any, int]:
        """A communicator of mpi4py and a tag there, for a rendezvous of all ranks.

        The first one must be on everybody's: to make another needs all ranks, who may not come.
        """
        mpi = self.library.mpi
        return mpi.COMM_WORLD, int(mpi.COMM_WORLD.Get_attr(mpi.TAG_UB))

    def communicator(self) -> Any:
        """The one that nobody else uses; made when first asked for, by all ranks."""
        if self._private is None:
            deadline = _native.Deadline(0, self.patience, "a first message to every other rank")
            try:
                self._private = self.library.mpi.COMM_WORLD.Dup()
            finally:
                deadline.end()
            self._private.Set_errhandler(self.library.mpi.ERRORS_RETURN)
        return self._private

    def tag_of(self, number: int) -> int:
        """The first tag of the communicator with this number.

        Raises:
            MpiError: MPI has no such tag.
        """
        _, most = self.place_to_meet
        if TAGS * number + TAGS > most:
            raise MpiError(f"communicator {number} would need tags beyond {most}, the most here")
        return TAGS * number

    def keep(self, carrier: Carrier) -> None:
        """Until all ranks have closed their communicators."""
        self.let_go()
        self._carriers.append(carrier)

    def let_go(self) -> int:
        """Of carriers whose communicators all ranks have closed; how many are left."""
        for carrier in [each for each in self._carriers if each.done]:
            carrier.stop()
            self._carriers.remove(carrier)
        return len(self._carriers)

    def finish(self) -> None:
        """At the program's end: what is on its way arrives, then MPI may end."""
        if os.getpid() != self._process:
            return  # a forked child is no rank, and must not speak to MPI
        began = time.monotonic()
        for carrier in self._carriers:
            carrier.close()  # of communicators that something has kept from being closed
        while self.let_go():
            for carrier in self._carriers:
                carrier.progress()
            self.let_go()
            failed = self.has_failed or any(each.broken for each in self._carriers)
            limit = _LEAVING_SECONDS if failed else self.patience
            if self._carriers and time.monotonic() - began > limit:
                tell(
                    f"other ranks have not closed their communicators {limit:g} s after the end of "
                    f"this one{', which failed' if failed else ''}: the job is aborted"
                )
                self.library.mpi.COMM_WORLD.Abort(1)
            time.sleep(_POLL_SECONDS)


def world(timeout: float, silence: float = 0) -> World:
    """The one of this process.

    MPI begins with a call that waits for all ranks, and cannot be called back from it: a rank that
    has waited for longer than `timeout` seconds ends, with what it waits for on stderr. After
    `silence` seconds it says so; 0: never.

    Raises:
        ModuleNotFoundError: there is no mpi4py.
        MpiError: its MPI cannot serve.
    """
    if not _WORLD:
        deadline = _native.Deadline(
            silence,
            timeout,
            "the beginning of MPI, for which every rank that mpiexec has started must call init,",
        )
        try:
            _WORLD.append(World(load()))
        finally:
            deadline.end()
    _WORLD[0].patience = max(_WORLD[0].patience, timeout)
    return _WORLD[0]


def begun_world() -> World | None:
    """The one of this process, if MPI carries anything."""
    return _WORLD[0] if _WORLD else None
