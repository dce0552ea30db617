"""One-sided steps: every race, and every access before an entry or after an end, is named."""

from __future__ import annotations

import pytest

from collectives.proof import ProofError, verify
from collectives.proof.ordering import Ordering
from collectives.schedule import algorithm, copy, notify, read, read_reduce, wait, write


def schedules_of(collective, *ranks, chunks=1):
    """A one-sided algorithm whose rank r yields the r-th of the lists."""
    keywords = {"chunks": chunks} if chunks != 1 else {}

    @algorithm(collective, name="planted", one_sided=True, **keywords)
    def planted(rank, size):
        yield from ranks[rank]

    return planted


def refused(algo, size=2):
    with pytest.raises(ProofError) as caught:
        verify(algo, size)
    assert f"{algo.collective} {algo.name}, {size} ranks" in str(caught.value)
    return caught.value


def test_what_is_in_order_holds():
    # Rank 1 reads what rank 0 has, changes it there, and rank 0 sees it.
    algo = schedules_of(
        "allreduce",
        [notify(1), wait(1)],
        [wait(0), read_reduce(0, 0), write(0, 0), notify(0)],
    )
    certificate = verify(algo, 2)
    assert (certificate.messages, certificate.chunks_sent, certificate.widest) == (1, 2, 1)
    assert certificate.rank_order


def test_order_goes_through_others():
    # Rank 2 hears of rank 0 from rank 1 alone, and rank 0 of rank 2 likewise.
    algo = schedules_of(
        "broadcast",
        [notify(1), wait(1)],
        [wait(0), read(0, 0), notify(2), wait(2), notify(0)],
        [wait(1), read(0, 0), notify(1)],
    )
    verify(algo, 3, root=0)


def test_a_read_before_the_write_it_needs():
    # Rank 2 reads at rank 1 what rank 0 writes there, and no notify says when.
    algo = schedules_of(
        "broadcast",
        [wait([1, 2]), write(1, 0), notify([1, 2]), wait([1, 2])],
        [notify([0, 2]), wait([0, 2]), notify(0)],
        [notify(0), wait(1), read(1, 0), wait(0), notify([0, 1])],
    )
    with pytest.raises(ProofError, match="a step reads a chunk that rank 1 does not hold") as one:
        verify(algo, 3, root=0)
    assert (one.value.rank, one.value.step, one.value.chunk) == (2, 2, 0)


def test_a_read_after_write_race():
    algo = schedules_of(
        "allreduce",
        [notify(1), copy(0, 1), wait(1)],
        [wait(0), read(0, 0), notify(0)],
        chunks=2,
    )
    error = refused(algo)
    assert "read-after-write race in the memory of rank 0: rank 1, step 1, chunk 0" in str(error)
    assert (error.rank, error.step, error.chunk) == (1, 1, 0)
    assert error.expected == "the write by rank 0 at step 1 to come before, by a notify and a wait"
    assert error.found == "no order between them"


def test_a_write_after_read_race():
    algo = schedules_of(
        "allreduce",
        [wait(1), read_reduce(1, 0), notify(1)],
        [notify(0), write(0, 0), wait(0)],
    )
    assert "before it has entered the call" in str(refused(algo))
    algo = schedules_of(
        "allreduce",
        [notify(1), wait(1), write(1, 0), notify(1), wait(1)],
        [notify(0), wait(0), copy(1, 0), notify(0), wait(0)],
        chunks=2,
    )
    error = refused(algo)
    assert "write-after-read race in the memory of rank 1: rank 0, step 2, chunk 0" in str(error)
    assert error.expected == "the read by rank 1 at step 2 to come before, by a notify and a wait"


def test_a_write_after_write_race():
    algo = schedules_of(
        "broadcast",
        [notify([1, 2]), wait(2), wait(1)],
        [wait(0), wait(2), read(0, 0), write(2, 0), notify(0), notify(2)],
        [wait(0), notify(1), read(0, 0), wait(1), notify(0)],
    )
    with pytest.raises(ProofError, match="write-after-write race in the memory of rank 2") as one:
        verify(algo, 3, root=0)
    assert (one.value.rank, one.value.step, one.value.chunk) == (1, 3, 0)


