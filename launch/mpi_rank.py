"""A rank that an mpiexec starts: becomes its launcher on this host, and tells ours how it went.

An mpiexec sets no RANK and no LOCAL_RANK, shares out cores in its own way, mixes what ranks print,
and ends all of them in its own way when one fails. So it starts this file once for each rank
(`python -I -S mpi_rank.py JSON PROGRAM ARGUMENTS...`, no more than the standard library), which
does for one rank what `launch.jobs` does for all of a machine: torchrun's variables, cores,
signals, and nothing left behind. What the rank writes and how it ends goes to our launcher in
blocks, by way of stderr, since some mpiexecs make stdout a terminal.

A rank that has failed is not told to the mpiexec, which would kill the others before they could say
anything: our launcher decides, and then lets this process go. The one signal that every mpiexec
hands on is SIGUSR1. So it stands for all: the first is a SIGINT to the rank, the next a SIGTERM;
once the rank has ended it lets this process go.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from types import FrameType

if __name__ == "__main__":  # isolated, Python does not look beside the package for itself
    sys.path.insert(0, str(Path(__file__).parents[1]))

from collectives.under_mpi import UnderMpi, place_under_mpi
from launch.binding import rank_cores, rank_threads
from launch.environment import HostShare, JobIdentity, rank_environment
from launch.mpi_blocks import BLOCK, Kind, write_blocks
from launch.processes import Ended, Job, Output, RankCommand, Stream

REFUSED = 127  # as shells have it for what cannot be found

TAKEN = (signal.SIGUSR1, signal.SIGINT, signal.SIGTERM)
"""Signals that this process gets; the last two from an mpiexec that ends its ranks by them."""

_LOCAL_RANKS = ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID")
_ATOMIC = 4096  # bytes that a pipe takes whole
_KINDS = {Stream.OUT: Kind.OUT, Stream.ERR: Kind.ERR}


@dataclass(frozen=True, kw_only=True)
class Orders:
    """What our launcher lets every rank of a job know.

    Attributes:
        job: 16 characters that name it; blocks bear them.
        run: the name that stays through restarts.
        restart: how many jobs of this run there were before.
        max_restarts: how many there may be.
        slots: how many ranks each host has, in order; empty if an allocation says it.
        master_address: where rank 0's host is reached.
        master_port: for what rank 0 may serve there.
        folder: where the ranks work.
        bind: share the host's cores out among its ranks.
        threads: OMP_NUM_THREADS; None: the user's own setting, else cores // ranks of the host.
    """

    job: str
    run: str
    restart: int = 0
    max_restarts: int = 0
    slots: Sequence[int] = ()
    master_address: str = "127.0.0.1"
    master_port: int = 0
    folder: str = "."
    bind: bool = True
    threads: int | None = None

    def text(self) -> str:
        """For a command line."""
        return json.dumps(asdict(self))


def share_of(place: UnderMpi, slots: Sequence[int], environment: Mapping[str, str]) -> HostShare:
    """Where among the hosts a rank is, from who was placed where, or else what its mpiexec says."""
    for host, ends in enumerate(accumulate(slots)):
        if place.rank < ends:  # ranks are placed in blocks
            local_rank = place.rank - ends + slots[host]
            return HostShare(
                local_rank=local_rank, local_size=slots[host], host=host, hosts=len(slots)
            )
    told = next((environment[name] for name in _LOCAL_RANKS if name in environment), "")
    local_size = place.local_size or place.size
    local_rank = int(told) if told.isdigit() else place.rank % local_size
    return HostShare(
        local_rank=local_rank,
        local_size=local_size,
        host=place.rank // local_size,
        hosts=-(-place.size // local_size),
    )


def environment_of(
    place: UnderMpi, share: HostShare, orders: Orders, base: Mapping[str, str]
) -> dict[str, str]:
    """The whole environment of the rank: what a local one finds, and what marks it as MPI's."""
    identity = JobIdentity(
        ranks=place.size,
        master_port=orders.master_port,
        job=f"{orders.job}.{place.rank}",  # its own: this process ends this rank and no other
        secret=base.get("COLLECTIVES_SECRET", ""),
        run=orders.run,
        restart=orders.restart,
        max_restarts=orders.max_restarts,
    )
    threads = orders.threads or rank_threads(share.local_size, base)
    found = rank_environment(place.rank, identity, base, threads, share)
    return {**found, "COLLECTIVES_MPI_JOB": identity.job}


