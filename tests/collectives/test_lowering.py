"""A plan keeps the schedule's meaning: input untouched, steps fused, nothing stored in vain.

Those of one-sided algorithms are tested in test_reaching.py.
"""

from __future__ import annotations

import pytest

from collectives.catalogue import CATALOGUE, find
from collectives.lowering import lower
from collectives.schedule import (
    Recv,
    RecvReduce,
    ScheduleError,
    Send,
    algorithm,
    copy,
    recv,
    recv_reduce,
    send,
)
from transports.plan import Instruction, Layout, Space, split_evenly

ALGORITHMS = {f"{a.collective} {a.name}": a for a in CATALOGUE.values() if not a.one_sided}
IN, OUT, SCRATCH, NOWHERE = Space.INPUT, Space.OUTPUT, Space.SCRATCH, Space.NOWHERE


def plans(algo):
    for size in (1, 2, 3, 4, 5, 6, 8, 9):
        for root in range(size) if algo.spec.rooted else (0,):
            for rank in range(size):
                yield lower(algo, rank, size, root), algo.schedule(rank, size, root)


def planned(collective, *steps, chunks=1, rank=0, size=2, root=0):
    keywords = {"chunks": chunks} if chunks != 1 else {}

    @algorithm(collective, **keywords)
    def given(rank, size):
        if rank == planned_rank:
            yield from steps

    planned_rank = rank
    return lower(given, rank, size, root)


def test_the_ring_of_three_is_five_passes_over_memory():
    # Rank 0 of an allreduce. In every pass but the first a receive and a send are one.
    assert lower(find("allreduce", "ring"), 0, 3).instructions == (
        Instruction((2,), targets=(1,), reads=((IN, 2),)),
        Instruction((1,), (2,), (1,), reads=((IN, 1),), own_at=0),
        Instruction((0,), (2,), (1,), reads=((IN, 0),), writes=((OUT, 0),), own_at=0),
        Instruction((2,), (2,), (1,), writes=((OUT, 2),)),
        Instruction((1,), (2,), writes=((OUT, 1),)),
    )


@pytest.mark.parametrize("algo", ALGORITHMS.values(), ids=ALGORITHMS)
def test_input_is_never_written_and_nothing_is_read_before_it_is_there(algo):
    for plan, _ in plans(algo):
        there = {(IN, chunk) for chunk in plan.inputs}
        for each in plan.instructions:
            assert set(each.reads) <= there
            assert not any(space is IN for space, _ in each.writes)
            there |= set(each.writes)
            for places in (each.reads, each.writes):
                assert [chunk for _, chunk in places] in ([], list(each.chunks)) or (
                    not each.sources and not each.targets  # a copy within the rank
                )
        if algo.spec.chunking != "empty":
            assert {(OUT, chunk) for chunk in plan.outputs} <= there


@pytest.mark.parametrize("algo", ALGORITHMS.values(), ids=ALGORITHMS)
def test_messages_are_those_of_the_schedule_in_its_order(algo):
    for plan, steps in plans(algo):
        sent = [(s.peers, s.chunks) for s in steps if isinstance(s, Send)]
        assert [(i.targets, i.chunks) for i in plan.instructions if i.targets] == sent
        taken = [
            ((s.peer,) if isinstance(s, Recv) else tuple(sorted(s.peers)), s.chunks)
            for s in steps
            if isinstance(s, Recv | RecvReduce)
        ]
        assert [(i.sources, i.chunks) for i in plan.instructions if i.sources] == taken


@pytest.mark.parametrize("algo", ALGORITHMS.values(), ids=ALGORITHMS)
def test_every_store_is_read_again_or_is_the_result(algo):
    for plan, _ in plans(algo):
        wanted = {(OUT, chunk) for chunk in plan.outputs}
        for each in reversed(plan.instructions):
            for place in each.writes:
                assert place[0] is NOWHERE or place in wanted
                wanted.discard(place)
            wanted |= set(each.reads)


@pytest.mark.parametrize("algo", ALGORITHMS.values(), ids=ALGORITHMS)
def test_scratch_is_for_what_is_kept_yet_is_no_result(algo):
    for plan, _ in plans(algo):
        used = {c for i in plan.instructions for space, c in i.writes if space is SCRATCH}
        assert set(plan.scratch) == used
        assert not used & set(plan.outputs) or algo.spec.chunking == "empty"
        assert plan.widest == algo.widest_message(plan.size)


FREE_OF_SCRATCH = [
    ("allreduce", name) for name in ("ring", "tree", "two_shot", "one_shot", "halving_doubling")
] + [("reduce_scatter", "ring"), ("broadcast", "tree"), ("broadcast", "chain"), ("reduce", "chain")]


@pytest.mark.parametrize("key", FREE_OF_SCRATCH, ids=" ".join)
def test_some_algorithms_need_no_scratch(key):
    for plan, _ in plans(CATALOGUE[key]):
        assert plan.scratch == ()


def test_a_relay_keeps_nothing():
    # The middle of a reducing chain: add, hand on, forget.
    plan = lower(find("reduce", "chain"), 1, 3)
    assert plan.instructions == tuple(
        Instruction((piece,), (2,), (0,), reads=((IN, piece),)) for piece in range(6)
    )


