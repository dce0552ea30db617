"""The table of known calls: a call made before takes the short way, and gives what it always did.

Every check compares with numpy, and those about the table itself count how often the long way was
taken.
"""

from __future__ import annotations

import copy
import gc
import inspect
import itertools
import pickle
import threading
import time
import weakref

import cloudpickle
import ml_dtypes
import numpy as np
import pytest
from harness.batches import Batch
from harness.errors import raising, refused, still_works
from harness.ways import long_ways

import collectives
from collectives.schedule import algorithm, recv_reduce, send

ranks = Batch()


def contributions(comm, shape, dtype, turn):
    """What each rank gives: small whole numbers, other ones in every turn."""
    count = int(np.prod(shape))
    return [
        ((np.arange(count) * 7 + 13 * rank + 3 * turn) % 5).astype(dtype).reshape(shape)
        for rank in range(comm.size)
    ]


@ranks(1, 2, 3)
def test_the_same_call_many_times(comm):
    size, rank = comm.size, comm.rank
    out = {
        "allreduce": np.zeros(6, np.int32), "broadcast": np.zeros(6, np.int32),
        "reduce": np.zeros(6, np.int32), "allgather": np.zeros((size, 6), np.int32),
        "gather": np.zeros((size, 6), np.int32), "reduce_scatter": np.zeros(6, np.int32),
        "scatter": np.zeros(6, np.int32), "alltoall": np.zeros((size, 6), np.int32),
    }  # fmt: skip
    x, rows = np.zeros(6, np.int32), np.zeros((size, 6), np.int32)
    for turn in range(30):
        each = contributions(comm, (6,), np.int32, turn)
        matrices = contributions(comm, (size, 6), np.int32, turn)
        x[:], rows[:] = each[rank], matrices[rank]
        root = turn % size
        wanted = {
            "allreduce": sum(each), "broadcast": each[root], "allgather": np.stack(each),
            "reduce": sum(each) if rank == root else None,
            "gather": np.stack(each) if rank == root else None,
            "reduce_scatter": sum(matrices)[rank], "scatter": matrices[root][rank],
            "alltoall": np.stack([matrix[rank] for matrix in matrices]),
        }  # fmt: skip
        for name, value in wanted.items():
            given = rows if name in ("reduce_scatter", "scatter", "alltoall") else x
            rooted = {"root": root} if name in ("broadcast", "reduce", "gather", "scatter") else {}
            taken = out[name] if value is not None else None
            out[name][:] = -1
            found = getattr(comm, name)(given, out=taken, **rooted)
            assert found is taken, name
            assert value is None or np.array_equal(found, value), (name, turn)
        comm.barrier()
        assert np.array_equal(x, each[rank]) and np.array_equal(rows, matrices[rank])


@ranks(1, 2)
def test_it_is_known_the_second_time(comm):
    x, out, rows = np.ones(5), np.zeros(5), np.ones((comm.size, 5))
    every = np.zeros((comm.size, 5))
    at_root = out if comm.rank == 0 else None
    calls = (
        lambda: comm.allreduce(x, out=out), lambda: comm.allreduce(x, out=out, op="max"),
        lambda: comm.allreduce(x, out=x), lambda: comm.allreduce(x, out=out, algorithm="ring"),
        lambda: comm.allreduce(x, out=out, deterministic=True),
        lambda: comm.broadcast(x, out=out), lambda: comm.broadcast(x, out=out, root=comm.size - 1),
        lambda: comm.reduce(x, out=at_root), lambda: comm.allgather(x, out=every),
        lambda: comm.gather(x, out=every if comm.rank == 0 else None),
        lambda: comm.reduce_scatter(rows, out=out), lambda: comm.alltoall(rows, out=every),
        comm.barrier, lambda: comm.barrier(algorithm="ring"),
    )  # fmt: skip
    for number, call in enumerate(calls):
        call()
        with long_ways(comm) as taken:
            for _ in range(3):
                call()
            assert taken == [], number
    with long_ways(comm) as taken:
        comm.allreduce(x)  # a new array each time
        comm.allreduce(x, out=out, timeout=20.0)
        comm.allreduce(x, out=out, async_op=True).wait()
        comm.allgather(x, counts=[5] * comm.size)
        assert [name for name in taken if name != "launched"] == [
            "allreduce", "allreduce", "allreduce", "allgather",
        ]  # fmt: skip


