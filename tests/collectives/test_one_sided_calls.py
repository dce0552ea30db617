"""One-sided calls through the public door: what they give, on which arrays, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from harness.batches import Batch
from harness.errors import refused

ranks = Batch()
CACHE_BYTES = 1 << 20  # as if the caches held no more
small_caches = Batch({"COLLECTIVES_CACHE_BYTES": str(CACHE_BYTES)})
tight = Batch({
    "COLLECTIVES_SLOTS": "2", "COLLECTIVES_SLOT_BYTES": "64", "COLLECTIVES_DEPTH": "2",
})  # fmt: skip


def given(rank, shape, dtype=np.int64):
    count = int(np.prod(shape))
    return ((np.arange(count) * 5 + 3 * rank) % 7).astype(dtype).reshape(shape)


def filled(comm, rank, shape, dtype=np.int64):
    x = comm.empty(shape, dtype)
    x[...] = given(rank, shape, dtype)
    return x


def last_call(comm):
    """What the call was of which Python last heard."""
    return list(comm._ready.values())[-1].text


def check_all(comm, count, dtype=np.int64, name="one_sided"):
    """Every collective that has a one-sided algorithm, at every root, out of place and in place."""
    size, rank = comm.size, comm.rank
    each = [given(r, (count,), dtype) for r in range(size)]
    rows = [given(r, (size, count), dtype) for r in range(size)]
    x, out = filled(comm, rank, (count,), dtype), comm.empty(count, dtype)
    matrix, every = filled(comm, rank, (size, count), dtype), comm.empty((size, count), dtype)
    total = sum(each[1:], each[0])
    by = {"algorithm": name}
    for private in (False, True):  # results that no peer writes to
        taken = np.empty_like(each[0]) if private else out
        many = np.empty_like(rows[0]) if private else every
        for root in range(size):
            taken[...], many[...] = 0, 0
            found = comm.reduce(x, root=root, out=taken if rank == root else None, **by)
            assert np.array_equal(found, total) if rank == root else found is None
            assert comm.broadcast(x, root=root, out=taken, **by) is taken
            assert np.array_equal(taken, each[root])
            found = comm.gather(x, root=root, out=many if rank == root else None, **by)
            assert np.array_equal(found, np.stack(each)) if rank == root else found is None
        assert np.array_equal(comm.allgather(x, out=many, **by), np.stack(each))
        wanted = np.stack([row[rank] for row in rows])
        assert np.array_equal(comm.alltoall(matrix, out=many, **by), wanted)
        assert np.array_equal(comm.reduce_scatter(matrix, out=taken, **by), sum(rows)[rank])
        assert np.array_equal(comm.allgather(x, **by), np.stack(each))
    assert np.array_equal(comm.allreduce(x, out=out, **by), total)
    assert np.array_equal(x, each[rank]) and np.array_equal(matrix, rows[rank])
    assert np.array_equal(comm.allreduce(x, out=x, **by), total)
    x[...] = each[rank]
    assert np.array_equal(comm.broadcast(x, out=x, root=size - 1, **by), each[size - 1])
    x[...] = each[rank]
    found = comm.reduce(x, out=x if rank == 0 else None, **by)
    assert np.array_equal(x, total if rank == 0 else each[rank])


def check_every_collective(comm):
    for count in (0, 1, 5, 1000, 30_011):
        check_all(comm, count)
    check_all(comm, 2049, np.float32)
    check_all(comm, 33, np.int8)


@ranks(1, 2)
def test_every_collective(comm):
    check_every_collective(comm)


@pytest.mark.full
@ranks(3)
def test_every_collective_of_three(comm):
    check_every_collective(comm)


@tight(1, 2, 3)
def test_with_the_fewest_slots(comm):
    for count in (0, 3, 1000):
        check_all(comm, count)
    x = filled(comm, comm.rank, (500,))
    for _ in range(50):  # more than a channel holds, nobody waiting for anybody between
        comm.broadcast(x, out=x, algorithm="one_sided")
    assert np.array_equal(x, given(0, (500,)))


@ranks(2, 3)
def test_the_table_takes_it_where_it_can(comm):
    x, out, private = comm.empty(50_000), comm.empty(50_000), np.zeros(50_000, np.float32)
    x[:] = private[:] = 1
    for taken, by in ((out, "one_sided"), (x, "one_sided"), (None, "ring"), (private, "ring")):
        x[:] = 1
        assert comm.allreduce(x, out=taken)[7] == comm.size
        assert f"by {by}" in last_call(comm), last_call(comm)
    for array, by in ((x, "one_sided"), (private, "ring")):
        assert len(comm.allgather(array)) == comm.size
        assert f"by {by}" in last_call(comm)
    comm.allreduce(x[::2], out=out[::2])
    assert "by ring" in last_call(comm)
    rows = comm.empty((comm.size, 20_000))
    rows[...] = comm.rank
    assert np.array_equal(comm.alltoall(rows)[:, 3], np.arange(comm.size))
    assert last_call(comm).endswith("by one_sided")
    comm.alltoall(rows, out=rows)  # in place it reads a copy
    assert "by pairwise" in last_call(comm)
    assert np.array_equal(rows[:, 3], np.arange(comm.size))


@ranks(2, 3)
def test_views_of_it(comm):
    """Slices that begin at any byte, and other shapes; what lies beside them stays as it was."""
    size, rank = comm.size, comm.rank
    dice = np.random.default_rng(1)
    whole, result = comm.empty(5000, np.uint8), comm.empty(5000, np.uint8)
    for _ in range(60):
        begin, to = dice.integers(0, 200, 2)
        count = int(dice.integers(0, 4000))
        whole[:] = 9
        result[:] = 8
        x, out = whole[begin : begin + count], result[to : to + count]
        x[:] = given(rank, (count,), np.uint8)
        wanted = np.full(5000, 8, np.uint8)
        wanted[to : to + count] = sum(given(r, (count,), np.uint8) for r in range(size))
        comm.allreduce(x, out=out, algorithm="one_sided")
        assert np.array_equal(result, wanted)
        comm.barrier()
    block = comm.empty((6, 4, 5), np.int64)
    block[...] = given(rank, (6, 4, 5))
    total = sum(given(r, (6, 4, 5)) for r in range(size))
    for view, wanted in (
        (block[1], total[1]), (block[2:5], total[2:5]), (block[5, 3], total[5, 3]),
        (block[0].reshape(20), total[0].reshape(20)),
    ):  # fmt: skip
        assert np.array_equal(comm.allreduce(view, out=view, algorithm="one_sided"), wanted)


@small_caches(2, 3)
def test_results_longer_than_the_caches(comm):
    """These are written past the caches, from symmetric and from private arrays."""
    size, rank = comm.size, comm.rank
    count = (CACHE_BYTES // 4 // size + 12_345) | 1
    each = [given(r, (count,), np.float32) for r in range(size)]
    total = sum(each)
    for shift in (0, 1, 3, 15):
        x, out = (comm.empty(count + 16)[shift : shift + count] for _ in "xo")
        x[:] = each[rank]
        for private, by in ((False, "one_sided"), (True, "ring"), (True, "two_shot")):
            given_x = each[rank].copy() if private else x
            taken = np.zeros(count + 16, np.float32)[shift : shift + count] if private else out
            taken[:] = -1
            comm.allreduce(given_x, out=taken, algorithm=by)
            assert np.array_equal(taken, total), (shift, by)
            taken[:] = -1
            comm.broadcast(given_x, root=1, out=taken, algorithm=None if private else by)
            assert np.array_equal(taken, each[1]), (shift, by)
        assert np.array_equal(x, each[rank])
    halves = comm.empty((size, count // size), np.float32)
    halves[...] = given(rank, halves.shape, np.float32)
    for by in ("one_sided", "pairwise"):
        found = comm.alltoall(halves, algorithm=by)
        rows = [given(r, halves.shape, np.float32)[rank] for r in range(size)]
        assert np.array_equal(found, np.stack(rows)), by
    found = comm.reduce_scatter(halves, algorithm="one_sided", op="avg")
    rows = [given(r, halves.shape, np.float32)[rank] for r in range(size)]
    assert np.array_equal(found, sum(rows) / np.float32(size))


@ranks(2, 3)
def test_uneven_counts(comm):
    size, rank = comm.size, comm.rank
    for counts in ([3, 1, 7][:size], [5000, 2, 1][:size], [4, 4, 4][:size]):
        most, begin = sum(counts), sum(counts[:rank])
        rows = filled(comm, rank, (most, 3))
        total = sum(given(r, (most, 3)) for r in range(size))
        found = comm.reduce_scatter(rows, counts=counts, algorithm="one_sided")
        assert np.array_equal(found, total[begin : begin + counts[rank]])
        buffer = comm.empty((max(counts), 3), np.int64)
        mine = buffer[: counts[rank]]
        mine[...] = given(rank, mine.shape)
        wanted = np.concatenate([given(r, (counts[r], 3)) for r in range(size)])
        found = comm.allgather(mine, counts=counts, algorithm="one_sided")
        assert np.array_equal(found, wanted)
        for root in range(size):
            found = comm.gather(mine, counts=counts, root=root, algorithm="one_sided")
            assert np.array_equal(found, wanted) if rank == root else found is None
    counts = ([2] * size, [2] * size)
    rows = filled(comm, rank, (2 * size, 3))
    refused(comm, ValueError, ["alltoall one_sided does not take counts=", "expected pairwise"],
            lambda: comm.alltoall(rows, counts=counts, algorithm="one_sided"))  # fmt: skip
    comm.alltoall(rows, counts=counts)
    assert last_call(comm).endswith("by pairwise")


@ranks(2)
def test_a_rank_without_elements_has_none_at_any_place(comm):
    """An empty tensor has no address, so nobody could tell where the others' lie."""
    import torch

    for dtype in (np.float32, torch.float32):
        buffer = comm.empty(40_000, dtype)
        buffer[:] = 3
        mine = buffer[: 40_000 if comm.rank == 0 else 0]
        found = comm.allgather(mine, counts=[40_000, 0])
        assert last_call(comm).endswith("by ring") and float(found.sum()) == 120_000
        found = comm.gather(mine, counts=[40_000, 0], root=1)
        assert found is None or float(found.sum()) == 120_000
        refused(
            comm, ValueError, ["expected x from comm.empty", "found none"],
            lambda m=mine: comm.allgather(m, counts=[40_000, 0], algorithm="one_sided"),
        )  # fmt: skip