def test_a_subtree_is_kept_in_scratch_till_it_is_sent():
    # Rank 2 of 4 takes chunks 2 and 3 of a scatter, keeps 2 and sends 3 on.
    plan = lower(find("scatter", "tree"), 2, 4)
    assert plan.scratch == (3,)
    assert plan.instructions == (
        Instruction((2, 3), (0,), writes=((OUT, 2), (SCRATCH, 3))),
        Instruction((3,), targets=(3,), reads=((SCRATCH, 3),)),
    )


def test_a_store_that_is_overwritten_is_none():
    plan = planned("broadcast", recv(1, [0, 1]), recv(1, 1), chunks=2, root=1)
    assert plan.instructions == (
        Instruction((0, 1), (1,), writes=((OUT, 0), (NOWHERE, 1))),
        Instruction((1,), (1,), writes=((OUT, 1),)),
    )


def test_a_copy_that_nobody_reads_is_dropped():
    assert planned("reduce", copy(0, 1), chunks=2, root=1).instructions == ()


def test_what_is_sent_is_delivered_on_the_way():
    assert lower(find("allgather", "ring"), 0, 2).instructions == (
        Instruction((0,), targets=(1,), reads=((IN, 0),), writes=((OUT, 0),)),
        Instruction((1,), (1,), writes=((OUT, 1),)),
    )
    assert lower(find("alltoall", "pairwise"), 0, 2).instructions == (
        Instruction((1,), targets=(1,), reads=((IN, 1),)),
        Instruction((0,), reads=((IN, 0),), writes=((OUT, 0),)),  # before it waits
        Instruction((2,), (1,), writes=((OUT, 2),)),
    )
    # What was sent and then overwritten is delivered by whoever wrote it.
    plan = planned("allreduce", send(1, 0), recv(1, 0), chunks=1)
    assert [each.writes for each in plan.instructions] == [(), ((OUT, 0),)]


def test_what_stays_is_delivered_by_one_copy():
    plan = lower(find("allreduce", "ring"), 0, 1)
    assert plan.instructions == (Instruction((0,), reads=((IN, 0),), writes=((OUT, 0),)),)
    assert lower(find("barrier", "ring"), 0, 1).instructions == ()


def test_only_the_very_next_send_of_the_same_chunks_is_fused():
    steps = recv_reduce(1, 0), send(1, 1), send(1, 0)
    assert [each.targets for each in planned("allreduce", *steps, chunks=2).instructions] == [
        (), (1,), (1,)
    ]  # fmt: skip
    together = recv_reduce(1, [0, 1]), send(1, [0, 1]), send(1, [0, 1])
    fused, again = planned("allreduce", *together, chunks=2).instructions
    assert fused.sources == fused.targets == (1,)
    assert again.sources == () and again.reads == ((OUT, 0), (OUT, 1))
    other_order = recv_reduce(1, [0, 1]), send(1, [1, 0])
    assert len(planned("allreduce", *other_order, chunks=2).instructions) == 2


def test_operands_stand_in_rank_order():
    (plan,) = planned("reduce", recv_reduce([3, 0, 1], 0), rank=2, root=2, size=4).instructions
    assert (plan.sources, plan.own_at) == ((0, 1, 3), 2)


def test_a_copy_keeps_its_places():
    plan = planned("allreduce", copy(0, 1), chunks=2)
    assert plan.instructions[0] == Instruction((0,), reads=((IN, 1),), writes=((OUT, 0),))


def test_reading_what_is_not_held_is_refused():
    with pytest.raises(ScheduleError, match="rank 0: reads chunk 1, which it does not hold"):
        planned("allgather", send(1, 1))


def test_reducing_where_nothing_is_reduced_is_refused():
    with pytest.raises(ScheduleError, match="does not reduce; expected recv"):
        planned("allgather", recv_reduce(1, 0))


def test_a_layout_refuses_lengths_that_do_not_fit():
    plan = lower(find("allgather", "tree"), 0, 4)
    with pytest.raises(ValueError, match="expected 4 chunk lengths, found 3"):
        Layout(plan, [1, 1, 1], 16)
    with pytest.raises(ValueError, match="must not be negative, found -2"):
        Layout(plan, [1, 1, -2, 1], 16)
    with pytest.raises(ValueError, match="3 elements cannot hold a message of 4 chunks"):
        Layout(plan, [1] * 4, 3)


def test_a_layout_cuts_chunks_into_segments():
    layout = Layout(lower(find("allgather", "tree"), 1, 4), [5, 0, 2, 3], 8)
    assert (layout.segment, layout.passes) == (2, 3)
    assert [layout.extent(0, turn) for turn in range(3)] == [2, 2, 1]
    assert [layout.extent(3, turn) for turn in range(3)] == [2, 1, 0]
    assert layout.place(OUT, 3, 1) == slice(9, 10)
    assert (layout.input_elements, layout.output_elements) == (0, 10)
    assert Layout(lower(find("barrier", "ring"), 0, 2), [0], 8).passes == 1


def test_an_even_split_differs_by_one_at_most():
    assert split_evenly(7, 3) == (3, 2, 2)
    assert split_evenly(2, 4) == (1, 1, 0, 0)
    assert split_evenly(0, 2) == (0, 0)
