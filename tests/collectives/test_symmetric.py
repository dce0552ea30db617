"""comm.empty: what it makes and refuses, when memory is used again, who reaches it, what stays."""

from __future__ import annotations

import gc
import os
import re
import resource
import signal
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from harness.batches import Batch
from harness.errors import raising, refused, still_works
from harness.processes import Ranks, say, told

import collectives
import launch

ranks = Batch()


def blocks():
    """How many pieces of our shared memory this process has mapped."""
    return Path("/proc/self/maps").read_text().count("/memfd:collectives")


def addresses(comm, x):
    """Where the array lies on this rank, and whether the engine can reach it elsewhere."""
    address = x.ctypes.data if isinstance(x, np.ndarray) else x.data_ptr()
    return address, comm._engine.is_symmetric(address, x.nbytes)


def reaches(comm, x):
    """Whether a one-sided call of the communicator works on x, on every rank alike."""
    x[...] = comm.rank + 1
    found = comm.allgather(x, algorithm="one_sided")
    wanted = np.arange(1, comm.size + 1)
    assert all(np.all(each == value) for each, value in zip(found, wanted, strict=True))


SHAPES = {
    0: (0,), 1: (1,), 7: (7,), (): (), (3,): (3,), (2, 3): (2, 3), (4, 0, 2): (4, 0, 2),
    (1, 1, 1, 5): (1, 1, 1, 5), np.int64(6): (6,), (np.int8(2), 2): (2, 2),
}  # fmt: skip
DTYPES = (
    np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int8, np.uint64, np.bool_, "i4",
    np.complex128, ">f4", "S5", "M8[s]", "V7", [("a", "i4"), ("b", "f8", 2)],
)  # fmt: skip


@ranks(1, 2, 3)
def test_shapes(comm):
    for shape, wanted in SHAPES.items():
        x = comm.empty(shape)
        assert type(x) is np.ndarray and x.shape == wanted and x.dtype == np.float32
        assert x.flags.c_contiguous and x.flags.writeable and x.flags.aligned
        assert addresses(comm, x) == (x.ctypes.data, True), shape
        x[...] = comm.rank
        assert np.all(comm.allreduce(x, out=x) == sum(range(comm.size)))
    assert comm.empty([2, 5], dtype="u1").shape == (2, 5)
    assert comm.empty(np.array([2, 5])).shape == (2, 5)
    assert comm.empty(range(2, 4)).shape == (2, 3)


@ranks(1, 2)
def test_numpy_types(comm):
    for dtype in DTYPES:
        x = comm.empty((comm.size, 3), dtype)
        assert x.dtype == np.dtype(dtype) and x.shape == (comm.size, 3), dtype
        mine = np.frombuffer(bytes(range(1, 1 + 3 * x.itemsize)), x.dtype)
        x[...] = mine
        found = comm.alltoall(x, algorithm="one_sided")
        assert found.dtype == x.dtype and found.tobytes() == x.tobytes(), dtype
        assert comm.broadcast(x, root=comm.size - 1).tobytes() == x.tobytes()


@ranks(1, 2)
def test_torch_types(comm):
    import torch

    for dtype in (
        torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.uint8,
        torch.int64, torch.bool, torch.complex64,
    ):  # fmt: skip
        for shape in ((), 0, 5, (comm.size, 3)):
            x = comm.empty(shape, dtype)
            assert isinstance(x, torch.Tensor) and x.dtype is dtype and x.is_contiguous()
            assert tuple(x.shape) == ((shape,) if isinstance(shape, int) else shape)
            assert addresses(comm, x)[1] == (shape != 0), (dtype, shape)  # torch: 0 lies nowhere
            x.fill_(1)
            found = comm.allgather(x, algorithm="one_sided" if shape != 0 else None)
            assert found.dtype is dtype and bool((found == 1).all())
    x = comm.empty(6, torch.bfloat16).fill_(1.5)
    assert comm.allreduce(x, out=x) is x and x.tolist() == [1.5 * comm.size] * 6
    kept = x[2:4]
    del x
    comm.empty(6, torch.bfloat16).fill_(0)
    assert kept.tolist() == [1.5 * comm.size] * 2


@ranks(1, 2)
def test_what_is_no_shape_or_type_is_refused(comm):
    for shape in (2.0, "34", None, (2, 2.5), [None], ("2",), object(), {2.5}):
        refused(comm, TypeError, ["shape must be an integer or several", repr(shape)],
                lambda s=shape: comm.empty(s))  # fmt: skip
    for shape in (-1, (3, -2), (0, -1)):
        refused(comm, ValueError, ["shape must not have negative lengths", "-"],
                lambda s=shape: comm.empty(s))  # fmt: skip
    for dtype, words in (
        (object, ["object", "Python objects", "cannot be shared"]),
        ([("a", "i4"), ("b", object)], ["Python objects"]),
        ("float31", ["dtype must be a numpy or torch type, found 'float31'"]),
        ("f4,,", ["dtype must be a numpy or torch type, found 'f4,,'"]),
        (5, ["dtype must be a numpy or torch type, found 5"]),
        (str, ["<U0", "no bytes"]),
        ("V0", ["no bytes"]),
    ):
        refused(comm, TypeError, words, lambda d=dtype: comm.empty(3, d))