class _Rank:
    """One rank from its start to its end, and the signals meanwhile."""

    def __init__(self, orders: Orders, rank: int, command: RankCommand) -> None:
        self._orders = orders
        self._rank = rank
        self._command = command
        self._wakeup, self._ring = socket.socketpair()
        self._asked: list[int] = []
        self._first = True

    def run(self) -> bool:
        """Whether it has ended well."""
        for end in (self._wakeup, self._ring):
            end.setblocking(False)
        signal.set_wakeup_fd(self._ring.fileno(), warn_on_full_buffer=False)
        for taken in TAKEN:
            signal.signal(taken, self._note)
        code = 0
        with Job(f"{self._orders.job}.{self._rank}", [self._command]) as job:
            job.watch_descriptor(self._wakeup.fileno())
            self._tell(Kind.BEGUN, str(job.pid(0)).encode())
            while job.running:
                for event in job.events(None):
                    code = self._take(event, code)
                for number in self._heard():
                    job.send_signal(number)
            for event in job.sweep():
                code = self._take(event, code)
        self._tell(Kind.ENDED, str(code).encode())
        return code == 0

    def wait_to_be_let_go(self) -> None:
        """Until the launcher, or the mpiexec, has this process end."""
        while not self._heard():
            select.select([self._wakeup], [], [])

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGUSR1:
            number = signal.SIGINT if self._first else signal.SIGTERM
            self._first = False
        self._asked.append(number)

    def _heard(self) -> list[int]:
        with contextlib.suppress(BlockingIOError):
            while self._wakeup.recv(4096):
                pass
        asked, self._asked = self._asked, []
        return asked

    def _take(self, event: Output | Ended, code: int) -> int:
        if isinstance(event, Ended):
            return event.code
        self._tell(_KINDS[event.stream], event.data)
        return code

    def _tell(self, kind: Kind, data: bytes) -> None:
        blocks = write_blocks(self._orders.job, kind, self._rank, data)
        for at in range(0, len(blocks), _ATOMIC - _ATOMIC % BLOCK):
            rest = memoryview(blocks)[at : at + _ATOMIC]
            while rest:
                rest = rest[os.write(2, rest) :]


def run_rank(orders: Orders, command: Sequence[str]) -> int:
    """Runs `command` as the rank that this process was started as; this process's exit code."""
    try:
        place = place_under_mpi(os.environ)
    except ValueError as error:
        return _refuse(f"the mpiexec says whole numbers: {error}")
    if place is None:
        return _refuse("the mpiexec says a rank that we know, PMI_RANK or the like; found none")
    try:
        os.chdir(orders.folder)
    except OSError as error:
        return _refuse(f"the folder {orders.folder} is the same on every host: {error.strerror}")
    share = share_of(place, orders.slots, os.environ)
    share = HostShare(**{**asdict(share), "master_address": orders.master_address})
    told = os.environ.get("PMI_FD", "")
    rank = _Rank(
        orders,
        place.rank,
        RankCommand(
            command=command,
            environment=environment_of(place, share, orders, os.environ),
            cores=rank_cores(share.local_size, orders.bind)[share.local_rank],
            inherited=[int(told)] if told.isdigit() else [],  # by which MPI reaches its mpiexec
            reads_stdin=place.rank == 0,
        ),
    )
    if not rank.run():
        rank.wait_to_be_let_go()
    return 0


def _refuse(why: str) -> int:
    print(f"collectives, on host {socket.gethostname()}: expected that {why}", file=sys.stderr)
    return REFUSED


if __name__ == "__main__":
    sys.exit(run_rank(Orders(**json.loads(sys.argv[1])), sys.argv[2:]))
