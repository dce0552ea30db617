"""One host that stands for all: where hosts are alike, what one does is what every one does.

Ranks lie in equal blocks, and the schedule of a rank is that of the rank with its number on the
first host, moved on by as many hosts. Then the ranks of all hosts do the same at the same time, and
those of one send to themselves, by the distance between hosts: exact, as one rank of a ring that
stands for all is. That it is so is looked at on some ranks of some hosts; to look at all would take
what is to be saved.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest

from collectives.cost.actions import Action, End, Kind, Programs
from collectives.schedule import Algorithm
from collectives.steps import Copy, OneSided, Recv, RecvReduce, Send, Step


def one_host_for_all(
    algo: Algorithm, size: int, root: int, hosts: Sequence[int]
) -> Programs | None:
    """The actions of the ranks of one host; None where one cannot stand for all."""
    count = len(set(hosts))
    each = size // count
    blocks = tuple(rank // each for rank in range(size))
    if count < 3 or size % count or tuple(hosts) != blocks or "hosts" not in algo.wants:
        return None
    if algo.spec.rooted or algo.one_sided:
        return None
    programs = []
    for number in range(each):
        first = list(_moved(algo, 0, number, each, count, hosts))
        for host in sorted({1, count // 2, count - 1}) if number in (0, each - 1) else ():
            others = _moved(algo, host, number, each, count, hosts)
            if not all(one == other for one, other in zip_longest(first, others)):
                return None
        programs.append(first)
    return Programs(programs, count, hosts=count)


def _moved(
    algo: Algorithm, host: int, number: int, each: int, count: int, hosts: Sequence[int]
) -> Iterator[Action]:
    """What a rank does, others named by their numbers and by how many hosts they are away."""
    for step in algo.schedule(host * each + number, each * count, 0, hosts):
        yield _action(step, host, number, each, count)


def _action(step: Step, host: int, number: int, each: int, count: int) -> Action:
    if isinstance(step, Copy):
        return Action(Kind.WORK, (), 1, moves=0, reduces=1)
    assert not isinstance(step, OneSided), "refused before"
    sends = isinstance(step, Send)
    peers = (step.peer,) if isinstance(step, Recv) else step.peers
    ends = []
    for peer in peers:
        its_host, its_number = divmod(peer, each)
        # A channel is known by its sender's number, and how far it reaches.
        source, away = (number, its_host - host) if sends else (its_number, host - its_host)
        ends.append(End(its_number, source * count + away % count))
    kind = Kind.POST if sends else Kind.TAKE
    return Action(kind, tuple(ends), len(step.chunks), reduces=int(isinstance(step, RecvReduce)))
