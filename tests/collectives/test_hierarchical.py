"""Hierarchies of hosts: proved however ranks lie on them, and no byte too many leaves a host."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from harness.under_mpi import mpi_spawn
from hypothesis import given
from hypothesis import strategies as st

from collectives.algorithms.hierarchical import layout_of
from collectives.catalogue import CATALOGUE
from collectives.closed_form import evaluate
from collectives.lowering import lower
from collectives.proof import verify
from collectives.schedule import Send
from collectives.selection import hosts_table
from collectives.specs import SPECS

ALGORITHMS = {
    collective: algo for (collective, name), algo in CATALOGUE.items() if name == "hierarchical"
}
BY_NAME = pytest.mark.parametrize("algo", ALGORITHMS.values(), ids=ALGORITHMS)

LAYOUTS = [
    "a", "aa", "ab", "aabb", "abab", "abba", "aab", "abbbb", "abc", "aabbcc", "aaabbc", "aaaabbbb",
    "abcabcabca", "abcde", "aabbccddee", "abcdefg", "aaaaaab",
]  # fmt: skip


def numbered(layout):
    return tuple(sorted(set(layout)).index(host) for host in layout)


def roots_of(algo, size):
    return range(size) if algo.spec.rooted else (0,)


def leaving(algo, hosts, root):
    """Of each host, the chunks that its ranks send to others; counted here and now."""
    found = Counter(dict.fromkeys(hosts, 0))
    for rank in range(len(hosts)):
        for step in algo.schedule(rank, len(hosts), root, hosts):
            if isinstance(step, Send):
                away = [peer for peer in step.peers if hosts[peer] != hosts[rank]]
                found[hosts[rank]] += len(away) * len(step.chunks)
    return found


def test_every_collective_between_hosts_has_one():
    assert set(ALGORITHMS) == {
        "allreduce", "reduce", "broadcast", "allgather", "reduce_scatter", "barrier",
    }  # fmt: skip


@BY_NAME
@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_is_proved(algo, layout):
    hosts = numbered(layout)
    for root in roots_of(algo, len(hosts)):
        certificate = verify(algo, len(hosts), root, hosts)
        assert max(1, certificate.widest) == algo.widest_message(len(hosts), root, hosts)


@BY_NAME
@given(hosts=st.lists(st.integers(0, 3), min_size=1, max_size=12).map(tuple), data=st.data())
def test_it_is_proved_wherever_ranks_lie(algo, hosts, data):
    root = data.draw(st.integers(0, len(hosts) - 1)) if algo.spec.rooted else 0
    verify(algo, len(hosts), root, hosts)


@BY_NAME
@pytest.mark.parametrize("each", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_what_leaves_a_host_is_as_stated(algo, count, each):
    hosts = tuple(rank // each for rank in range(count * each))
    share = (
        Fraction(0) if algo.spec.chunking == "empty" else Fraction(1, algo.chunk_count(len(hosts)))
    )
    for root in {0, len(hosts) - 1} if algo.spec.rooted else {0}:
        most = max(leaving(algo, hosts, root).values())
        assert most * share == evaluate(algo.wire, h=count, n=len(hosts), s=1)


@BY_NAME
def test_uneven_hosts_send_no_more_than_they_must(algo):
    """What is not equal can have no closed form; no host sends what it has sent before."""
    for layout in ("aab", "abbbb", "aaabbc"):
        hosts = numbered(layout)
        chunks = algo.chunk_count(len(hosts)) if algo.spec.chunking != "empty" else 1
        if algo.collective == "barrier":
            continue
        most = max(leaving(algo, hosts, 0).values())
        assert most <= chunks * (2 if algo.collective == "allreduce" else 1)


def test_passes_overlap_on_a_few_hosts():
    for layout in ("ab", "aabb", "abc", "aabbcc", "aaaabbbb"):
        hosts = numbered(layout)
        plan = lower(ALGORITHMS["allreduce"], 0, len(hosts), 0, hosts)
        assert plan.delays and plan.in_flight <= 16, layout


def test_with_many_hosts_what_an_owner_adds_up_comes_one_by_one():
    many = tuple(rank // 2 for rank in range(10))
    assert len(layout_of(many).shares(0)) == 5
    assert layout_of((0, 0, 1, 1)).shares(1) == [(1, 3)]
    assert ALGORITHMS["allreduce"].widest_message(10, 0, many) == 1


def test_a_rank_that_is_nowhere():
    with pytest.raises(ValueError, match="rank 4 is on no host"):
        layout_of((0, 0, 1, 1)).place(4)


def test_the_table_for_several_hosts_names_them():
    table = hosts_table()
    for collective in SPECS:
        named = table.choose(collective, size=8, nbytes=1 << 24)
        assert (named == "hierarchical") == (collective in ALGORITHMS)


def sent_by(comm, count):
    """Bytes that left each host in one call of each, and what the table chose."""
    found = {}
    x = np.arange(count, dtype=np.float32)
    rows = np.ones((comm.size, count // comm.size), np.float32)
    for name, call in (
        ("allreduce", lambda: comm.allreduce(x, algorithm="hierarchical")),
        ("broadcast", lambda: comm.broadcast(x, root=1, algorithm="hierarchical")),
        ("reduce", lambda: comm.reduce(x, root=1, algorithm="hierarchical")),
        ("allgather", lambda: comm.allgather(rows[0], algorithm="hierarchical")),
        ("reduce_scatter", lambda: comm.reduce_scatter(rows, algorithm="hierarchical")),
    ):
        before = comm.wire_bytes
        call()
        comm.barrier()
        mine = comm.wire_bytes - before
        found[name] = sum(comm.local.allgather_object(mine))
    comm.local.close()
    return comm.hosts[comm.rank], found


@pytest.mark.parametrize("hosts", ["aabb", "abcabc"])
def test_bytes_on_the_wire_are_counted_and_equal_the_formula(hosts):
    count = 120_000
    each = mpi_spawn(sent_by, len(hosts), count, hosts=hosts)
    for name, algo in ALGORITHMS.items():
        if name != "barrier":
            most = max(found[name] for _, found in each)
            assert most == evaluate(algo.wire, h=len(set(hosts)), s=4 * count), name


def parts(comm):
    """`local` and `cross`, and what they add up."""
    mine = np.array([comm.rank])
    again = comm.local is comm.local and comm.cross is comm.cross
    found = (comm.local.allreduce(mine)[0], comm.cross.allreduce(mine)[0])
    shown = (comm.local.rank, comm.local.size, comm.cross.rank, comm.cross.size)
    comm.close()
    closed = comm.local._engine.closed and comm.cross._engine.closed
    return again, found, shown, comm.local.transport, closed


def test_local_and_cross():
    found = mpi_spawn(parts, 5, hosts="aabba")
    sums = [(5, 2), (5, 4), (5, 2), (5, 4), (5, 4)]
    assert [each[1] for each in found] == sums
    assert [each[2] for each in found] == [
        (0, 3, 0, 2), (1, 3, 0, 2), (0, 2, 1, 2), (1, 2, 1, 2), (2, 3, 0, 1),
    ]  # fmt: skip
    assert all(again and transport == "shm" and closed for again, _, _, transport, closed in found)