def test_memory_of_a_rank_that_has_not_entered():
    algo = schedules_of("broadcast", [wait(1)], [read(0, 0), notify(0)])
    with pytest.raises(
        ProofError, match="used before it has entered the call: rank 1, step 0"
    ) as e:
        verify(algo, 2, root=0)
    assert e.value.expected == "a notify of rank 0 to have come first, directly or through others"
    assert (e.value.chunk, e.value.found) == (0, "none")


def test_memory_of_a_rank_that_may_have_left():
    algo = schedules_of("broadcast", [notify(1)], [wait(0), read(0, 0)])
    with pytest.raises(ProofError, match="a rank may leave while its memory is in use") as caught:
        verify(algo, 2, root=0)
    error = caught.value
    assert (error.rank, error.step, error.chunk, error.found) == (1, 1, 0, "none")
    assert error.expected == (
        "a notify afterwards that reaches rank 0 before its end, directly or through others"
    )


def test_a_notify_sent_before_the_last_access_is_not_enough():
    algo = schedules_of("broadcast", [notify(1), wait(1)], [wait(0), notify(0), read(0, 0)])
    with pytest.raises(ProofError, match="a rank may leave while its memory is in use"):
        verify(algo, 2, root=0)


def test_a_notify_that_nobody_waits_for():
    error = refused(schedules_of("allgather", [notify(1)], []))
    assert "a notify is never waited for" in str(error)
    assert (error.rank, error.step, error.chunk, error.found) == (0, 0, None, "none")
    assert error.expected == "a wait for rank 0 in the schedule of rank 1"


def test_a_wait_that_nobody_notifies():
    error = refused(schedules_of("allgather", [wait(1)], []))
    assert "a rank waits for one that has ended: rank 0, step 0" in str(error)
    assert error.found == "rank 0 at step 0 waits for a notify of rank 1; rank 1 has ended"


def test_a_second_notify_waits_for_the_first():
    both = [notify(1), notify(1), wait(1), wait(1)], [notify(0), notify(0), wait(0), wait(0)]
    error = refused(schedules_of("allgather", *both))
    assert "the ranks dead-lock: rank 0, step 1" in str(error)
    assert error.expected.endswith("with one notify on its way from rank to rank")
    assert error.found == (
        "rank 0 at step 1 cannot notify until rank 1 waits for the notify of step 0; "
        "rank 1 at step 1 cannot notify until rank 0 waits for the notify of step 0"
    )


def test_a_circle_of_waits():
    error = refused(schedules_of("allgather", [wait(1), notify(1)], [wait(0), notify(0)]))
    assert "the ranks dead-lock" in str(error) and error.chunk is None


def test_a_chunk_that_nobody_holds():
    error = refused(schedules_of("allgather", [write(1, 1)], []))
    assert "a step reads a chunk that its rank does not hold" in str(error)
    assert (error.rank, error.step, error.chunk, error.expected) == (0, 0, 1, "one of chunks [0]")


def test_a_reduction_where_nothing_is_reduced():
    error = refused(schedules_of("allgather", [read_reduce(1, 0)], []))
    assert (error.rank, error.expected, error.found) == (0, "read", "read_reduce")


def test_a_missing_contribution_is_found_as_with_messages():
    swap = [notify(1), wait(1), notify(1), wait(1)], [notify(0), wait(0), notify(0), wait(0)]
    error = refused(schedules_of("allreduce", *swap))
    assert error.found == "nothing of rank 1"


def test_clocks_tell_what_is_known():
    ordering = Ordering("title", 3)
    assert ordering.notify(0) == (1, 0, 0)
    clock = ordering.notify(0)
    assert clock == (2, 0, 0)
    ordering.wait(1, [clock, ordering.notify(2)])
    assert ordering.notify(1) == (2, 1, 1)