@ranks(2, 3)
def test_what_differs_is_another_call(comm):
    """Calls in turns that differ in one thing each, over arrays that are the same or look alike."""
    dice = np.random.default_rng(5)  # the same on every rank
    shapes = [(4,), (2, 2), (1, 4), (8,), (0,), (), (3, 1, 2)]
    dtypes = [np.float32, np.float64, np.int32, np.uint32, np.float16, np.bool_,
              ml_dtypes.bfloat16]  # fmt: skip
    folds = {"sum": sum, "max": lambda each: np.max(each, 0), "min": lambda each: np.min(each, 0)}
    arrays = {}
    for turn in range(300):
        shape = shapes[dice.integers(len(shapes))]
        dtype = np.dtype(dtypes[dice.integers(len(dtypes))])
        op = list(folds)[dice.integers(3)]
        name = [None, "ring", "tree", "one_shot"][dice.integers(4)]
        each = contributions(comm, shape, dtype, turn)
        x, out = arrays.setdefault((shape, dtype), (np.zeros(shape, dtype), np.zeros(shape, dtype)))
        x[...] = each[comm.rank]
        taken = x if turn % 3 == 0 else out
        assert comm.allreduce(x, out=taken, op=op, algorithm=name) is taken
        wide = [each_.astype(np.float64) for each_ in each]
        wanted = folds[op](wide)
        if dtype == np.bool_:
            wanted = wanted != 0
        assert np.array_equal(taken.astype(np.float64), wanted), (shape, dtype, op, name)
        root = int(dice.integers(comm.size))
        x[...] = each[comm.rank]
        comm.broadcast(x, out=taken, root=root)
        assert np.array_equal(taken, each[root])


@ranks(2)
def test_calls_that_take_turns_do_not_push_each_other_out(comm):
    """Whatever their hashes: by one hash alone, one pair in 64 would never be quick."""
    arrays = [(np.zeros(n, np.float32), np.zeros(n, np.float32)) for n in range(1, 101)]
    for first, second in itertools.pairwise(arrays):
        for _ in range(2):
            comm.allreduce(first[0], out=first[1])
            comm.allreduce(second[0], out=second[1])
        with long_ways(comm) as taken:
            comm.allreduce(first[0], out=first[1])
            comm.allreduce(second[0], out=second[1])
            assert taken == [], len(first[0])


@ranks(2)
def test_the_short_way_is_a_method_as_any_other(comm):
    x, out = np.ones(3), np.zeros(3)
    comm.allreduce(x, out=out)
    bound = comm.allreduce
    with long_ways(comm) as taken:
        assert bound(x, out=out) is out
        assert type(comm).allreduce(comm, x, out=out, async_op=False, timeout=None) is out
        assert comm.allreduce(*[x], out=out) is out
        assert taken == []
        comm.allreduce(x=x, out=out)  # by name: right, if not as quick
        assert taken == ["allreduce"]
    assert np.array_equal(out, np.full(3, 2.0))
    assert bound.__name__ == "allreduce" and "every rank" in bound.__doc__
    assert list(inspect.signature(type(comm).allreduce).parameters)[:3] == ["self", "x", "out"]
    refused(comm, TypeError, ["allreduce", "missing", "x"], lambda: comm.allreduce())
    refused(comm, TypeError, ["allreduce", "positional"], lambda: comm.allreduce(x, out))
    refused(comm, TypeError, ["wrong"], lambda: comm.allreduce(x, wrong=1))
    with pytest.raises(AttributeError, match="_engine"):
        type(comm).barrier(object())
    # As a function: by its name where it is pickled or copied, and weak references may be had.
    method = type(comm).allreduce
    assert pickle.loads(pickle.dumps(method)) is method and copy.copy(method) is method
    assert cloudpickle.loads(cloudpickle.dumps(method)) is method
    assert weakref.ref(method)() is method and weakref.WeakMethod(comm.barrier)() == comm.barrier
    assert repr(method).startswith("<function Operations.allreduce at ")


@ranks(2)
def test_more_calls_than_entries(comm):
    """Entries are taken over; what was known is right, and so is what has lost its entry."""
    arrays = [(np.zeros(n, np.int64), np.zeros(n, np.int64)) for n in range(1, 501)]
    for turn in range(3):
        for n, (x, out) in enumerate(arrays):
            x[:] = turn + n + comm.rank
            comm.allreduce(x, out=out)
            assert np.array_equal(out, np.full(n + 1, 2 * (turn + n) + 1))
    with long_ways(comm) as taken:
        for x, out in reversed(arrays):  # the last are known still
            comm.allreduce(x, out=out)
        assert 500 - 256 <= len(taken) < 500, len(taken)


