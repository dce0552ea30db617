"""Recursive halving: exchange half of what is left with ranks at shrinking distance.

        rank    0         1         2         3          chunks each rank still adds up, n = 4
        d=2     0 1       0 1       2 3       2 3
        d=1     0         1         2         3

Each rank ends with the sum of its own chunk. Recursive doubling, the same backwards, then spreads
the sums. Sizes that are no power of two have guests (`Core`), as in recursive doubling.
"""

from __future__ import annotations

from collectives.algorithms.neighbours import Core, doubling_distances, largest_power
from collectives.algorithms.recursive_doubling import doubling_exchange, flat
from collectives.schedule import Steps, algorithm, recv, recv_reduce, send


def halving_exchange(core: Core, rank: int, chunks_of: list[list[int]]) -> Steps:
    """The reduce-scatter within the core: member m ends with the sums of `chunks_of[m]`."""
    member = core.member(rank)
    for distance in reversed(list(doubling_distances(core.members))):
        # The block of 2 * distance members parts: one half of its chunks stays with each side.
        partner = member ^ distance
        mine, theirs = (each - each % distance for each in (member, partner))
        yield send(core.rank(partner), chunk=flat(chunks_of[theirs : theirs + distance]))
        yield recv_reduce(core.rank(partner), chunk=flat(chunks_of[mine : mine + distance]))


@algorithm(
    "reduce_scatter",
    name="halving",
    widest=lambda size: size // 2 if Core(size).guests == 0 else size,
    cost="(fl(n) + 2 (p2(n) < n)) alpha"
    " + ((p2(n) - 1 + pairs(n) + (p2(n) < n)(n+1))/n) s beta"
    " + ((p2(n) - 1 + pairs(n))/n + (p2(n) < n)) s gamma",
    messages="fl(n) + (p2(n) < n)",
    volume="(n - (p2(n) == n))/n s",
    source="Thakur, Rabenseifner & Gropp 2005",
)
def halving_reduce_scatter(rank: int, size: int) -> Steps:
    """Halve what is left until one's own chunk is: log2 n steps, (n-1)/n s bytes a rank.

    Where n is no power of two, guests first send all of their s bytes to a neighbour, who in the
    end sends them their chunk.
    """
    core = Core(size)
    host, guest = core.host_of(rank), core.guest_of(rank)
    everything = range(size)
    if host is not None:
        yield send(host, chunk=everything)
        yield recv(host, chunk=rank)
        return
    if guest is not None:
        yield recv_reduce(guest, chunk=everything)
    yield from halving_exchange(
        core, rank, [list(core.stands_for(member)) for member in range(core.members)]
    )
    if guest is not None:
        yield send(guest, chunk=guest)


@algorithm(
    "allreduce",
    name="halving_doubling",
    chunks=largest_power,
    widest=lambda size: max(1, size // 2) if Core(size).guests == 0 else largest_power(size),
    cost="2 (fl(n) + (p2(n) < n)) alpha + 2 ((p2(n)-1)/p2(n) + (p2(n) < n)) s beta"
    " + ((p2(n)-1)/p2(n) + (p2(n) < n)) s gamma",
    messages="2 fl(n) + (p2(n) < n)",
    volume="(2 (p2(n)-1)/p2(n) + (p2(n) < n)) s",
    source="Rabenseifner 2004",
)
def halving_doubling_allreduce(rank: int, size: int) -> Steps:
    """Reduce-scatter by halving, then allgather by doubling: 2 log2 n steps, 2 (n-1)/n s bytes.

    As few bytes as a ring in far fewer steps. Where n is no power of two, guests add two steps
    and s bytes.
    """
    core = Core(size)
    host, guest = core.host_of(rank), core.guest_of(rank)
    everything = range(core.members)
    if host is not None:
        # A guest gives its part away and is told the sum.
        yield send(host, chunk=everything)
        yield recv(host, chunk=everything)
        return
    if guest is not None:
        yield recv_reduce(guest, chunk=everything)
    one_each = [[member] for member in range(core.members)]
    yield from halving_exchange(core, rank, one_each)
    yield from doubling_exchange(core, rank, one_each)
    if guest is not None:
        yield send(guest, chunk=everything)
