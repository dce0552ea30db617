"""Every collective through the public door, against its definition; in place, and alone."""

from __future__ import annotations

import numpy as np
from harness.batches import Batch
from harness.errors import still_works

import collectives

ranks = Batch()


@ranks(1, 2, 3)
def test_what_a_user_writes(comm):
    size, rank = comm.size, comm.rank
    x = np.full(4, rank, dtype=np.float32)
    total = np.full(4, sum(range(size)), np.float32)
    y = comm.allreduce(x)
    assert np.array_equal(y, total) and y.dtype == np.float32 and y is not x
    assert np.array_equal(x, np.full(4, rank))
    assert comm.allreduce(x, out=x, op="max") is x
    assert np.array_equal(x, np.full(4, size - 1))
    x[:] = rank
    work = comm.allreduce(x, async_op=True)
    assert np.array_equal(work.wait(), total)
    everyone = comm.allgather(x)
    assert everyone.shape == (size, 4) and everyone[:, 0].tolist() == list(range(size))
    mine = comm.scatter(everyone if rank == 0 else None, root=0)
    assert mine.shape == (4,) and np.array_equal(mine, x)
    part = comm.reduce_scatter(everyone)
    assert np.array_equal(part, np.full(4, size * rank))
    swapped = comm.alltoall(everyone + 10 * rank)
    assert swapped[:, 0].tolist() == [rank + 10 * other for other in range(size)]
    z = comm.broadcast(x, root=size - 1)
    assert np.array_equal(z, np.full(4, size - 1)) and np.array_equal(x, np.full(4, rank))
    found = comm.reduce(x, root=size - 1)
    assert found is None if rank != size - 1 else np.array_equal(found, total)
    rows = comm.gather(x, root=0)
    assert rows is None if rank != 0 else np.array_equal(rows, everyone)
    assert comm.barrier() is None
    half = comm.split(color=rank % 2, key=0)
    assert half.size == len(range(rank % 2, size, 2))
    half.close()
    assert comm.broadcast_object({"lr": rank}, root=0) == {"lr": 0}
    assert comm.allgather_object(rank) == list(range(size))


@ranks(1, 3)
def test_in_place_wherever_shapes_allow(comm):
    size, rank = comm.size, comm.rank
    x = np.arange(5.0) + rank
    assert comm.allreduce(x, out=x) is x
    assert np.array_equal(x, size * np.arange(5) + sum(range(size)))
    x = np.arange(5.0) + rank
    found = comm.reduce(x, out=x, root=0)
    assert found is (x if rank == 0 else None)
    assert np.array_equal(x, size * np.arange(5) + sum(range(size)) if rank == 0
                          else np.arange(5) + rank)  # fmt: skip
    x = np.arange(5.0) + rank
    assert comm.broadcast(x, out=x, root=size - 1) is x
    assert np.array_equal(x, np.arange(5) + size - 1)
    x = np.arange(size) + 10 * rank
    assert comm.alltoall(x, out=x) is x
    assert x.tolist() == [rank + 10 * other for other in range(size)]
    x = np.arange(2 * size) + 100 * rank
    assert comm.alltoall(x.reshape(size, 2), out=x.reshape(size, 2)) is not None  # the same memory
    assert x.tolist() == [2 * rank + i + 100 * other for other in range(size) for i in (0, 1)]


@ranks(1)
def test_alone_every_shape_that_fits_is_in_place(comm):
    x = np.arange(4.0)
    assert comm.gather(x, out=x[None]) is not None
    assert comm.allgather(x, out=x[None]) is not None
    assert comm.scatter(x[None], out=x) is x
    assert comm.reduce_scatter(x[None], out=x) is x
    assert x.tolist() == [0, 1, 2, 3]


@ranks(1, 3)
def test_out_is_filled_and_returned(comm):
    size, rank = comm.size, comm.rank
    x = np.arange(2.0) + rank
    every = np.stack([np.arange(2.0) + other for other in range(size)])
    cases = {
        "allreduce": (x, every.sum(0)),
        "broadcast": (x, every[0]),
        "allgather": (x, every),
        "alltoall": (every * (rank + 1), np.stack([every[rank] * (o + 1) for o in range(size)])),
        "reduce_scatter": (every, size * every[rank]),
        "scatter": (every, every[rank]),
    }
    for name, (given, wanted) in cases.items():
        out = np.full_like(wanted, -1)
        assert getattr(comm, name)(given, out=out) is out, name
        assert np.array_equal(out, wanted), name
    for name, wanted in (("reduce", every.sum(0)), ("gather", every)):
        out = np.full_like(wanted, -1)
        found = getattr(comm, name)(x, out=out, root=size - 1)
        if rank == size - 1:
            assert found is out and np.array_equal(out, wanted), name
        else:
            assert found is None and np.all(out == -1), name


@ranks(1, 3)
def test_named_algorithms_give_the_same(comm):
    x = np.arange(7) + comm.rank
    wanted = comm.allreduce(x)
    for name in ("ring", "tree", "recursive_doubling", "halving_doubling", "two_shot"):
        assert np.array_equal(comm.allreduce(x, algorithm=name), wanted), name


@ranks(1, 3)
def test_no_input_is_changed(comm):
    for name in ("allreduce", "reduce", "broadcast", "gather", "allgather", "scatter",
                 "reduce_scatter", "alltoall"):  # fmt: skip
        x = np.arange(4 * comm.size, dtype=np.int32).reshape(comm.size, 4) + comm.rank
        kept = x.copy()
        getattr(comm, name)(x)
        assert np.array_equal(x, kept), name


@ranks(1, 2)
def test_it_shows_who_it_is(comm):
    shown = f"<Communicator rank {comm.rank} of {comm.size} over shm>"
    assert repr(comm) == shown
    assert comm.hosts == (0,) * comm.size
    assert comm.transport == "shm"
    other = comm.split(0)
    with other as entered:
        assert entered is other
    assert repr(other) == f"<Communicator rank {comm.rank} of {comm.size} over shm, closed>"


@ranks(1, 2)
def test_closing_twice_does_nothing_and_calls_after_it_say_so(comm):
    part = comm.split(0)
    part.close()
    part.close()
    part.abort(ValueError("too late to tell anyone"))
    for call in (
        lambda: part.allreduce(np.ones(2)),
        lambda: part.scatter(np.ones((part.size, 2))),
        part.barrier,
        lambda: part.broadcast_object(1),
        lambda: part.split(0),
    ):
        try:
            call()
        except collectives.CollectiveError as error:
            assert "closed" in str(error)
        else:
            raise AssertionError("a closed communicator worked")
    try:
        part.allreduce(np.ones(2), async_op=True)
    except collectives.CollectiveError as error:
        assert "closed" in str(error)
    else:
        raise AssertionError("a closed communicator worked")
    still_works(comm)


@ranks(3)
def test_ranks_that_leave_at_different_times_raise_nothing(comm):
    for leaver in range(comm.size):
        part = comm.split(0, comm.rank)
        x = np.full(1000, part.rank + 1.0)
        for _ in range(20):
            x = part.broadcast(x, root=leaver)
        part.close()
        assert x[0] == leaver + 1
    still_works(comm)
