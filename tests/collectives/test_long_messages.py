"""Calls longer than the caches: passes that overlap, worked on together, written past the caches.

With a cache of no bytes every call is longer, so that short ones try what long ones do.
"""

from __future__ import annotations

import numpy as np
import pytest
from harness.batches import Batch
from harness.conformance import sweep

import launch
from collectives.catalogue import find
from collectives.lowering import lower
from collectives.schedule import algorithm, copy, notify, read, wait
from transports import _native

PAST = {"COLLECTIVES_CACHE_BYTES": "0", "COLLECTIVES_SLOT_BYTES": "2048"}
past = Batch(PAST)
far = Batch({"COLLECTIVES_FAR_NS": "0", "COLLECTIVES_SLOT_BYTES": "65536"})
far_and_past = Batch({"COLLECTIVES_FAR_NS": "0", "COLLECTIVES_CACHE_BYTES": "0"})
ranks = Batch()


def at(offset, count, dtype):
    """An array that begins so many bytes behind a cache line."""
    room = np.empty(count * np.dtype(dtype).itemsize + 128, np.uint8)
    begin = -room.ctypes.data % 64 + offset
    return room[begin : begin + count * np.dtype(dtype).itemsize].view(dtype)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_every_algorithm(size, full):
    counts = (0, 11, 257, 4099)
    found = launch.spawn(
        sweep, size, counts, ("numpy",), full, environment=PAST, timeout=600 if full else 100
    )
    failures = [problem for problems, _ in found for problem in problems]
    assert not failures, "\n".join(failures[:20])
    assert all(sum(passed for passed, _ in tally.values()) > 100 for _, tally in found)


@past(2, 3)
def test_arrays_at_any_address(comm):
    for offset in (0, 8, 16, 24, 48):
        for shift in (0, 8, 40):
            x, out = at(offset, 9001, np.float64), at(shift, 9001, np.float64)
            for turn in range(3):
                x[:] = np.arange(9001) + comm.rank + turn
                out[:] = -1
                comm.allreduce(x, out=out)
                wanted = comm.size * (np.arange(9001) + turn) + sum(range(comm.size))
                assert np.array_equal(out, wanted)
                assert np.array_equal(x, np.arange(9001) + comm.rank + turn)
                comm.allreduce(x, out=x, op="max")
                assert np.array_equal(x, np.arange(9001) + comm.size - 1 + turn)


def _by_way_of_memory(comm):
    """Messages of 32 KiB and more, as to ranks on cores that share no cache."""
    count = 100_003
    for offset, shift in ((0, 0), (16, 16), (8, 24)):
        x, out = at(offset, count, np.float64), at(shift, count, np.float64)
        for turn in range(40):  # now and then a message goes the other way, to be looked at
            x[:] = np.arange(count) + comm.rank + turn
            out[:] = -1
            comm.allreduce(x, out=out)
            wanted = comm.size * (np.arange(count) + turn) + sum(range(comm.size))
            assert np.array_equal(out, wanted)
        rows = comm.allgather(x)
        assert all(np.array_equal(row, x - comm.rank + who) for who, row in enumerate(rows))
        out[:] = x
        root = comm.size - 1
        comm.broadcast(out, root=root, out=out)
        assert np.array_equal(out, x - comm.rank + root)
        comm.allreduce(x, out=x, op="min")
        assert np.array_equal(x, np.arange(count) + turn)


@far(2, 3)
def test_peers_that_are_far(comm):
    _by_way_of_memory(comm)


@far_and_past(2, 3)
def test_peers_that_are_far_and_arrays_longer_than_the_caches(comm):
    _by_way_of_memory(comm)


@past(2, 3)
def test_means_and_halves(comm):
    for dtype in (np.float16, np.float32, np.float64):
        x = at(2 * np.dtype(dtype).itemsize, 10007, dtype)
        x[:] = np.arange(10007) % 64 + 2 * comm.rank
        found = comm.allreduce(x, op="avg")
        total = comm.size * (np.arange(10007) % 64) + comm.size * (comm.size - 1)
        assert np.array_equal(found, (total.astype(np.float32) / comm.size).astype(dtype))


