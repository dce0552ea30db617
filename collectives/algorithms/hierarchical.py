"""Hierarchies: within a host ranks exchange directly, between hosts each byte goes once.

Of every host as many ranks as the smallest host has are *owners*; the owners of the same number
make a *lane*, a ring through all hosts. Chunk r is that of rank r's host in the lane of its number,
so that all lanes work at once and what leaves a host is the least possible:

    lane 0:   rank 0 ──> rank 2 ──> rank 4 ──> rank 0        host a: ranks 0, 1
    lane 1:   rank 1 ──> rank 3 ──> rank 5 ──> rank 1        host b: 2, 3; host c: 4, 5

On one host they are what the direct algorithms are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from collectives.algorithms.neighbours import doubling_distances, others
from collectives.schedule import Steps, algorithm, recv, recv_reduce, send

_MOST_TOGETHER = 4
"""Up to so many hosts an owner gets all that it adds up from a rank in one message. With more, what
one slot holds of each chunk would be little for the wire."""


@dataclass(frozen=True)
class Layout:
    """Who is where.

    Attributes:
        members: of each host its ranks, in order; hosts are numbered by their first ranks.
        lanes: how many owners each host has, the first of its ranks.
    """

    members: tuple[tuple[int, ...], ...]
    lanes: int

    def place(self, rank: int) -> tuple[int, int]:
        """The number of a rank's host, and the rank's among those of the host."""
        for host, ranks in enumerate(self.members):
            if rank in ranks:
                return host, ranks.index(rank)
        raise ValueError(f"rank {rank} is on no host")

    def chunks(self, lane: int, host: int) -> tuple[int, ...]:
        """What goes through a lane and belongs to the ranks of a host."""
        return self.members[host % len(self.members)][lane :: self.lanes]

    def shares(self, lane: int) -> list[tuple[int, ...]]:
        """All that goes through a lane, as a rank sends it to the owner on its host."""
        each = [self.chunks(lane, host) for host in range(len(self.members))]
        if len(self.members) > _MOST_TOGETHER:
            return each
        return [tuple(chunk for chunks in each for chunk in chunks)]


@lru_cache(maxsize=64)
def layout_of(hosts: tuple[int, ...]) -> Layout:
    """The layout of ranks of which `hosts[r]` is the host of rank r."""
    members: dict[int, list[int]] = {}
    for rank, host in enumerate(hosts):
        members.setdefault(host, []).append(rank)
    each = tuple(map(tuple, members.values()))
    return Layout(each, min(map(len, each)))


def _widest_share(size: int, hosts: tuple[int, ...]) -> int:
    at = layout_of(hosts)
    within = [len(share) for lane in range(at.lanes) for share in at.shares(lane)]
    if max(map(len, at.members)) == 1:  # nobody to send them to
        within = []
    return max([*within, _widest_group(size, hosts)])


def _widest_group(size: int, hosts: tuple[int, ...]) -> int:
    at = layout_of(hosts)
    return max(-(-len(ranks) // at.lanes) for ranks in at.members)


def _add_up(at: Layout, rank: int) -> Steps:
    """Every owner has its host's sum of all that goes through its lane."""
    host, number = at.place(rank)
    here = at.members[host]
    for distance in range(1, len(here)):
        target, source = (number + distance) % len(here), (number - distance) % len(here)
        sent = at.shares(target) if target < at.lanes else []
        added = at.shares(number) if number < at.lanes else []
        # In turns: with one slot a rank can send no more before it has taken something.
        for part in range(max(len(sent), len(added))):
            if sent:
                yield send(here[target], chunk=sent[part])
            if added:
                yield recv_reduce(here[source], chunk=added[part])


def _scatter_round_lanes(at: Layout, rank: int) -> Steps:
    """Sums of hosts go round each lane; an owner ends with those of its own host's chunks."""
    host, number = at.place(rank)
    if number >= at.lanes:
        return
    left, right = _neighbours(at, host, number)
    for hop in range(1, len(at.members)):
        yield send(right, chunk=at.chunks(number, host - hop))
        yield recv_reduce(left, chunk=at.chunks(number, host - hop - 1))


def _gather_round_lanes(at: Layout, rank: int, first: bool = True) -> Steps:
    """Owners' chunks go round each lane, and to all ranks of each host on their way.

    Unless `first`, the ranks of a host have each other's chunks already.
    """
    host, number = at.place(rank)
    here = at.members[host]
    left, right = _neighbours(at, host, number)
    around = [here[place] for place in others(number, len(here))]
    for hop in range(len(at.members)):
        is_last = hop == len(at.members) - 1
        within = hop > 0 or first
        if number < at.lanes:
            targets = [] if is_last else [right]
            targets += around if within else []
            if targets:
                yield send(targets, chunk=at.chunks(number, host - hop))
        # Those to the left first: in the order in which `around` makes them send.
        for owner in reversed(around if within else ()):
            if (lane := here.index(owner)) < at.lanes:
                yield recv(owner, chunk=at.chunks(lane, host - hop))
        if number < at.lanes and not is_last:
            yield recv(left, chunk=at.chunks(number, host - hop - 1))


def _neighbours(at: Layout, host: int, number: int) -> tuple[int, int]:
    lane = number % at.lanes
    return at.members[host - 1][lane], at.members[(host + 1) % len(at.members)][lane]


