"""Passes that overlap: what delays promise, and that they need no more slots than they say."""

from __future__ import annotations

import importlib.util
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from collectives.catalogue import CATALOGUE, find
from collectives.lowering import lower
from collectives.overlapping import MOST_MESSAGES, find_overlap
from collectives.schedule import algorithm, recv, send
from transports.plan import Instruction, Layout, Space
from transports.python_engine import Stuck


def load(name):
    """A module of this folder, which is no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


engine = load("test_python_engine")
OVERLAPPED = {
    name: algo
    for name, algo in engine.ALGORITHMS.items()
    if not algo.one_sided and lower(algo, 0, 2).delays
}


def plans_of(algo, size, root=0):
    return [lower(algo, rank, size, root) for rank in range(size)]


def channels_of(plans, attribute):
    """For each channel the delays of one end, in the order of its messages."""
    found = defaultdict(list)
    for rank, plan in enumerate(plans):
        for each, delay in zip(plan.instructions, plan.delays, strict=True):
            for peer in getattr(each, attribute):
                channel = (rank, peer) if attribute == "targets" else (peer, rank)
                found[channel].append(delay)
    return found


def test_lists_of_instructions_too_long_to_be_worth_it():
    assert lower(find("allgather", "direct"), 0, 16).delays
    assert not lower(find("allgather", "direct"), 0, 64).delays


def test_of_the_ring_of_two():
    plan = lower(find("allreduce", "ring"), 0, 2)
    assert (plan.delays, plan.in_flight) == ((0, 1, 2), 4)
    order = list(Layout(plan, [3, 3], 1, in_flight=4).order())
    assert order == [(0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2), (2, 1), (1, 2), (2, 2)]
    one_after_the_other = [(turn, index) for turn in range(3) for index in range(3)]
    assert list(Layout(plan, [3, 3], 1, in_flight=3).order()) == one_after_the_other
    assert list(Layout(plan, [1, 1], 1, in_flight=4).order()) == [(0, 0), (0, 1), (0, 2)]


def test_most_algorithms_overlap():
    assert len(OVERLAPPED) > 20
    for name in ("allreduce tree", "allgather ring", "alltoall pairwise", "broadcast tree"):
        assert name in OVERLAPPED


@pytest.mark.parametrize("algo", OVERLAPPED.values(), ids=OVERLAPPED)
def test_what_is_sent_in_one_wave_is_received_in_the_next(algo):
    for size in (2, 3, 4, 5, 8):
        for root in {0, size - 1} if algo.spec.rooted else {0}:
            plans = plans_of(algo, size, root)
            overlaps = {bool(plan.delays) for plan in plans if plan.instructions}
            assert len(overlaps) == 1, "all ranks must do alike"
            if overlaps == {False}:
                continue
            assert len({plan.in_flight for plan in plans}) == 1
            sent, received = channels_of(plans, "targets"), channels_of(plans, "sources")
            assert sent.keys() == received.keys()
            for channel, delays in sent.items():
                assert received[channel] == [delay + 1 for delay in delays]
            for plan in plans:
                assert list(plan.delays) == sorted(plan.delays)
                assert not plan.scratch
                messages = sum(bool(each.targets) for each in plan.instructions)
                assert 2 * messages <= plan.in_flight <= 2 * MOST_MESSAGES


@pytest.mark.parametrize("algo", OVERLAPPED.values(), ids=OVERLAPPED)
def test_with_no_more_slots_than_they_need(algo):
    for size in (2, 3, 4, 5):
        root = size - 1 if algo.spec.rooted else 0
        needed = lower(algo, 0, size, root).in_flight
        if needed == 0:
            continue
        lengths = engine.equal_lengths(algo, size, 7 * algo.chunk_count(size))
        for seed in range(4):
            engine.check(algo, size, root, lengths, room=2, slots=max(2, needed), seed=seed)


def test_without_them_it_would_be_stuck(monkeypatch):
    """Else the bound would be no bound, and the test above could not fail."""
    algo, size = find("allgather", "ring"), 6
    plans = plans_of(algo, size)
    assert plans[0].in_flight == 10
    taken = Layout.__init__

    def always(self, plan, lengths, slot_elements, in_flight=0):
        taken(self, plan, lengths, slot_elements, 1 << 20)

    monkeypatch.setattr(Layout, "__init__", always)
    engine.check(algo, size, 0, [20] * size, room=2, slots=10)
    with pytest.raises(Stuck):
        engine.check(algo, size, 0, [20] * size, room=2, slots=2)


def test_what_does_not_overlap():
    # More messages than engines have slots for; scratch, which holds one pass; nothing to send.
    assert not lower(find("allreduce", "ring"), 0, 8).delays
    assert (
        lower(find("gather", "tree"), 2, 4).scratch
        and not lower(find("gather", "tree"), 0, 4).delays
    )
    assert not lower(find("allreduce", "ring"), 0, 1).delays
    assert not lower(find("barrier", "tree"), 0, 4).delays

    @algorithm("broadcast")
    def by_two_ways(rank, size):
        """Rank 2 hears from rank 0 directly, then by way of rank 1, of whom it hears first."""
        if rank == 0:
            yield send(2, chunk=0)
            yield send(1, chunk=0)
        elif rank == 1:
            yield recv(0, chunk=0)
            yield send(2, chunk=0)
        elif rank == 2:
            yield recv(1, chunk=0)
            yield recv(0, chunk=0)

    assert find_overlap([plan.instructions for plan in plans_of(by_two_ways, 3)]) is None
    unanswered = [Instruction((0,), targets=(1,), reads=((Space.INPUT, 0),))]
    assert find_overlap([unanswered, []]) is None
    assert find_overlap([[], [Instruction((0,), sources=(0,))]]) is None


def test_delays_are_equal_only_where_they_must_be():
    for plan in plans_of(find("allgather", "ring"), 4):
        assert len(set(plan.delays)) == len(plan.delays)
    plans = plans_of(find("allreduce", "two_shot"), 3)
    assert any(len(set(plan.delays)) < len(plan.delays) for plan in plans)
    instructions = [plan.instructions for plan in plans]
    assert find_overlap(instructions).delays == tuple(plan.delays for plan in plans)


def test_every_collective_has_an_algorithm_that_overlaps():
    assert {algo.collective for algo in OVERLAPPED.values()} == {
        collective for collective, _ in CATALOGUE
    } - {"barrier"}
