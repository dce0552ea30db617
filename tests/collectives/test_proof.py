"""Every catalogued algorithm holds; every kind of fault is found and named."""

from __future__ import annotations

import pytest

from collectives.catalogue import CATALOGUE, find
from collectives.proof import ProofError, verify
from collectives.proof.expressions import Expressions
from collectives.proof.verification import verify_schedules
from collectives.schedule import ScheduleError, algorithm, copy, recv, recv_reduce, send
from transports.errors import CollectiveError

ALGORITHMS = {f"{a.collective} {a.name}": a for a in CATALOGUE.values()}


@pytest.mark.parametrize("algo", ALGORITHMS.values(), ids=ALGORITHMS)
def test_every_algorithm_holds_at_every_size_and_root(algo):
    for size in range(1, 33):
        if not algo.spec.rooted:
            certificate = verify(algo, size)
            assert certificate.roots == (0,)
        elif size <= 9:
            certificate = verify(algo, size)
            assert certificate.roots == tuple(range(size))
        else:
            for root in (0, 1, size // 2, size - 1):
                certificate = verify(algo, size, root)
                assert certificate.roots == (root,)
        assert (certificate.collective, certificate.size) == (algo.collective, size)
        assert certificate.algorithm == algo.name


@pytest.mark.full
@pytest.mark.parametrize("algo", ALGORITHMS.values(), ids=ALGORITHMS)
def test_every_algorithm_holds_at_larger_sizes(algo):
    for size in (33, 39, 48, 63, 64, 65, 100, 127, 128):
        verify(algo, size, size // 3 if algo.spec.rooted else None)


def test_hosts_reach_the_algorithm():
    @algorithm("broadcast")
    def fussy(rank, size, root, hosts):
        others = [r for r in range(size) if hosts[r] != hosts[root]]
        if rank == root:
            yield send(others, chunk=0)
        elif rank in others:
            yield recv(root, chunk=0)

    verify(fussy, 3, root=0, hosts=[0, 1, 1])
    with pytest.raises(ProofError, match="rank 1, chunk 0"):
        verify(fussy, 3, root=0, hosts=[0, 0, 1])


RANK_ORDER = {
    "ring": False,
    "tree": False,
    "double_binary_tree": False,
    "one_shot": True,
    "two_shot": False,
    "recursive_doubling": False,
    "halving_doubling": False,
}


def test_rank_order_is_seen():
    # ((x0 + x1) + x2): of one pass over all, not of x0 + x1 and x2 + x3 added up.
    for name, expected in RANK_ORDER.items():
        assert verify(find("allreduce", name), 5).rank_order is expected
    assert verify(find("allreduce", "ring"), 2).rank_order
    assert verify(find("reduce", "linear"), 5).rank_order


def test_a_pass_over_three_is_not_two_passes():
    expressions = Expressions()
    a, b, c = (expressions.leaf(rank, 0) for rank in range(3))
    ab = expressions.fold([a, b])
    assert ab == expressions.fold([a, b])
    # Which of two NaNs a sum keeps, or whether +0 or -0 is the larger, is a matter of order.
    assert ab != expressions.fold([b, a])
    assert expressions.fold([ab, c]) != expressions.fold([c, ab])
    assert expressions.fold([a, b, c]) != expressions.fold([ab, c])
    assert expressions.fold([a, b, c]) != expressions.fold([a, c, b])
    assert expressions.fold([ab, c]) != expressions.fold([a, expressions.fold([b, c])])
    assert expressions.fold([a]) == a
    assert expressions.contributions(expressions.fold([ab, ab, c])) == {
        (0, 0): 2,
        (1, 0): 2,
        (2, 0): 1,
    }
    assert expressions.describe(expressions.fold([ab, c])) == "((x0[0] + x1[0]) + x2[0])"


def test_a_long_sum_is_described_in_short():
    expressions = Expressions()
    text = expressions.describe(expressions.fold([expressions.leaf(r, 0) for r in range(99)]))
    assert text.startswith("(x0[0] + x1[0] + ") and text.endswith("...") and len(text) == 120


def schedules_of(collective, *ranks, chunks=1):
    """An algorithm whose rank r yields the r-th of the lists."""
    keywords = {"chunks": chunks} if chunks != 1 else {}

    @algorithm(collective, name="planted", **keywords)
    def planted(rank, size):
        yield from ranks[rank]

    return planted


def refused(algo, size):
    with pytest.raises(ProofError) as caught:
        verify(algo, size)
    assert isinstance(caught.value, CollectiveError)
    assert f"{algo.collective} {algo.name}, {size} ranks" in str(caught.value)
    return caught.value


def test_a_name_is_no_algorithm():
    with pytest.raises(TypeError, match="expected what @algorithm made, found 'ring'"):
        verify("ring", 2)


def test_a_missing_contribution():
    algo = schedules_of(
        "allreduce",
        [send([1, 2], 0), recv_reduce(1, 0)],
        [send([0, 2], 0), recv_reduce(0, 0)],
        [recv_reduce([0, 1], 0)],
    )
    error = refused(algo, 3)
    assert (error.rank, error.step, error.chunk) == (0, None, 0)
    assert "a chunk ends wrong: rank 0, chunk 0" in str(error)
    assert error.expected == "the contribution of each of ranks [0, 1, 2] once"
    assert error.found == "nothing of rank 2"


def test_a_double_contribution():
    swap = [send(1, 0), recv_reduce(1, 0)], [send(0, 0), recv_reduce(0, 0)]
    error = refused(schedules_of("allreduce", swap[0] * 2, swap[1] * 2), 2)
    assert "rank 0's 2 times, rank 1's 2 times" in error.found


def test_a_contribution_of_another_chunk():
    algo = schedules_of(
        "broadcast",
        [send(1, [0, 1])],
        [recv(0, [0, 1]), copy(1, 0)],
        chunks=2,
    )
    error = refused(algo, 2)
    assert (error.rank, error.chunk) == (1, 1)
    assert error.found == "nothing of rank 0, chunk 0 of rank 0"


def test_no_value_at_all():
    error = refused(schedules_of("broadcast", [], []), 2)
    assert (error.rank, error.chunk, error.found) == (1, 0, "no value at all")


def test_different_sums_are_different_bits():
    # Rank 0 adds (x0 + x1) + x2, rank 1 x0 + (x1 + x2).
    algo = schedules_of(
        "allreduce",
        [send(1, 0), recv_reduce(1, 0), recv_reduce(2, 0), send(2, 0)],
        [send(0, 0), recv_reduce(2, 0), recv_reduce(0, 0)],
        [send([0, 1], 0), recv(0, 0)],
    )
    error = refused(algo, 3)
    assert "ranks end with different sums, so with different bits" in str(error)
    assert error.rank == 1 and error.expected.endswith("as on rank 0")


def test_a_message_that_is_never_received():
    error = refused(schedules_of("barrier", [send(1, 0), recv(1, 0)], [send(0, 0)]), 2)
    assert "a message is never received" in str(error)
    assert (error.rank, error.step, error.found) == (0, 0, "none")
    assert error.expected == "a receive from rank 0 in the schedule of rank 1"


def test_a_wait_for_a_rank_that_has_ended():
    algo = schedules_of("barrier", [send(1, 0), recv(1, 0), recv(1, 0)], [send(0, 0), recv(0, 0)])
    error = refused(algo, 2)
    assert "a rank waits for one that has ended" in str(error)
    assert (error.rank, error.step) == (0, 2)
    assert error.found == "rank 0 at step 2 waits for a message of rank 1; rank 1 has ended"


def test_a_circle_of_waits():
    algo = schedules_of(
        "barrier",
        [recv(2, 0), send(1, 0)],
        [recv(0, 0), send(2, 0)],
        [recv(1, 0), send(0, 0)],
    )
    error = refused(algo, 3)
    assert "the ranks dead-lock" in str(error)
    assert error.found == (
        "rank 0 at step 0 waits for a message of rank 2; rank 2 at step 0 waits for a message of "
        "rank 1; rank 1 at step 0 waits for a message of rank 0"
    )


@pytest.mark.parametrize("size", [3, 4, 8])
def test_sending_to_all_before_receiving_is_refused(size):
    @algorithm("allgather")
    def hasty(rank, size):
        for peer in range(size):
            if peer != rank:
                yield send(peer, chunk=rank)
        for peer in range(size):
            if peer != rank:
                yield recv(peer, chunk=peer)

    error = refused(hasty, size)
    assert "the ranks dead-lock" in str(error)
    assert error.step == 1
    assert f"rank {error.rank} at step 1 cannot send until rank" in error.found
    assert "takes what it sent at step 0" in error.found


def test_other_chunks_than_the_receive_names():
    algo = schedules_of("broadcast", [send(1, 0), send(1, 1)], [recv(0, 1), recv(0, 0)], chunks=2)
    error = refused(algo, 2)
    assert "a message carries other chunks than its receive names" in str(error)
    assert (error.rank, error.step, error.chunk) == (1, 0, 1)
    assert (error.expected, error.found) == ("chunks [1]", "chunks [0] (step 0 of rank 0)")


def test_a_chunk_that_the_rank_does_not_hold():
    error = refused(schedules_of("allgather", [send(1, 1)], [recv(0, 1)]), 2)
    assert "a step reads a chunk that its rank does not hold" in str(error)
    assert (error.rank, error.step, error.chunk) == (0, 0, 1)
    assert (error.expected, error.found) == ("one of chunks [0]", "chunk 1")


def test_a_reduction_where_nothing_is_reduced():
    error = refused(schedules_of("broadcast", [send(1, 0)], [recv_reduce(0, 0)]), 2)
    assert "the collective does not reduce" in str(error)
    assert (error.rank, error.step, error.expected, error.found) == (1, 0, "recv", "recv_reduce")


def test_a_barrier_that_a_rank_leaves_too_early():
    error = refused(schedules_of("barrier", [recv(1, 0)], [send(0, 0)]), 2)
    assert "a rank leaves too early" in str(error)
    assert (error.rank, error.found) == (1, "nothing of rank [0]")


def test_a_message_wider_than_declared():
    @algorithm("broadcast", chunks=3, widest=lambda size: 2)
    def fat(rank, size, root):
        others = [peer for peer in range(size) if peer != root]
        if rank != root:
            yield recv(root, range(3))
        elif others:
            yield send(others, range(3))

    error = refused(fat, 2)
    assert "a message is wider than declared" in str(error)
    assert (error.expected, error.found) == ("at most 2 chunks", "3 chunks")


def test_what_is_no_schedule_is_refused_as_such():
    with pytest.raises(ScheduleError, match="chunk must be"):
        verify(schedules_of("allreduce", [send(1, 7)], []), 2)
    with pytest.raises(ValueError, match="not written for size 0"):
        verify(find("allreduce", "ring"), 0)


def test_given_schedules_are_proved_as_they_are():
    ring = find("allreduce", "ring")
    schedules = [ring.schedule(rank, 3) for rank in range(3)]
    assert verify_schedules(ring, schedules) is False  # not in rank order
    with pytest.raises(ProofError):
        verify_schedules(ring, [schedules[0], schedules[1], schedules[2][:-1]])