@algorithm(
    "allreduce",
    name="hierarchical",
    chunks=lambda size: size,
    widest=_widest_share,
    cost="2(n-1)(alpha + s/n beta) + (n-1)/n s gamma",
    messages="2(n-1)",
    volume="2(n-1)/n s",
    wire="2(h-1)/h s",
    source="Jia et al. 2018 (hierarchical all-reduce)",
)
def hierarchical_allreduce(rank: int, size: int, hosts: tuple[int, ...]) -> Steps:
    """Add up within each host, round a ring of hosts in every lane, and spread within each host.

    Of h equal hosts each sends 2(h-1)/h s bytes to the next, the least possible, however many
    ranks it has. Cost, messages and volume are those on one host.
    """
    at = layout_of(hosts)
    yield from _add_up(at, rank)
    yield from _scatter_round_lanes(at, rank)
    yield from _gather_round_lanes(at, rank)


@algorithm(
    "reduce_scatter",
    name="hierarchical",
    widest=_widest_share,
    cost="(n-1)(alpha + s/n beta + s/n gamma)",
    messages="n-1",
    volume="(n-1)/n s",
    wire="(h-1)/h s",
    source="Jia et al. 2018 (hierarchical all-reduce), its first half",
)
def hierarchical_reduce_scatter(rank: int, size: int, hosts: tuple[int, ...]) -> Steps:
    """Add up within each host, then round a ring of hosts in every lane: (h-1)/h s bytes a host."""
    at = layout_of(hosts)
    yield from _add_up(at, rank)
    yield from _scatter_round_lanes(at, rank)
    # Ranks that own no lane get their chunks from the owners of those.
    host, number = at.place(rank)
    if number >= at.lanes:
        yield recv(at.members[host][number % at.lanes], chunk=rank)
    else:
        for other in at.chunks(number, host)[1:]:
            yield send(other, chunk=other)


@algorithm(
    "allgather",
    name="hierarchical",
    widest=_widest_group,
    cost="(n-1)(alpha + s/n beta)",
    messages="n-1",
    volume="(n-1)/n s",
    wire="(h-1)/h s",
    source="Jia et al. 2018 (hierarchical all-reduce), its second half",
)
def hierarchical_allgather(rank: int, size: int, hosts: tuple[int, ...]) -> Steps:
    """Each host's chunks go round the lanes, and are read by all on their way: (h-1)/h s a host."""
    at = layout_of(hosts)
    host, number = at.place(rank)
    here = at.members[host]
    is_even = len(here) == at.lanes
    if not is_even:  # owners first have to have what they send
        around = [here[place] for place in others(number, len(here))]
        yield send(around, chunk=rank)
        for peer in reversed(around):
            yield recv(peer, chunk=peer)
    yield from _gather_round_lanes(at, rank, first=is_even)


@algorithm(
    "broadcast",
    name="hierarchical",
    widest=lambda size: 1,
    cost="(n-1)(alpha + s beta)",
    messages="n-1",
    volume="(n-1) s",
    wire="(h > 1) s",
    source="the chain of Chan, Heimlich, Purkayastha & van de Geijn 2007, through hosts",
)
def hierarchical_broadcast(rank: int, size: int, root: int, hosts: tuple[int, ...]) -> Steps:
    """Along a chain of hosts, of each of which one rank hands on and all read: s bytes a host."""
    at = layout_of(hosts)
    chain, leader, rest = _chain_to(at, rank, root)
    if rank != leader:
        yield recv(leader, chunk=0)
        return
    place = chain.index(rank)
    if place > 0:
        yield recv(chain[place - 1], chunk=0)
    targets = chain[place + 1 : place + 2] + rest
    if targets:
        yield send(targets, chunk=0)


@algorithm(
    "reduce",
    name="hierarchical",
    widest=lambda size: 1,
    cost="(n-1)(alpha + s beta + s gamma)",
    messages="n > 1",
    volume="(n > 1) s",
    wire="(h > 1) s",
    source="the chain of Chan, Heimlich, Purkayastha & van de Geijn 2007, through hosts",
)
def hierarchical_reduce(rank: int, size: int, root: int, hosts: tuple[int, ...]) -> Steps:
    """Each host's sum goes along a chain of hosts towards the root: s bytes a host."""
    at = layout_of(hosts)
    chain, leader, rest = _chain_to(at, rank, root)
    if rank != leader:
        yield send(leader, chunk=0)
        return
    place = chain.index(rank)
    sources = rest + chain[place + 1 : place + 2]
    if sources:
        yield recv_reduce(sorted(sources), chunk=0)
    if place > 0:
        yield send(chain[place - 1], chunk=0)


@algorithm(
    "barrier",
    name="hierarchical",
    widest=lambda size: 1,
    cost="2(n-1) alpha",
    messages="n-1",
    volume="0",
    wire="0",
    source="Hensgen, Finkel & Manber 1988 (dissemination), between hosts",
)
def hierarchical_barrier(rank: int, size: int, hosts: tuple[int, ...]) -> Steps:
    """All of a host report to one, those tell each other by dissemination, and tell their host."""
    at = layout_of(hosts)
    host, number = at.place(rank)
    leader, *rest = at.members[host]
    if number > 0:
        yield send(leader, chunk=0)
        yield recv(leader, chunk=0)
        return
    for peer in rest:
        yield recv(peer, chunk=0)
    for distance in doubling_distances(len(at.members)):
        yield send(at.members[(host + distance) % len(at.members)][0], chunk=0)
        yield recv(at.members[host - distance][0], chunk=0)
    if rest:
        yield send(rest, chunk=0)


def _chain_to(at: Layout, rank: int, root: int) -> tuple[list[int], int, list[int]]:
    """A leader of each host, the root first; the one of this rank's host, and the host's others."""
    first, _ = at.place(root)
    chain = [
        root if number == first else at.members[number][0]
        for number in ((first + place) % len(at.members) for place in range(len(at.members)))
    ]
    host, _ = at.place(rank)
    leader = chain[(host - first) % len(at.members)]
    return chain, leader, [peer for peer in at.members[host] if peer != leader]
