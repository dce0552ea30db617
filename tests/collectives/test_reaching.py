"""One-sided plans: the memory of the right rank and space, one pass, nothing but what is needed."""

from __future__ import annotations

import pytest

from collectives.catalogue import CATALOGUE, REACHING, find
from collectives.lowering import lower
from collectives.proof import ProofError
from collectives.schedule import (
    Notify,
    ScheduleError,
    Wait,
    algorithm,
    copy,
    notify,
    read,
    read_reduce,
    wait,
    write,
)
from transports.plan import Instruction, Layout, Space

ALGORITHMS = {
    f"{a.collective} {a.name}": a for a in (*CATALOGUE.values(), *REACHING.values()) if a.one_sided
}
IN, OUT, SCRATCH = Space.INPUT, Space.OUTPUT, Space.SCRATCH


def planned(collective, *ranks, chunks=1, root=0):
    """The plans of an algorithm whose rank r yields the r-th of the lists."""
    keywords = {"chunks": chunks} if chunks != 1 else {}

    @algorithm(collective, name="given", one_sided=True, **keywords)
    def given(rank, size):
        yield from ranks[rank]

    return [lower(given, rank, len(ranks), root) for rank in range(len(ranks))]


def test_the_allreduce_of_three_is_one_pass_over_memory():
    plan = lower(find("allreduce", "one_sided"), 1, 3)
    assert plan.instructions == (
        Instruction((), targets=(2, 0)),
        Instruction((), sources=(0, 2)),
        Instruction(
            (1,),
            reads=((IN, 1),),
            writes=((OUT, 1),),
            own_at=1,
            peeks=((0, IN), (2, IN)),
            pokes=((0, OUT), (2, OUT)),
        ),
        Instruction((), targets=(2, 0)),
        Instruction((), sources=(0, 2)),
    )
    assert plan.one_sided and plan.remote == (IN, OUT)
    assert plan.peer_inputs == plan.peer_outputs == ((0, 1, 2),) * 3
    assert (plan.scratch, plan.widest) == ((), 1)


def test_the_broadcast_delivers_while_the_root_waits():
    algo = find("broadcast", "one_sided")
    assert lower(algo, 2, 3, root=2).instructions == (
        Instruction((), targets=(0, 1)),
        Instruction((0,), reads=((IN, 0),), writes=((OUT, 0),)),
        Instruction((), sources=(0, 1)),
    )
    assert lower(algo, 0, 3, root=2).instructions == (
        Instruction((), sources=(2,)),
        Instruction((0,), writes=((OUT, 0),), peeks=((2, IN),)),
        Instruction((), targets=(2,)),
    )
    assert lower(algo, 0, 3, root=2).peer_inputs == ((), (), (0,))


REMOTE = {
    "allreduce": (IN, OUT),
    "reduce": (IN,),
    "reduce_scatter": (IN,),
    "broadcast": (IN,),
    "gather": (IN,),
    "allgather": (IN,),
    "alltoall": (IN,),
    "reduce push": (IN, OUT),
    "broadcast push_pull": (IN, OUT),
    "scatter pull": (IN,),
    "gather push": (OUT,),
}


@pytest.mark.parametrize("algo", ALGORITHMS.values(), ids=ALGORITHMS)
def test_only_what_must_be_symmetric_is_reached_into(algo):
    for size in (1, 2, 3, 5, 8):
        for root in range(size) if algo.spec.rooted else (0,):
            plans = [lower(algo, rank, size, root) for rank in range(size)]
            for plan in plans:
                assert plan.one_sided
                remote = REMOTE.get(f"{algo.collective} {algo.name}") or REMOTE[algo.collective]
                assert plan.remote == (remote if size > 1 else ())
                assert plan.peer_inputs[plan.rank] == plan.inputs
                assert plan.peer_outputs[plan.rank] == plan.outputs
                assert plan.scratch == ()
                assert plan.peer_inputs == plans[0].peer_inputs


@pytest.mark.parametrize("algo", ALGORITHMS.values(), ids=ALGORITHMS)
def test_plans_keep_the_order_of_notifies_and_waits_and_name_chunks_that_are_there(algo):
    for size in (2, 3, 5):
        for rank in range(size):
            plan = lower(algo, rank, size)
            steps = algo.schedule(rank, size)
            told = [
                (isinstance(s, Notify), tuple(sorted(s.peers)))
                for s in steps
                if isinstance(s, Notify | Wait)
            ]
            assert told == [
                (bool(i.targets), tuple(sorted(i.targets or i.sources)))
                for i in plan.instructions
                if not i.chunks
            ]
            held = {IN: plan.peer_inputs, OUT: plan.peer_outputs}
            for each in plan.instructions:
                assert bool(each.chunks) != bool(each.sources or each.targets)
                for peer, space in (*each.peeks, *each.pokes):
                    assert peer != rank and set(each.chunks) <= set(held[space][peer])
                assert not any(space is IN for space, _ in (*each.pokes, *each.writes))


@pytest.mark.parametrize("algo", REACHING.values(), ids=REACHING)
def test_what_runs_by_the_kernel_begins_alike_on_all_ranks(algo):
    """A rank that skips what it would tell at first is one that skips to hear it."""
    for size in (2, 3, 5, 16):
        for root in (0, size - 1) if algo.spec.rooted else (0,):
            schedules = [algo.schedule(rank, size, root) for rank in range(size)]
            first = [type(steps[0]) for steps in schedules]
            if not algo.spec.rooted or algo.spec.reduces:
                assert set(first) == {Notify}
                assert all(len(steps[0].peers) == size - 1 for steps in schedules)
            else:
                assert set(first[:root] + first[root + 1 :]) == {
                    Notify if first[root] is Wait else Wait
                }


