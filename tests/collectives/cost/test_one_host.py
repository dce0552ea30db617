"""Where hosts are alike one stands for all, and says what all of them say event by event."""

from __future__ import annotations

from fractions import Fraction

import pytest

from collectives.catalogue import CATALOGUE, find
from collectives.cost import simulation
from collectives.cost.links import Link, Links
from collectives.cost.one_host import one_host_for_all
from collectives.schedule import algorithm, recv, send

NAMES = ("allreduce", "reduce_scatter", "allgather", "barrier")


def links(hosts):
    inside = Link(alpha=Fraction(1), beta=Fraction(1, 7), gamma=Fraction(1, 11))
    between = Link(alpha=Fraction(13), beta=Fraction(3, 5), gamma=Fraction(1, 11))
    return Links(inside=inside, between=between, hosts=hosts)


@pytest.mark.parametrize("collective", NAMES)
@pytest.mark.parametrize("count, each", [(3, 1), (3, 2), (4, 2), (5, 3), (6, 4)])
def test_it_is_exact(collective, count, each, monkeypatch):
    algo = find(collective, "hierarchical")
    hosts = tuple(rank // each for rank in range(count * each))
    found = simulation.run_simulation(algo, len(hosts), 1000, links(hosts))
    assert found.method == "one host for all"
    monkeypatch.setattr(simulation, "one_host_for_all", lambda *_: None)
    assert simulation.run_simulation(algo, len(hosts), 1000, links(hosts)).seconds == found.seconds


@pytest.mark.parametrize(
    "collective, name, hosts",
    [
        ("allreduce", "hierarchical", (0, 0, 1, 1)),  # two: left and right are the same host
        ("allreduce", "hierarchical", (0, 1, 2, 0, 1, 2)),
        ("allreduce", "hierarchical", (0, 0, 1, 1, 2)),
        ("broadcast", "hierarchical", (0, 0, 1, 1, 2, 2)),
        ("allreduce", "ring", (0, 0, 1, 1, 2, 2)),
    ],
)
def test_where_one_cannot_stand_for_all(collective, name, hosts):
    assert one_host_for_all(CATALOGUE[collective, name], len(hosts), 0, hosts) is None


def test_hosts_that_differ():
    @algorithm("barrier")
    def to_the_first(rank, size, hosts):
        if hosts[rank] == 0:
            for peer in range(1, size):
                if hosts[peer]:
                    yield recv(peer, chunk=0)
        else:
            yield send(0, chunk=0)

    assert one_host_for_all(to_the_first, 3, 0, (0, 1, 2)) is None
