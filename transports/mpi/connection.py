"""A rank's place among the ranks of several hosts.

All meet over MPI. Then the ranks of each host meet as those of one host do, over memory that has a
part for every rank, of this host or another; and what goes to another host and comes from there, a
carrier moves.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from transports import _native
from transports.errors import CollectiveError, MismatchError
from transports.mpi.meeting import Assembly
from transports.mpi.world import World
from transports.rendezvous.awaiting import Look
from transports.rendezvous.local import Introduction, introduced, meet
from transports.shm.connection import Connection, Geometry, offer, open_engine


@dataclass(frozen=True)
class Group:
    """Ranks of a world that make a communicator.

    Attributes:
        world: where they are.
        members: the world's number of each rank.
        number: of the communicator; None: they are all ranks of the world, and have yet to agree.
    """

    world: World
    members: tuple[int, ...]
    number: int | None = None


def connect_over_hosts(
    me: Introduction,
    group: Group,
    *,
    geometry: Geometry,
    settings: dict[str, Any],
    timeout: float,
    look: Look = lambda: None,
    silence: float = 0,
) -> Connection:
    """Meet the other ranks of a group, and connect to them.

    Args:
        me: this rank.
        group: who meets.
        geometry: rank 0's counts.
        settings: rank 0's are handed to all.
        timeout: seconds to wait for the others.
        look: called now and then while this rank waits for others to come; what it raises ends the
            waiting.
        silence: seconds after which a long wait is told of; 0: never.

    Raises:
        CollectiveTimeout: some ranks did not come; the text names them.
        MismatchError: the ranks do not fit together.
        CollectiveError: as `transports.rendezvous.local.meet`.
        MemoryError: a host does not have the memory.
    """
    world = group.world
    comm, tag = world.place_to_meet
    if group.number is not None:
        comm, tag = world.communicator(), world.tag_of(group.number) + 2
    assembly = Assembly(comm, tag, group.members, timeout, look, silence)
    notes = assembly.collect({"me": asdict(me), "numbers": world.numbers})
    welcome = assembly.spread(_welcome(notes, group.number, geometry, settings) if notes else None)
    world.numbers = max(world.numbers, welcome["number"])
    world.communicator()  # for which all are there now
    connection: Connection | None = None
    problem: Exception | None = None
    try:
        connection = _connect_here(me, group, welcome, timeout, look, silence)
    except (CollectiveError, MemoryError, OSError) as error:
        problem = error
    try:
        problems = assembly.collect(problem)
        assembly.spread(next((each for each in problems if each is not None), None))
    except BaseException:
        world.has_failed = True  # there is no communicator that all would close
        if connection is not None and connection.carrier is not None:
            connection.engine.close()
            connection.carrier.stop()
        raise
    assert connection is not None, "a rank that has failed has said so"
    if connection.carrier is not None:
        world.keep(connection.carrier)
    return connection


def _welcome(
    notes: Sequence[dict[str, Any]],
    number: int | None,
    geometry: Geometry,
    settings: dict[str, Any],
) -> dict[str, Any] | MismatchError:
    """What rank 0 says to all that have introduced themselves."""
    ranks = [introduced(note["me"]) for note in notes]
    for rank, other in enumerate(ranks):
        who = f"rank {rank} (pid {other.pid} on {other.host})"
        if other.version != ranks[0].version:
            return MismatchError(
                f"{who} runs version {other.version} of this package, "
                f"rank 0 (on {ranks[0].host}) runs {ranks[0].version}"
            )
    return {
        "ranks": [note["me"] for note in notes],
        "number": number or 1 + max(note["numbers"] for note in notes),
        "job": secrets.token_hex(8),
        "secret": secrets.token_hex(16),
        "geometry": asdict(geometry),
        "settings": settings,
    }


def _connect_here(
    me: Introduction,
    group: Group,
    welcome: dict[str, Any],
    timeout: float,
    look: Look,
    silence: float,
) -> Connection:
    """Meet the ranks of this host, and open this one's engine over their memory."""
    ranks = tuple(introduced(each) for each in welcome["ranks"])
    hosts = hosts_of(ranks)
    here = [rank for rank, host in enumerate(hosts) if host == hosts[me.rank]]
    geometry = Geometry(**welcome["geometry"])
    meeting = meet(
        replace(me, rank=here.index(me.rank), size=len(here)),
        job=f"{welcome['job']}/{hosts[me.rank]}",
        secret=welcome["secret"],
        settings={},
        offer=lambda _: offer(geometry, len(ranks)),
        timeout=timeout,
        look=look,
        silence=silence,
    )
    world, tag = group.world, group.world.tag_of(welcome["number"])
    library = world.library

    def carry(descriptor: int) -> _native.Carrier:
        return _native.Carrier(
            descriptor, me.rank, library.functions, library.handle_of(world.communicator()),
            library.handle_of(library.mpi.BYTE), library.mpi.ANY_SOURCE, group.members, hosts, tag,
        )  # fmt: skip

    with meeting:
        pidfds = [-1] * len(ranks)
        for rank, pidfd in zip(here, meeting.pidfds, strict=True):
            pidfds[rank] = pidfd
        engine, carrier = open_engine(
            meeting, me.rank, ranks, pidfds, silence, carry if len(here) < len(ranks) else None
        )
    return Connection(
        engine=engine, ranks=ranks, settings=welcome["settings"], hosts=hosts, job=welcome["job"],
        secret=welcome["secret"], carrier=carrier,
    )  # fmt: skip


def hosts_of(ranks: Sequence[Introduction]) -> tuple[int, ...]:
    """The index of each rank's host; hosts are numbered by their first rank."""
    numbers: dict[str, int] = {}
    return tuple(numbers.setdefault(rank.host_id, len(numbers)) for rank in ranks)