@ranks(2)
def test_asynchronous_ones(comm):
    arrays = [(filled(comm, k + comm.rank, (3000,)), comm.empty(3000, np.int64)) for k in range(6)]
    works = [comm.allreduce(x, out=out, async_op=True) for x, out in arrays]
    assert last_call(comm).endswith("by one_sided")
    blocking, into = filled(comm, comm.rank, (3000,)), comm.empty(3000, np.int64)
    assert np.array_equal(comm.allreduce(blocking, out=into), given(0, (3000,)) + given(1, (3000,)))
    for k, (work, (_, out)) in enumerate(zip(works, arrays, strict=True)):
        assert work.wait() is out
        assert np.array_equal(out, given(k, (3000,)) + given(k + 1, (3000,)))


@ranks(2, 3)
def test_private_arrays_are_refused_by_name(comm):
    x, out, rows = comm.empty(8), comm.empty(8), np.zeros((comm.size, 8), np.float32)
    private = np.zeros(8, np.float32)
    for call, words in (
        (lambda: comm.allreduce(private, algorithm="one_sided"),
         ["allreduce one_sided", "expected x and out from comm.empty, contiguous, found none"]),
        (lambda: comm.allreduce(x, algorithm="one_sided"), ["expected x and out", "found x"]),
        (lambda: comm.allreduce(private, out=out, algorithm="one_sided"), ["found out"]),
        (lambda: comm.allreduce(x[::2], out=out[::2], algorithm="one_sided"),
         ["contiguous, found x that is not contiguous and out that is not contiguous"]),
        (lambda: comm.allreduce(x[::2], out=out[:4], algorithm="one_sided"),
         ["found out and x that is not contiguous"]),
        (lambda: comm.reduce(private, algorithm="one_sided"), ["reduce one_sided", "expected x "]),
        (lambda: comm.broadcast(private, algorithm="one_sided"), ["broadcast", "expected x "]),
        (lambda: comm.gather(private, algorithm="one_sided"), ["gather one_sided", "found none"]),
        (lambda: comm.allgather(private, algorithm="one_sided"), ["allgather", "found none"]),
        (lambda: comm.alltoall(rows, algorithm="one_sided"), ["alltoall", "found none"]),
        (lambda: comm.reduce_scatter(rows, algorithm="one_sided"), ["reduce_scatter"]),
    ):  # fmt: skip
        for _ in range(2):
            refused(comm, ValueError, ["reaches into the memory of peers", *words], call)