@ranks(2)
def test_arrays_that_are_not_what_was_remembered(comm):
    x, out = np.arange(6.0), np.zeros(6)
    wanted = 2 * np.arange(6.0)
    for _ in range(3):
        comm.allreduce(x, out=out)
    wide, read_only = np.zeros(12), np.zeros(6)
    read_only.flags.writeable = False
    both = np.arange(9.0)

    class Named(np.ndarray):
        pass

    for _ in range(2):  # twice: a refusal must not be remembered either
        assert np.array_equal(comm.allreduce(x, out=wide[::2]), wanted)
        assert np.array_equal(comm.allreduce(np.repeat(x, 2)[::2], out=out), wanted)
        assert np.array_equal(comm.allreduce(x[::-1], out=out), wanted[::-1])
        refused(comm, ValueError, ["out", "read-only"], lambda: comm.allreduce(x, out=read_only))
        refused(comm, ValueError, ["x and out overlap"],
                lambda: comm.allreduce(both[:6], out=both[1:7]))  # fmt: skip
        refused(comm, ValueError, ["x and out overlap"],
                lambda: comm.allreduce(both[3:], out=both[:6]))  # fmt: skip
        refused(comm, ValueError, ["out: expected shape (6,), found (5,)"],
                lambda: comm.allreduce(x, out=out[:5]))  # fmt: skip
        refused(comm, ValueError, ["out: expected shape (6,), found (2, 3)"],
                lambda: comm.allreduce(x, out=out.reshape(2, 3)))  # fmt: skip
        refused(comm, TypeError, ["out: expected float64, found float32"],
                lambda: comm.allreduce(x, out=out.astype(np.float32)))  # fmt: skip
        refused(comm, TypeError, ["list"], lambda: comm.allreduce(x, out=[0.0] * 6))
        assert np.array_equal(comm.allreduce(x, out=out), wanted)
        named = x.copy().view(Named)
        found = comm.allreduce(named, out=out)
        assert found is out and np.array_equal(out, wanted)
        into = np.zeros(6).view(Named)
        assert comm.allreduce(named, out=into) is into and np.array_equal(into, wanted)
        assert comm.allreduce(x, out=out) is out and np.array_equal(out, wanted)
    assert np.array_equal(x, np.arange(6.0)) and np.array_equal(both, np.arange(9.0))
    swapped = x.astype(">f8")
    assert comm.broadcast(swapped, out=np.zeros(6, ">f8")).tolist() == x.tolist()
    refused(comm, TypeError, [">f8"], lambda: comm.allreduce(swapped, out=np.zeros(6, ">f8")))


@ranks(2)
def test_arguments_that_are_not_what_was_remembered(comm):
    x, out = np.ones(4), np.zeros(4)
    for _ in range(2):
        comm.allreduce(x, out=out)
        comm.broadcast(x, out=out)
    for seconds, kind in ((0, ValueError), (-1.0, ValueError), ("soon", TypeError)):
        with raising(kind, "timeout", repr(seconds)):
            comm.timeout = seconds
    for _ in range(2):
        refused(comm, ValueError, ["op must be"], lambda: comm.allreduce(x, out=out, op="sun"))
        refused(comm, TypeError, ["op must be"], lambda: comm.allreduce(x, out=out, op=["sum"]))
        refused(comm, ValueError, ["unknown algorithm 'rang'"],
                lambda: comm.allreduce(x, out=out, algorithm="rang"))  # fmt: skip
        refused(comm, ValueError, ["root", "2"], lambda: comm.broadcast(x, out=out, root=2))
        refused(comm, TypeError, ["root", "'0'"], lambda: comm.broadcast(x, out=out, root="0"))
        refused(comm, ValueError, ["timeout"], lambda: comm.allreduce(x, out=out, timeout=-1))
        refused(comm, TypeError, ["timeout"], lambda: comm.allreduce(x, out=out, timeout="soon"))
        # Keywords of other collectives, with the values that mean nothing there.
        refused(comm, TypeError, ["root"], lambda: comm.barrier(root=0))
        refused(comm, TypeError, ["out"], lambda: comm.barrier(out=None))
        refused(comm, TypeError, ["root"], lambda: comm.allreduce(x, out=out, root=0))
        refused(comm, TypeError, ["counts"], lambda: comm.allreduce(x, out=out, counts=None))
        refused(comm, TypeError, ["op"], lambda: comm.broadcast(x, out=out, op=None))
        refused(comm, TypeError, ["deterministic"],
                lambda: comm.broadcast(x, out=out, deterministic=False))  # fmt: skip
        comm.barrier()
    big = 1 << 40  # equal, not identical
    for root in (np.int64(1), True, 1):
        assert comm.broadcast(np.full(3, comm.rank + 1), root=root, out=np.zeros(3, int))[0] == 2
    refused(comm, ValueError, [str(big)], lambda: comm.broadcast(x, out=out, root=big))
    op = "".join(["s", "um"])
    assert comm.allreduce(x, out=out, op=op).tolist() == [2] * 4


