"""The model machine says what the closed forms say, exactly; every way of running it agrees."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectives.catalogue import CATALOGUE, find
from collectives.closed_form import evaluate
from collectives.cost import simulation
from collectives.cost.actions import as_programs
from collectives.cost.comparison import SIZES, able_algorithms, model_seconds, reigns
from collectives.cost.forest import finish_times
from collectives.cost.links import Link, Links, parse_links, spread_over
from collectives.cost.machine import Stuck, run_machine
from collectives.cost.simulation import run_simulation, share_of
from collectives.cost.tracing import trace
from collectives.schedule import ScheduleError, algorithm, copy, recv, recv_reduce, send

ALGORITHMS = {f"{a.collective} {a.name}": a for a in CATALOGUE.values()}
RATES = ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 10, 1), (3, 2, 7))


def links_of(alpha, beta, gamma):
    return Links(inside=Link(alpha=Fraction(alpha), beta=Fraction(beta), gamma=Fraction(gamma)))


@pytest.mark.parametrize("algo", ALGORITHMS.values(), ids=ALGORITHMS)
def test_the_simulation_is_the_closed_form(algo, full):
    for size in (*range(1, 10), 12, 16, 17) if not full else range(1, 34):
        for root in {0, size // 2} if algo.spec.rooted else {0}:
            for alpha, beta, gamma in RATES:
                found = run_simulation(algo, size, 1, links_of(alpha, beta, gamma), root)
                assert isinstance(found.seconds, Fraction)
                assert found.seconds == evaluate(
                    algo.cost, n=size, s=1, alpha=alpha, beta=beta, gamma=gamma
                ), (size, root, alpha, beta, gamma)


@pytest.mark.parametrize("algo", ALGORITHMS.values(), ids=ALGORITHMS)
def test_the_critical_path_adds_up(algo):
    for size in (2, 5, 8):
        found = run_simulation(algo, size, 1, links_of(1, 10, 1))
        share = share_of(algo, size, 1)
        messages, moved, reduced = found.composition()
        assert messages + 10 * moved * share + reduced * share == found.seconds
        assert [leg.begin for leg in found.path[1:]] == [leg.end for leg in found.path[:-1]]
        assert found.path[0].begin == 0 and found.path[-1].end == found.seconds


@pytest.mark.parametrize("algo", ALGORITHMS.values(), ids=ALGORITHMS)
def test_one_rank_stands_for_all_only_where_that_is_exact(algo):
    for size in (3, 4, 7, 8):
        groups = trace(algo, size)
        links, share = links_of(1, 10, 3), share_of(algo, size, 1)
        ends = {
            uniform: max(hop.end for hop in run_machine(as_programs(groups, size, uniform=uniform),
                                                links, share))
            for uniform in (True, False)
        }  # fmt: skip
        assert ends[True] == ends[False]


def test_symmetric_algorithms_are_simulated_by_one_rank():
    for name in ("ring", "one_shot", "two_shot"):
        assert run_simulation(find("allreduce", name), 8, 1).method == "all ranks alike"
    assert run_simulation(find("allreduce", "tree"), 8, 1).method == "event by event"


@pytest.mark.parametrize("algo", ALGORITHMS.values(), ids=ALGORITHMS)
def test_rank_by_rank_is_event_by_event(algo):
    for size in (1, 2, 3, 5, 8):
        root = size - 1 if algo.spec.rooted else 0
        links, share = links_of(1, 10, 3), share_of(algo, size, 1)
        groups = trace(algo, size, root)
        done = finish_times(groups, size, links, share)
        if done is not None:
            assert max(done) == run_simulation(algo, size, 1, links, root).seconds
    forests = ("chain", "linear", "tree") if algo.collective == "broadcast" else ("chain",)
    if algo.collective in ("broadcast", "reduce") and algo.name in forests:
        assert done is not None


def test_many_messages_are_simulated_rank_by_rank(monkeypatch):
    monkeypatch.setattr(simulation, "_FOREST_FROM", 10)
    for key in (("reduce", "chain"), ("gather", "ring"), ("broadcast", "tree")):
        algo = find(*key)
        found = run_simulation(algo, 13, 1 << 20, root=3)
        rates = Links().inside
        form = evaluate(
            algo.cost, n=13, s=1 << 20, alpha=rates.alpha, beta=rates.beta, gamma=rates.gamma
        )
        assert found.method == "rank by rank" and found.path is None
        assert float(found.seconds) == pytest.approx(float(form))
        with pytest.raises(ValueError, match="the critical path was not traced"):
            found.composition()
    assert run_simulation(find("gather", "linear"), 13, 1).method == "event by event"


def test_thousands_of_ranks_are_no_matter():
    ring = find("allreduce", "ring")
    found = run_simulation(ring, 1024, 1024, links_of(1, 10, 3))
    assert found.seconds == evaluate(ring.cost, n=1024, s=1024, alpha=1, beta=10, gamma=3)
    assert len(found.path) == 2 * 1023


@pytest.mark.parametrize("algo", ALGORITHMS.values(), ids=ALGORITHMS)
def test_traced_steps_are_those_of_the_schedule(algo):
    for size in (1, 2, 3, 6, 8, 11):
        root = size // 2 if algo.spec.rooted else 0
        seen = np.zeros(size, int)
        for group in trace(algo, size, root):
            for lane, rank in enumerate(group.ranks.tolist()):
                seen[rank] += 1
                steps = algo.schedule(rank, size, root)
                assert len(steps) == len(group.steps)
                for step, traced in zip(steps, group.steps, strict=True):
                    peers = [int(p if isinstance(p, int) else p[lane]) for p in traced.peers]
                    stated = getattr(step, "peers", None) or (step.peer,)
                    assert (type(step), stated) == (traced.kind, tuple(peers))
                    assert len(step.chunks) == traced.chunks
        assert (seen == 1).all()


def test_whatever_an_author_does_with_the_rank_is_traced():
    @algorithm("broadcast", name="odd")
    def odd(rank, size, root):
        table = {0: "none"} | {place: f"{place:02d}" for place in range(1, size)}
        assert table[rank] and f"{rank}" and f"{rank!r}"
        half = int(rank / 2) if rank % 2 else rank**1 // 2
        assert (-rank, ~rank, abs(rank), +rank) == (-rank, -rank - 1, rank, rank)
        assert divmod(rank, 2) == (half, rank & 1) and rank.bit_length() >= 0
        assert rank == rank + 0.0 and float(rank) == rank and 3 - rank + rank == 3
        assert 2**rank == 1 << rank and 6 / (rank + 1) == 6 / (1 + rank) and divmod(9, rank + 1)
        assert 1.5 + rank == rank + 1.5 and [5] * (rank - rank) == []
        if not rank:
            yield send(list(range(1, size)), chunk=0)
        else:
            yield recv(rank - rank, chunk=0)

    found = run_simulation(odd, 6, 1, links_of(1, 10, 1))
    assert found.seconds == 5 * 11


def test_work_on_the_own_memory_takes_its_time():
    @algorithm("broadcast", name="copying", chunks=2)
    def copying(rank, size, root):
        if rank == 0:
            yield copy(to=1, source=0)
            yield send(1, chunk=[0, 1])
        if rank == 1:
            yield recv(0, chunk=[0, 1])

    found = run_simulation(copying, 2, 4, links_of(1, 10, 3))
    assert found.seconds == 2 * 3 + 1 + 4 * 10
    assert [leg.message for leg in found.path] == [False, True]


def test_links_differ_by_level():
    algo = find("allreduce", "ring")
    near, far = Link(alpha=Fraction(1)), Link(alpha=Fraction(10))
    uniform = Links(inside=near, hosts=(0, 0, 1, 1))
    assert run_simulation(algo, 4, 1, uniform).seconds == 6
    assert run_simulation(algo, 4, 1, replace(uniform, between=far)).seconds > 6
    assert run_simulation(algo, 4, 1, replace(uniform, between=near)).method == "all ranks alike"
    found = run_simulation(find("broadcast", "linear"), 4, 1, replace(uniform, between=far))
    assert found.seconds == 1 + 10 + 10
    assert model_seconds(find("broadcast", "linear"), 4, 1, replace(uniform, between=far)) == 21


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(ValueError, match="links name the hosts of 2 ranks, expected 3"):
        run_simulation(find("allreduce", "ring"), 3, 1, Links(hosts=(0, 1)))
    with pytest.raises(ValueError, match=r"root must be in 0\.\.2, found 3"):
        run_simulation(find("broadcast", "tree"), 3, 1, root=3)

    @algorithm("broadcast", name="lonely")
    def lonely(rank, size, root):
        if rank == 0:
            yield send(1, chunk=0)

    @algorithm("broadcast", name="hoping")
    def hoping(rank, size, root):
        if rank == 1:
            yield recv(0, chunk=0)

    @algorithm("broadcast", name="astray")
    def astray(rank, size, root):
        if rank > 0:
            yield send(rank + 1, chunk=0)

    with pytest.raises(Stuck, match="rank 0 sends what nobody takes, at step 0"):
        run_simulation(lonely, 2, 1)
    with pytest.raises(Stuck, match="rank 1 waits for what nobody sends, at step 0"):
        run_simulation(hoping, 2, 1)
    with pytest.raises(ScheduleError, match=r"rank 3 of 4, step 0: peer must be in 0\.\.3"):
        run_simulation(astray, 4, 1)


def test_the_first_posted_enters_first_and_takes_keep_their_order():
    @algorithm("reduce", name="both")
    def both(rank, size, root):
        if rank == 0:
            yield recv_reduce([1, 2], chunk=0)
            yield recv_reduce(3, chunk=0)
        elif rank == 1:  # comes later than rank 3, but is asked for first
            yield recv_reduce(2, chunk=0)
            yield send(0, chunk=0)
        elif rank == 2:
            yield send([1, 0], chunk=0)
        else:
            yield send(0, chunk=0)

    found = run_simulation(both, 4, 1, links_of(1, 0, 0))
    assert found.seconds == 4
    assert [(leg.source, leg.target) for leg in found.path] == [(2, 1), (2, 0), (1, 0), (3, 0)]


@given(st.integers(2, 40), st.integers(1, 1 << 30))
def test_any_size_and_bytes(size, nbytes):
    for key in (("allreduce", "double_binary_tree"), ("allgather", "bruck")):
        algo = find(*key)
        found = run_simulation(algo, size, nbytes, links_of(1, 10, 1))
        assert found.seconds == evaluate(algo.cost, n=size, s=nbytes, alpha=1, beta=10, gamma=1)


def test_the_quickest_are_found_without_simulating_every_one_at_every_size():
    links = parse_links("between: alpha=10us,beta=1ns", spread_over(9, 3))
    for collective in ("allreduce", "reduce_scatter"):
        algorithms = able_algorithms(collective, 9)
        told = []
        found = reigns(algorithms, 9, links, sizes=SIZES[::3],
                       notice=lambda *what, told=told: told.append(what))  # fmt: skip
        assert len(told) == len(set(told)) < len(algorithms) * len(SIZES[::3])
        for nbytes in SIZES[::3]:
            times = [model_seconds(algo, 9, nbytes, links) for algo in algorithms]
            (reign,) = (each for each in found if each.least <= nbytes <= each.most)
            assert reign.algorithm is algorithms[times.index(min(times))]
            assert reign.least != nbytes or reign.seconds == min(times)


def test_algorithms_are_compared_by_size():
    algorithms = able_algorithms("allreduce", 16)
    assert not any(algo.one_sided for algo in algorithms)
    assert len(able_algorithms("allreduce", 16, one_sided=True)) > len(algorithms)
    found = reigns(algorithms, 16, Links(), sizes=[8, 64, 1 << 20, 1 << 28])
    assert [found[0].least, found[-1].most] == [8, 1 << 28]
    assert found[0].algorithm.name == "recursive_doubling"
    for each in found:
        seconds = [model_seconds(algo, 16, each.least, Links()) for algo in algorithms]
        assert each.seconds == min(seconds)
