"""Recursive doubling: exchange with the rank at distance 1, then 2, then 4, ...

After each exchange a rank knows twice as much. That needs a power of two of ranks; at other sizes
some are guests of a neighbour (`Core`), who speaks for both and tells the guest the result.
"""

from __future__ import annotations

from collections.abc import Iterable

from collectives.algorithms.neighbours import Core, doubling_distances
from collectives.schedule import Steps, algorithm, recv, recv_reduce, send


@algorithm(
    "allreduce",
    name="recursive_doubling",
    widest=lambda size: 1,
    cost="(fl(n) + 2 (p2(n) < n))(alpha + s beta) + (fl(n) + (p2(n) < n)) s gamma",
    messages="fl(n) + (p2(n) < n)",
    volume="(fl(n) + (p2(n) < n)) s",
    source="Thakur, Rabenseifner & Gropp 2005",
)
def recursive_doubling_allreduce(rank: int, size: int) -> Steps:
    """Everybody exchanges whole sums: log2 n steps, log2 n s bytes a rank: for short arrays.

    Two more steps where n is no power of two. Both partners add the same two sums, hence get the
    same bits.

        rank   0     1     2     3
        d=1    01    01    23    23
        d=2    0123  0123  0123  0123
    """
    core = Core(size)
    host, guest = core.host_of(rank), core.guest_of(rank)
    if host is not None:
        # A guest gives its part away and is told the sum.
        yield send(host, chunk=0)
        yield recv(host, chunk=0)
        return
    if guest is not None:
        yield recv_reduce(guest, chunk=0)
    for distance in doubling_distances(core.members):
        partner = core.rank(core.member(rank) ^ distance)
        yield send(partner, chunk=0)
        yield recv_reduce(partner, chunk=0)
    if guest is not None:
        yield send(guest, chunk=0)


def doubling_exchange(core: Core, rank: int, chunks_of: list[list[int]]) -> Steps:
    """The allgather within the core: what member m knows at first is `chunks_of[m]`."""
    member = core.member(rank)
    for distance in doubling_distances(core.members):
        # Both know everything of their block of `distance` members, and swap it.
        partner = member ^ distance
        yield send(core.rank(partner), chunk=_block(member, distance, chunks_of))
        yield recv(core.rank(partner), chunk=_block(partner, distance, chunks_of))


def _block(member: int, distance: int, chunks_of: list[list[int]]) -> list[int]:
    """The chunks of the aligned run of `distance` members that `member` is in."""
    begin = member - member % distance
    return flat(chunks_of[begin : begin + distance])


def flat(lists: Iterable[list[int]]) -> list[int]:
    """All chunks of several lists, in order."""
    return [chunk for each in lists for chunk in each]


@algorithm(
    "allgather",
    name="recursive_doubling",
    widest=lambda size: size // 2 if Core(size).guests == 0 else size - 1,
    cost="(fl(n) + 2 (p2(n) < n)) alpha + (p2(n) - 1 + pairs(n) + (p2(n) < n) n)/n s beta",
    messages="fl(n) + (p2(n) < n)",
    volume="(p2(n) - 1 + pairs(n) + (p2(n) < n)(n-1))/n s",
    source="Thakur, Rabenseifner & Gropp 2005",
)
def recursive_doubling_allgather(rank: int, size: int) -> Steps:
    """Swap all one knows, at doubling distances: log2 n steps, (n-1)/n s bytes a rank.

    Where n is no power of two, two more steps, and up to twice the bytes for those with guests.
    """
    core = Core(size)
    host, guest = core.host_of(rank), core.guest_of(rank)
    if host is not None:
        # A guest hands over its chunk and is told all others.
        yield send(host, chunk=rank)
        yield recv(host, chunk=[chunk for chunk in range(size) if chunk != rank])
        return
    if guest is not None:
        yield recv(guest, chunk=guest)
    yield from doubling_exchange(
        core, rank, [list(core.stands_for(member)) for member in range(core.members)]
    )
    if guest is not None:
        yield send(guest, chunk=[chunk for chunk in range(size) if chunk != guest])