@ranks(2)
def test_known_calls_of_threads_that_take_turns(comm):
    x, out = np.ones(4), np.zeros(4)

    def many():
        for _ in range(50):
            comm.allreduce(x, out=out)
            assert out.tolist() == [2] * 4

    failures = []
    for _ in range(4):
        thread = threading.Thread(target=lambda: failures.append(many()))
        thread.start()
        thread.join()
    assert failures == [None] * 4


@ranks(2)
def test_a_known_call_has_the_deadline_of_the_communicator(comm):
    for seconds in (0.2, 0.4):
        part = comm.split(0)
        x, out = np.ones(3), np.zeros(3)
        for _ in range(3):
            part.allreduce(x, out=out)
        part.timeout = seconds
        if part.rank == 0:
            began = time.monotonic()
            with raising(collectives.CollectiveTimeout, f"waited {seconds}", "rank 1"):
                part.allreduce(x, out=out)
            assert time.monotonic() - began < 10
            with raising(collectives.CollectiveTimeout, f"waited {seconds}"):  # known, and broken
                part.allreduce(x, out=out)
        comm.barrier()
        part.close()
        with raising(collectives.CollectiveError, ""):
            part.allreduce(x, out=out)


@ranks(2)
def test_known_calls_that_do_not_fit_together(comm):
    for other in ("max", "shape", "barrier"):
        part = comm.split(0)
        x, out, short = np.ones(4), np.zeros(4), np.ones(3)
        calls = {
            "sum": lambda p=part, x=x, o=out: p.allreduce(x, out=o),
            "max": lambda p=part, x=x, o=out: p.allreduce(x, out=o, op="max"),
            "shape": lambda p=part, x=short: p.allreduce(x, out=x),
            "barrier": part.barrier,
        }
        for call in list(calls.values()) * 2:
            call()
        with raising(collectives.MismatchError, "rank 0 has", "rank 1 has"):
            calls["sum" if part.rank == 0 else other]()
            part.barrier()
        part.close()
    still_works(comm)


@ranks(2)
def test_nothing_of_the_users_is_kept(comm):
    """The engine keeps no algorithm of a user's; communicators and arrays go when they should."""

    def leading_back(part):  # to the communicator, whose engine the garbage collector cannot see
        @algorithm("allreduce")
        def mine(rank, size):
            assert part.size == size
            yield send(1 - rank, chunk=0)
            yield recv_reduce(1 - rank, chunk=0)

        return mine

    part = comm.split(0)
    mine = leading_back(part)
    x, out = np.ones(4), np.zeros(4)
    for _ in range(5):
        assert part.allreduce(x, out=out, algorithm=mine)[0] == 2
        assert part.allreduce(x, out=out)[0] == 2
        part.barrier()
    arrays = [weakref.ref(x), weakref.ref(out)]
    del x, out
    assert [each() for each in arrays] == [None, None]
    from collectives import calls, lowering, schedule

    whole, queue, gone = weakref.ref(part), weakref.ref(part._queue), weakref.ref(mine)
    part.close()
    del part, mine
    for bounded in (
        calls._native_plan, lowering._overlap, schedule._schedule, schedule._widest
    ):  # fmt: skip
        bounded.cache_clear()  # what is kept there, a later algorithm displaces
    gc.collect()
    assert [each() for each in (whole, queue, gone)] == [None] * 3


@ranks(2)
def test_a_closed_or_broken_communicator_repeats_nothing(comm):
    part = comm.split(0)
    x, out = np.ones(3), np.zeros(3)
    for _ in range(3):
        part.allreduce(x, out=out)
        part.barrier()
    part.close()
    for call in (part.barrier, lambda: part.allreduce(x, out=out)):
        with raising(collectives.CollectiveError, "closed"):
            call()
    still_works(comm)
