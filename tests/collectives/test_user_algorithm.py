"""Algorithms that users write: proved before they run, refused everywhere if they do not hold."""

from __future__ import annotations

import numpy as np
from harness.batches import Batch
from harness.errors import raising, refused, still_works

import collectives
from collectives.schedule import ScheduleError, algorithm, copy, recv, recv_reduce, send

ranks = Batch()


@algorithm("allreduce", chunks=lambda size: size)
def my_ring(rank, size):
    left, right = (rank - 1) % size, (rank + 1) % size
    for hop in range(size - 1):
        yield send(right, chunk=(rank - hop) % size)
        yield recv_reduce(left, chunk=(rank - hop - 1) % size)
    for hop in range(size - 1):
        yield send(right, chunk=(rank + 1 - hop) % size)
        yield recv(left, chunk=(rank - hop) % size)


@algorithm("broadcast")
def star(rank, size, root):
    if rank != root:
        yield recv(root, chunk=0)
    elif size > 1:
        yield send([peer for peer in range(size) if peer != root], chunk=0)


@algorithm("scatter")
def hand_out(rank, size, root):
    if rank != root:
        yield recv(root, chunk=rank)
    else:
        for peer in range(size):
            if peer != root:
                yield send(peer, chunk=peer)


@algorithm("barrier")
def through_the_first(rank, size):
    if rank:
        yield send(0, chunk=0)
        yield recv(0, chunk=0)
    else:
        for peer in range(1, size):
            yield recv(peer, chunk=0)
        if size > 1:
            yield send(range(1, size), chunk=0)


@ranks(1, 3, 4)
def test_it_runs(comm):
    size, rank = comm.size, comm.rank
    for count in (0, 1, 5, 10_000, 300_001):
        x = np.arange(count) + rank
        found = comm.allreduce(x, algorithm=my_ring)
        assert np.array_equal(found, size * np.arange(count) + sum(range(size)))
    for root in range(size):
        assert comm.broadcast(np.array(rank), root=root, algorithm=star) == root
        rows = np.arange(size) + root if rank == root else None
        assert comm.scatter(rows, root=root, algorithm=hand_out) == rank + root
    comm.barrier(algorithm=through_the_first)


@ranks(3)
def test_it_runs_behind_asynchronous_calls(comm):
    x = np.ones(1000)
    works = [comm.allreduce(x, async_op=True) for _ in range(5)]
    works.append(comm.allreduce(x, algorithm=my_ring, async_op=True))
    rows = np.ones((3, 2)) if comm.rank == 0 else None
    works.append(comm.scatter(rows, algorithm=hand_out, async_op=True))
    works.append(comm.barrier(algorithm=through_the_first, async_op=True))
    assert comm.broadcast(x, algorithm=star)[0] == 1
    for work in works:
        work.wait(20)


@ranks(3)
def test_it_is_proved_once_a_root(comm):
    asked = []

    @algorithm("broadcast")
    def watched(rank, size, root):
        asked.append(root)
        yield from star(rank, size, root)

    for root in (0, 1, 0, 1, 1):
        comm.broadcast(np.zeros(3), root=root, algorithm=watched)
        comm.broadcast(np.zeros(4), root=root, algorithm=watched)
    # Rank 0 proves the schedules of all ranks; the others look at their own alone.
    assert sorted(set(asked)) == [0, 1]
    assert len(asked) >= 2 * (3 if comm.rank == 0 else 1)
    proofs = len(comm._proved)
    assert proofs == 2


@ranks(1, 3)
def test_one_that_does_not_hold_is_refused_everywhere(comm):
    size = comm.size

    @algorithm("allreduce")
    def forgets(rank, size):
        yield from ()

    @algorithm("allreduce")
    def twice(rank, size):
        right, left = (rank + 1) % size, (rank - 1) % size
        for _ in range(size):
            yield send(right, chunk=0)
            yield recv_reduce(left, chunk=0)

    @algorithm("allreduce")
    def waits(rank, size):
        yield recv_reduce((rank - 1) % size, chunk=0)
        yield send((rank + 1) % size, chunk=0)

    @algorithm("broadcast")
    def reduces(rank, size, root):
        yield recv_reduce((rank - 1) % size, chunk=0)

    @algorithm("allreduce")
    def crashes(rank, size):
        yield {}["nothing of the kind"]

    @algorithm("allreduce")
    def beyond(rank, size):
        yield send(size, chunk=0)

    @algorithm("allreduce", chunks=2)
    def elsewhere(rank, size):
        yield copy(to=0, source=2)

    @algorithm("allreduce")
    def no_step(rank, size):
        yield "send"

    @algorithm("allreduce", chunks=3)
    def endless(rank, size):
        while True:
            yield copy(to=0, source=1)

    @algorithm("allreduce", chunks=0)
    def no_chunk(rank, size):
        yield from ()

    @algorithm("broadcast", widest=lambda size: 1, chunks=2)
    def wider_than_declared(rank, size, root):
        if rank == root and size > 1:
            yield send([peer for peer in range(size) if peer != root], chunk=[0, 1])
        elif rank != root:
            yield recv(root, chunk=[0, 1])

    x = np.ones(3)
    cases = [
        (crashes, ValueError, ["crashes", "KeyError", "nothing of the kind"]),
        (beyond, ValueError, ["beyond", f"peer must be in 0..{size - 1}", f"found {size}"]),
        (elsewhere, ValueError, ["elsewhere", "chunk must be in 0..1", "found 2"]),
        (no_step, ValueError, ["no_step", "expected send, recv", "'send'"]),
        (endless, ScheduleError, [f"rank 0 of {size}: expected at most {1000 + 24 * size} steps"]),
        (no_chunk, ValueError, ["at least one chunk", "found 0"]),
    ]
    if size > 1:
        cases += [
            (forgets, collectives.ProofError, ["forgets", "rank 0", "nothing of ranks 1, 2"]),
            (twice, collectives.ProofError, ["twice", "times"]),
            (waits, collectives.ProofError, ["waits", "rank"]),
            (reduces, collectives.ProofError, ["reduces", "expected recv", "recv_reduce"]),
            (wider_than_declared, collectives.ProofError, ["at most 1 chunks", "found 2"]),
        ]
    for algo, kind, words in cases:
        call = getattr(comm, algo.collective)
        for _ in range(2):
            with raising(kind, *words) as caught:
                call(x, algorithm=algo)
            if kind is collectives.ProofError:
                assert isinstance(caught.error.rank, int) and caught.error.expected
            still_works(comm)
        with raising(kind, *words):
            call(x, algorithm=algo, async_op=True)
        still_works(comm)


@ranks(3)
def test_what_is_no_algorithm_for_the_call_sends_nothing(comm):
    x = np.ones(3)
    refused(comm, ValueError, ["star does broadcast", "expected one for allreduce"],
            lambda: comm.allreduce(x, algorithm=star))  # fmt: skip
    refused(comm, TypeError, ["algorithm must be a name or what @algorithm made", "function"],
            lambda: comm.allreduce(x, algorithm=my_ring.body))  # fmt: skip
    for sizes in ((1, 2), lambda size: size % 2 == 0):
        only = algorithm("allreduce", sizes=sizes)(my_ring.body)
        refused(comm, ValueError, ["not written for 3 ranks"],
                lambda o=only: comm.allreduce(x, algorithm=o))  # fmt: skip


@ranks(3)
def test_ranks_that_do_not_agree_on_it_are_told(comm):
    part = comm.split(0)
    with raising(collectives.MismatchError):
        part.allreduce(np.ones(3), algorithm=my_ring if part.rank == 0 else "ring")
        part.barrier()
    part.close()