@ranks(2, 3)
def test_ranks_that_ask_for_different_arrays(comm):
    asked = (
        ((4,), np.float32, "float32[4]", (5,), np.float32, "float32[5]"),
        ((4,), np.float32, "float32[4]", (2, 2), np.float32, "float32[2, 2]"),
        ((4,), np.float32, "float32[4]", (4,), np.int32, "int32[4]"),
    )
    for shape, dtype, text, other, kind, its in asked:
        part = comm.split(0)
        last = part.size - 1
        with raising(
            collectives.MismatchError,
            f"empty: rank 0 asks for {text}, rank {last} asks for {its}",
        ):
            part.empty(*((other, kind) if part.rank == last else (shape, dtype)))
        with raising(collectives.MismatchError, "asks for"):
            part.barrier()
        part.close()
    still_works(comm)


@ranks(2, 3)
def test_memory_is_used_again_once_all_have_dropped_it(comm):
    last = comm.size - 1
    first = comm.empty(1000)
    first[:] = comm.rank
    place = first.ctypes.data
    kept = first[10:20] if comm.rank == last else None  # a view is enough
    del first
    second = comm.empty(1000)
    second[:] = -1
    assert second.ctypes.data != place
    assert kept is None or kept.tolist() == [last] * 10
    del kept
    third = comm.empty((10, 90))  # shorter, but near enough
    assert third.ctypes.data == place
    fourth = comm.empty(1000)
    assert fourth.ctypes.data not in (place, second.ctypes.data)
    for x in (second, third, fourth):
        reaches(comm, x)
    before = blocks()
    for _ in range(20):
        del third
        third = comm.empty((10, 90))
        assert third.ctypes.data == place
    assert blocks() <= before  # what other tests left may go meanwhile
    one = comm.empty(1)  # a program of small arrays next to large ones
    assert one.ctypes.data not in (place, second.ctypes.data, fourth.ctypes.data)


@ranks(2)
def test_a_program_of_ever_other_shapes_does_not_grow(comm):
    before = blocks()
    most = 0
    for turn in range(60):
        x = comm.empty(20_000 + 30_000 * turn, np.uint8)
        x[:] = turn
        reaches(comm, x)
        most = max(most, blocks() - before)
        del x
    assert most <= 2, most
    comm.empty(1)
    gc.collect()
    assert blocks() - before <= 2
    assert len(comm._blocks) <= 2 and len(comm._pool.own) <= 2


@ranks(2)
def test_views_outlive_the_communicator(comm):
    part = comm.split(0)
    x = part.empty((4, 5))
    x[...] = np.arange(20).reshape(4, 5) + comm.rank
    view = x[1:, 2:].T
    part.close()
    with raising(collectives.CollectiveError, "closed"):
        part.empty(3)
    del part, x
    gc.collect()
    wanted = (np.arange(20).reshape(4, 5) + comm.rank)[1:, 2:].T
    assert np.array_equal(view, wanted)
    view += 1
    assert np.array_equal(view, wanted + 1)
    comm.barrier()
    before = blocks()
    del view
    gc.collect()
    assert blocks() < before


@ranks(4)
def test_communicators_split_from_it_reach_its_memory(comm):
    old = comm.empty((4, 6))
    half = comm.split(comm.rank % 2, key=-comm.rank)  # in another order
    quarter = half.split(0)
    new = comm.empty((2, 4, 6))[1]
    for part in (half, quarter):
        for x in (old, new):
            assert addresses(part, x)[1]
            reaches(part, x[: part.size])
            x[...] = comm.rank
            part.allreduce(x, out=x, algorithm="one_sided")
            assert np.all(x == sum(range(comm.rank % 2, 4, 2)))
    own = half.empty(5)  # whose others cannot reach it
    assert addresses(half, own)[1] and addresses(quarter, own)[1]
    assert not addresses(comm, own)[1]
    reaches(quarter, own)
    for part in (quarter, half):
        part.close()
    del part, half, quarter
    del old, new
    gc.collect()
    reaches(comm, comm.empty(7))


@ranks(2)
def test_elsewhere_it_is_an_ordinary_array(comm):
    one, other = comm.split(0), comm.split(0)
    x, out = one.empty(5000), one.empty(5000)
    for stranger in (comm, other):
        x[:] = comm.rank
        assert not addresses(stranger, x)[1]
        for _ in range(3):
            assert np.all(stranger.allreduce(x, out=out) == 1)
        refused(
            stranger, ValueError,
            ["allreduce one_sided reaches into the memory of peers",
             "expected x and out from comm.empty, contiguous, found none"],
            lambda s=stranger: s.allreduce(x, out=out, algorithm="one_sided"),
        )  # fmt: skip
    assert np.all(one.allreduce(x, out=out, algorithm="one_sided") == 1)
    one.close()
    other.close()