def meet(rank, size):
    others = [peer for peer in range(size) if peer != rank]
    return [notify(others), wait(others)]


def test_a_chunk_lies_in_the_input_until_anyone_writes_it():
    first, second = planned(
        "allreduce",
        [*meet(0, 2), read_reduce(1, 0), write(1, 0), *meet(0, 2), *meet(0, 2)],
        [*meet(1, 2), *meet(1, 2), write(0, 0), *meet(1, 2)],
    )
    (made,) = (i for i in first.instructions if i.chunks)
    assert (made.reads, made.peeks, made.pokes) == (((IN, 0),), ((1, IN),), ((1, OUT),))
    (sent,) = (i for i in second.instructions if i.chunks)
    assert (sent.reads, sent.writes, sent.pokes) == (((OUT, 0),), (), ((0, OUT),))
    # Rank 1 has its result from rank 0: no delivery of its own input over it.


def test_a_chunk_that_was_written_is_read_in_the_output():
    _, second = planned(
        "allreduce",
        [*meet(0, 2), read_reduce(1, 0), notify(1), wait(1)],
        [*meet(1, 2), wait(0), read(0, 0), notify(0)],
    )
    (took,) = (i for i in second.instructions if i.chunks)
    assert (took.peeks, took.writes) == (((0, OUT),), ((OUT, 0),))
    assert second.remote == (IN, OUT)


def test_chunks_that_lie_in_different_spaces_are_read_apart():
    _, second = planned(
        "allreduce",
        [copy(1, 1), *meet(0, 2), *meet(0, 2)],
        [*meet(1, 2), read_reduce(0, [0, 2, 1]), write(0, [0, 2, 1]), *meet(1, 2)],
        chunks=3,
    )
    assert [i for i in second.instructions if i.chunks] == [
        Instruction((0, 2), reads=((IN, 0), (IN, 2)), writes=((OUT, 0), (OUT, 2)), own_at=1,
                    peeks=((0, IN),), pokes=((0, OUT),)),
        Instruction((1,), reads=((IN, 1),), writes=((OUT, 1),), own_at=1,
                    peeks=((0, OUT),), pokes=((0, OUT),)),
    ]  # fmt: skip


def test_writes_of_the_same_value_are_joined_and_others_are_not():
    def moves(*steps):
        others = [*meet(1, 3), *meet(1, 3)], [*meet(2, 3), *meet(2, 3)]
        plan, *_ = planned("allreduce", [*meet(0, 3), *steps, *meet(0, 3)], *others, chunks=2)
        return [i for i in plan.instructions if i.chunks and (i.peeks or i.pokes)]

    (joined,) = moves(read_reduce([1, 2], 0), write(2, 0), write(1, 0))
    assert joined.pokes == ((1, OUT), (2, OUT)) and len(joined.peeks) == 2
    assert len(moves(read_reduce([1, 2], 0), write(1, 0), write(1, 0))) == 2
    assert len(moves(read_reduce([1, 2], 0), write(1, 1))) == 2
    (copied,) = moves(copy(0, 1), write([1, 2], 0))
    assert (copied.reads, copied.writes) == (((IN, 1),), ((OUT, 0),))


def test_what_only_peers_need_is_not_kept():
    # Rank 1 adds up for the root, whose output it writes into.
    root, other = planned(
        "reduce",
        [notify(1), wait(1)],
        [wait(0), read_reduce(0, 0), write(0, 0), notify(0)],
    )
    (made,) = (i for i in other.instructions if i.chunks)
    assert made.writes == () and made.pokes == ((0, OUT),) and other.scratch == ()
    assert not any(i.chunks for i in root.instructions)  # nothing to deliver


def test_own_scratch_serves():
    # Rank 1 needs no chunk 0 in the end, and uses it in between.
    _, other = planned(
        "reduce",
        [*meet(0, 2), *meet(0, 2)],
        [*meet(1, 2), read_reduce(0, 0), copy(0, 0), write(0, 0), *meet(1, 2)],
    )
    assert other.scratch == (0,)


def test_scratch_of_a_peer_is_out_of_reach():
    with pytest.raises(
        ScheduleError,
        match=r"reduce given, rank 0, step 2: read_reduce of chunk 0 at rank 1, which has it in "
        r"scratch; expected a chunk in its input or output",
    ):
        planned(
            "reduce",
            [wait(1), notify(2), read_reduce(1, 0), notify([1, 2])],
            [wait(2), read_reduce(2, 0), notify(0), wait(0), notify(2)],
            [notify(1), wait(0), wait(0), wait(1)],
        )
    with pytest.raises(ScheduleError, match=r"write of chunk 0 at rank 1, which has it in scratch"):
        planned("reduce", [*meet(0, 2), write(1, 0), *meet(0, 2)], [*meet(1, 2), *meet(1, 2)])


def test_only_what_is_in_order_has_a_plan():
    with pytest.raises(ProofError, match="before it has entered the call"):
        planned("allgather", [read(1, 1)], [])


def test_a_layout_is_one_pass_and_knows_where_peers_have_their_chunks():
    plan = lower(find("alltoall", "one_sided"), 0, 3)
    lengths = list(range(1, 10))
    layout = Layout(plan, lengths, slot_elements=1)
    assert (layout.passes, layout.segment) == (1, 9)
    assert [layout.extent(chunk, 0) for chunk in range(9)] == lengths
    assert layout.place_at(1, IN, 3) == slice(0, 4)
    assert layout.place_at(2, IN, 8) == slice(15, 24)
    assert layout.place_at(2, OUT, 5) == slice(3, 9)
    assert Layout(plan, [0] * 9, 1).passes == 1
    with pytest.raises(ValueError, match="expected 9 chunk lengths, found 1"):
        Layout(plan, [1], 1)