@past(2, 3)
def test_lengths_that_differ(comm):
    """Chunks that end in different passes: what is worked on together is not equally long."""
    counts = [1, 5000, 12345][: comm.size]
    mine = np.full(counts[comm.rank], comm.rank + 1.0)
    whole = np.concatenate([np.full(n, r + 1.0) for r, n in enumerate(counts)])
    for name in ("ring", "direct", "recursive_doubling"):
        assert np.array_equal(comm.allgather(mine, counts=counts, algorithm=name), whole)
    x = np.arange(sum(counts), dtype=np.float64) + comm.rank
    begin = sum(counts[: comm.rank])
    wanted = comm.size * x + comm.size * ((comm.size - 1) / 2 - comm.rank)
    for name in ("ring", "pairwise"):
        found = comm.reduce_scatter(x, counts=counts, algorithm=name)
        assert np.array_equal(found, wanted[begin : begin + counts[comm.rank]])


@past(2, 3, 4)
def test_ranks_that_know_of_different_numbers_of_passes(comm):
    """With counts a rank knows only what it sends and receives."""
    size, rank = comm.size, comm.rank
    for seed in range(8):
        lengths = np.random.default_rng(seed).integers(0, 3000, (size, size))
        lengths[seed % size] //= 50
        x = np.concatenate([np.full(n, 10.0 * rank + to) for to, n in enumerate(lengths[rank])])
        found = comm.alltoall(
            x, counts=(lengths[rank].tolist(), lengths[:, rank].tolist()), algorithm="pairwise"
        )
        rows = [np.full(lengths[who, rank], 10.0 * who + rank) for who in range(size)]
        assert np.array_equal(found, np.concatenate(rows))


@past(2)
def test_a_copy_before_a_notify_of_an_algorithm_of_the_users(comm):
    """A plain copy in a one-sided plan goes past the caches, and what comes of it is right.

    That it is ordered before the notify this cannot show: without the fence it hardly ever fails.
    """

    @algorithm("alltoall", sizes=(2,), widest=lambda size: 1, one_sided=True)
    def staged(rank, size):
        peer = 1 - rank
        yield notify(peer)
        yield wait(peer)
        yield copy((peer, rank), (rank, peer))
        yield notify(peer)
        yield wait(peer)
        yield read(peer, (rank, peer))
        yield notify(peer)
        yield wait(peer)
        yield copy((peer, rank), (rank, peer))

    for count in (8, 24, 1000):
        x, out = np.zeros((2, count), np.float32), comm.empty((2, count), np.float32)
        for turn in range(1, 300):
            x[:] = 10 * turn + comm.rank
            comm.alltoall(x, out=out, algorithm=staged)
            assert np.all(out[1 - comm.rank] == 10 * turn + 1 - comm.rank)


@ranks(2)
def test_arrays_beyond_the_real_cache(comm):
    """32 MiB and what is usual otherwise; where the caches are larger, the plain way."""
    x = np.arange(1 << 23, dtype=np.float32) % 1000 + comm.rank
    out = np.empty_like(x)
    for _ in range(2):
        comm.allreduce(x, out=out)
        assert np.array_equal(out, 2 * (np.arange(1 << 23, dtype=np.float32) % 1000) + 1)
    rows = x.reshape(2, -1)
    found = comm.alltoall(rows)
    part = np.arange(1 << 23, dtype=np.float32).reshape(2, -1)[comm.rank] % 1000
    assert np.array_equal(found[0], part) and np.array_equal(found[1], part + 1)


def native_plan(algo, rank, size, **changes):
    plan = lower(algo, rank, size)
    fields = {
        "rank": rank, "size": size, "chunk_count": plan.chunk_count, "inputs": plan.inputs,
        "outputs": plan.outputs, "scratch": plan.scratch, "widest": plan.widest,
        "instructions": [
            (i.chunks, i.sources, i.targets, i.reads, i.writes, i.own_at, i.peeks, i.pokes)
            for i in plan.instructions
        ],
        "delays": plan.delays, "in_flight": plan.in_flight,
    }  # fmt: skip
    return _native.Plan(**fields | changes)


def test_delays_that_make_no_sense_are_refused():
    ring = find("allreduce", "ring")
    native_plan(ring, 0, 2)
    for changes, words in (
        ({"delays": [0, 1]}, "a delay for each instruction"),
        ({"delays": [0, 2, 1]}, "none is less than the one before"),
        ({"in_flight": 0}, "messages on their way"),
    ):
        with pytest.raises(ValueError, match=words):
            native_plan(ring, 0, 2, **changes)
    tree = find("gather", "tree")
    scratch = lower(tree, 2, 4)
    assert scratch.scratch
    with pytest.raises(ValueError, match="nothing in scratch"):
        native_plan(tree, 2, 4, delays=list(range(len(scratch.instructions))), in_flight=2)
