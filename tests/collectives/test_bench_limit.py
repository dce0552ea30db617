"""The limit: what it moves is the collective itself, by ranks that really wait for one another."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from collectives.bench.cases import COLLECTIVES, REDUCING, Case, NotCarried
from collectives.bench.inputs import fill_input, wrong_elements
from collectives.bench.libraries.limit import METHODS, Limit, LimitTask, copied, least_moves
from collectives.bench.tasks import aligned_memory
from transports import _native

MOVED = [name for name in COLLECTIVES if name != "barrier"]


class Arrays:
    """Inputs and results of all ranks in this process, and the flags between them."""

    def __init__(self, case, size):
        self.case, self.size = case, size
        self.flags = aligned_memory(64 * size)
        self.flags[:] = 0
        self.blocks = [[aligned_memory(case.nbytes) for _ in range(2)] for _ in range(size)]
        for rank, (x, out) in enumerate(self.blocks):
            x[:], out[:] = 0xA5, 0xA5
            count = case.counts(rank, size)[0]
            if count:
                fill_input(x.view(np.int32)[:count], case, rank, size)
        if case.place == "in":
            for x, out in self.blocks:
                out[:] = x
                x[:] = 0xA5

    def run(self, method, pingpong=False, calls=1):
        """All ranks at once, a thread each."""
        inputs = [x.ctypes.data for x, _ in self.blocks]
        results = [out.ctypes.data for _, out in self.blocks]
        if self.case.place == "in":
            inputs = results

        def work(rank):
            moves = least_moves(self.case, rank, self.size, inputs, results)
            return _native.limit_calls(
                method, pingpong, moves, 1, 64, self.flags.ctypes.data, rank, self.size, 0, calls, 9
            )  # fmt: skip

        with ThreadPoolExecutor(self.size) as pool:
            numbers = set(pool.map(work, range(self.size)))
            # Every rank may go on when all have moved: the next exchange.
        assert numbers == {calls}

    def wrong(self, rank):
        count = self.case.counts(rank, self.size)[1]
        result = self.blocks[rank][1].view(np.int32)[:count]
        return wrong_elements(result, self.case, rank, self.size)


@pytest.mark.parametrize("method", ["kernel", "stream"])
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("collective", MOVED)
def test_what_is_moved_is_the_collective(collective, size, method):
    for nbytes in (4, 60, 128 * 9 * size, 40_000):
        op = "sum" if collective in REDUCING else ""
        case = Case(collective=collective, nbytes=nbytes, dtype="int32", op=op, root=size - 1)
        case = case.rounded(size * size)  # shares of whole elements
        arrays = Arrays(case, size)
        if case.nbytes % (4 * size):
            continue  # a share would be no whole element: the limit's bytes are not checked
        arrays.run(method)
        for rank in range(size):
            assert arrays.wrong(rank) == 0, (nbytes, rank)


@pytest.mark.parametrize("collective", ["allreduce", "broadcast", "reduce"])
def test_in_place_too(collective):
    op = "sum" if collective in REDUCING else ""
    case = Case(collective=collective, nbytes=4096, dtype="int32", op=op, place="in")
    arrays = Arrays(case, 2)
    arrays.run("kernel")
    assert [arrays.wrong(rank) for rank in range(2)] == [0, 0]


def test_pingpong_moves_both_ways_and_leaves_others_alone():
    arrays = Arrays(Case(collective="pingpong", nbytes=4096, dtype="int32"), 3)
    arrays.run("kernel", pingpong=True, calls=5)
    assert [arrays.wrong(rank) for rank in range(3)] == [0, 0, 0]
    assert (arrays.blocks[2][1] == 0xA5).all()


def test_calls_go_round_the_sets_of_arrays():
    source, out = aligned_memory(4 * 128), aligned_memory(4 * 128)
    flags = aligned_memory(64)
    source[:], out[:], flags[:] = np.arange(512) % 251, 0, 0
    for method in METHODS:
        out[:] = 0
        moves = [([source.ctypes.data], [out.ctypes.data], 100)]
        flags[:] = 0
        _native.limit_calls(method, False, moves, 4, 128, flags.ctypes.data, 0, 1, 0, 3, 1.0)
        for i in range(4):
            there = out[i * 128 : i * 128 + 100]
            assert (there == (source[i * 128 : i * 128 + 100] if i < 3 else 0)).all()
            assert not out[i * 128 + 100 : (i + 1) * 128].any()


def test_a_flag_that_is_never_raised_ends_the_wait():
    flags = aligned_memory(128)
    flags[:] = 0
    with pytest.raises(RuntimeError, match=r"rank 1 has not raised its flag within 0\.05"):
        _native.limit_calls("copy", False, [], 1, 64, flags.ctypes.data, 0, 2, 0, 1, 0.05)


@pytest.mark.parametrize(
    "change, text",
    [
        ({"method": "magic"}, "expected copy, stream or kernel, found magic"),
        ({"sets": 0}, "sets: expected at least 1, found 0"),
        ({"moves": [([], [1], 8)]}, "expected a source for each, found none"),
        ({"moves": [([1, 2], [1], 8)]}, "expected one source for a copy, found 2"),
    ],
)
def test_wrong_requests_are_refused(change, text):
    flags = aligned_memory(64)
    right = {
        "method": "copy", "pingpong": False, "moves": [], "sets": 1, "stride": 64,
        "lines": flags.ctypes.data, "rank": 0, "ranks": 1, "number": 0, "calls": 1, "timeout": 1.0,
    }  # fmt: skip
    with pytest.raises(ValueError, match=text):
        _native.limit_calls(**{**right, **change})


def test_a_copy_moves_as_many_bytes_as_the_collective():
    def moved(collective, rank=0, size=4):
        moves = copied(Case(collective=collective, nbytes=4096), rank, size, 1, 2)
        return sum(nbytes for _, _, nbytes in moves)

    assert moved("allreduce") == moved("allgather") == moved("broadcast") == 4096
    assert moved("gather") == moved("scatter") == 1024
    assert moved("barrier") == moved("pingpong", rank=2) == 0
    assert moved("stream") == 2048
    with pytest.raises(NotCarried, match="reduce_scatter reads more than it writes"):
        moved("reduce_scatter")


@pytest.fixture
def shared():
    descriptor = os.memfd_create("collectives-limit")
    os.ftruncate(descriptor, 1 << 30)
    yield descriptor
    os.close(descriptor)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("cold", [False, True])
def test_a_task_times_its_calls_and_gives_its_memory_back(shared, method, cold):
    limit = Limit(0, 1, shared)
    case = Case(collective="allreduce", nbytes=1 << 16, op="sum", cold=cold)
    task = limit.task(case, method, 1 << 20)
    assert isinstance(task, LimitTask)
    assert task.seconds(10) > 0 and task.wrong() == 0
    used = os.fstat(shared).st_blocks * 512
    assert used >= (1 << 16 if method != "copy" else 0)
    del task
    assert os.fstat(shared).st_blocks * 512 <= 1 << 16  # the flags