@ranks(1, 2, 3)
def test_no_memory_to_be_had(comm):
    for length in (1 << 43, 1 << 62, 1 << 63, 1 << 64, 10**30):
        with raising(MemoryError, "shared memory cannot be had"):
            comm.empty(length, np.int8)
        with raising(MemoryError, "shared memory cannot be had"):
            comm.empty((length, 3), np.float64)
        still_works(comm)
    nbytes = 4 << 43
    text = f"empty: float32[{1 << 43}, 1] is {nbytes} bytes on every rank, times {comm.size} ranks"
    with raising(MemoryError, text, "cannot be had"):
        comm.empty((1 << 43, 1), np.float32)
    reaches(comm, comm.empty(9))


def _with_little_room(comm, short_of_it):
    if comm.rank == short_of_it:
        status = Path("/proc/self/status").read_text()
        used = int(re.search(r"VmSize:\s+(\d+)", status)[1]) << 10
        resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))
    with raising(MemoryError, "Cannot allocate memory"):
        comm.empty(128 << 20, np.int8)
    if comm.rank == short_of_it:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    reaches(comm, comm.empty(9))


@pytest.mark.parametrize("short_of_it", [0, 1])
def test_memory_that_one_rank_cannot_map_is_no_rank_s(short_of_it):
    launch.spawn(_with_little_room, 2, short_of_it, timeout=30)


@ranks(2)
def test_what_else_keeps_the_first_rank_from_making_memory(comm):
    """Every rank hears of it, whatever it is."""
    import errno

    from collectives import symmetric

    once = symmetric.allocate

    def refuse(size):
        raise OSError(errno.EMFILE, "too many open files")

    symmetric.allocate = refuse
    try:
        with raising(OSError, "too many open files"):
            comm.empty(3)
    finally:
        symmetric.allocate = once
    reaches(comm, comm.empty(3))


@ranks(2)
def test_asynchronous_calls_before_it_take_their_turn(comm):
    works = [comm.allreduce(np.full(1000, k), async_op=True) for k in range(10)]
    x = comm.empty(10)
    works.append(comm.allreduce(np.full(1000, 10), async_op=True))
    assert [work.wait()[0] for work in works] == [2 * k for k in range(11)]
    reaches(comm, x)


def end_with_memory():
    with collectives.init(timeout=60) as comm:
        x, out = comm.empty(100_000), comm.empty(100_000)
        x[:] = comm.rank
        comm.allreduce(x, out=out)
        say("ready")
        told()
        began = time.monotonic()
        try:
            comm.allreduce(x, out=out)
            comm.allreduce(x, out=out)
        except collectives.PeerLostError as error:
            return str(error), time.monotonic() - began, float(x.sum())


def test_a_killed_rank_leaves_nothing():  # what is left the rules of all tests see
    with Ranks(end_with_memory, 3) as job:
        assert [job.said(rank) for rank in range(3)] == ["ready"] * 3
        job.kill(1)
        assert job.outcome(1).code == -signal.SIGKILL
        for rank in (0, 2):
            job.tell(rank)
        for rank in (0, 2):
            text, took, total = job.outcome(rank).value
            assert "rank 1" in text and f"pid {job.processes[1].pid}" in text and took < 10
            assert total == rank * 100_000  # memory of a lost peer stays what it was


def _killed_while_they_meet():
    import collectives.symmetric

    with collectives.init(timeout=30) as comm:
        comm.barrier()
        if comm.rank == 0:
            # What offers its memory once all have come.
            collectives.symmetric.os.dup = lambda _: os.kill(os.getpid(), signal.SIGKILL)
        comm.empty(1000)


@pytest.mark.parametrize("turn", range(4))
def test_a_rank_that_is_killed_while_they_meet_is_lost_to_all(turn):
    """Its connections end before its process has: a rank that sees only that tells the others."""
    with Ranks(_killed_while_they_meet, 4) as job:
        outcomes = [job.outcome(rank) for rank in (1, 2, 3)]
    assert [outcome.error for outcome in outcomes] == ["PeerLostError"] * 3, outcomes
    assert all("rank 0" in outcome.text for outcome in outcomes), outcomes


@ranks(2)
def test_of_no_elements(comm):
    import torch

    counts = (0, 70_000)
    for dtype in (np.float32, torch.float32):
        nothing, x, out = (comm.empty((count,), dtype) for count in (0, 70_000, 70_000))
        for each in (nothing, x[5:5]):
            assert tuple(comm.allgather(each, algorithm="one_sided").shape) == (2, 0)
        x[:] = comm.rank + 1
        mine = out[: counts[comm.rank]]
        assert comm.reduce_scatter(x, out=mine, counts=counts, algorithm="one_sided") is mine
        assert all(mine == 3)
