"""deterministic=True: the bits of ((x0 + x1) + x2) + ..., whatever memory arrays lie in."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from harness.batches import Batch
from harness.errors import raising, refused

import collectives
from collectives.schedule import algorithm, recv, recv_reduce, send

ranks = Batch()


def contributions(size, count, dtype, seed=0):
    """Numbers of very different sizes: another order of additions would show."""
    dice = np.random.default_rng(seed)
    scales = 2.0 ** dice.integers(-9, 10, (size, count))
    return (dice.standard_normal((size, count)) * scales).astype(dtype)


def in_order(each):
    """((x0 + x1) + x2) + ..., 16-bit floats in float32 with one rounding."""
    wide = np.float32 if each[0].dtype.itemsize == 2 else each[0].dtype
    total = each[0].astype(wide)
    for x in each[1:]:
        total = total + x.astype(wide)
    return total.astype(each[0].dtype)


def test_the_inputs_tell_orders_apart():
    for dtype in (np.float32, np.float64):
        each = contributions(3, 3000, dtype)
        assert in_order(each).tobytes() != in_order(each[::-1]).tobytes()
        assert in_order(each).tobytes() != in_order(each[[1, 2, 0]]).tobytes()
    for dtype in (np.float16, ml_dtypes.bfloat16):  # rounded after each addition
        each = contributions(3, 3000, dtype)
        assert in_order(each).tobytes() != ((each[0] + each[1]) + each[2]).tobytes()


def placed(comm, x, symmetric):
    """A copy of x, in memory of its own or of all ranks."""
    found = comm.empty(x.shape, x.dtype) if symmetric else np.empty_like(x)
    found[...] = x
    return found


@ranks(2, 3, 5)
def test_bits(comm):
    size, rank = comm.size, comm.rank
    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16, np.float64):
        for count in (1, 5, 3000, 40_001):
            each = contributions(size, count, dtype, count)
            wanted = in_order(each).tobytes()
            for symmetric in (False, True):
                x = placed(comm, each[rank], symmetric)
                for algorithm_name in (None, "linear", *(["one_sided"] if symmetric else ())):
                    by = {"deterministic": True, "algorithm": algorithm_name}
                    for _ in range(2):  # the second time it is known
                        out = placed(comm, np.zeros_like(x), symmetric)
                        found = comm.allreduce(x, out=out, **by)
                        assert found.tobytes() == wanted, (dtype, count, symmetric, by)
                    for root in {0, size - 1}:
                        found = comm.reduce(x, root=root, **by)
                        assert found is None or found.tobytes() == wanted, (dtype, count, by)
                if count > 3000:
                    continue
                rows = contributions(size, size * count, dtype, count + 1).reshape(size, size, -1)
                matrix = placed(comm, rows[rank], symmetric)
                part = in_order(rows[:, rank]).tobytes()
                for algorithm_name in (None, "linear", *(["one_sided"] if symmetric else ())):
                    found = comm.reduce_scatter(
                        matrix, deterministic=True, algorithm=algorithm_name
                    )
                    assert found.tobytes() == part, (dtype, count, symmetric, algorithm_name)
                counts = [1] * (size - 1) + [size * count - size + 1]
                flat = matrix.reshape(-1)
                found = comm.reduce_scatter(flat, counts=counts, deterministic=True)
                begin = sum(counts[:rank])
                total = in_order(rows.reshape(size, -1))
                assert found.tobytes() == total[begin : begin + counts[rank]].tobytes()


@ranks(3)
def test_other_operations(comm):
    each = contributions(3, 1001, np.float32)
    for op, wanted in (
        ("avg", in_order(each) / np.float32(3)), ("max", each.max(0)),
        ("prod", (each[0] * each[1]) * each[2]),
    ):  # fmt: skip
        found = comm.allreduce(each[comm.rank], op=op, deterministic=True)
        assert found.tobytes() == wanted.tobytes(), op
    x = np.arange(9) + comm.rank
    assert np.array_equal(comm.allreduce(x, deterministic=True), 3 * np.arange(9) + 3)


@algorithm("allreduce")
def backwards(rank, size):
    """Rank 0 adds up what the others have added up from the end."""
    if rank < size - 1:
        yield recv_reduce(rank + 1, chunk=0)
    if rank:
        yield send(rank - 1, chunk=0)
        yield recv(rank - 1, chunk=0)
    if rank < size - 1:
        yield send(rank + 1, chunk=0)


@ranks(3)
def test_an_algorithm_of_another_order_is_refused_with_those_that_do(comm):
    x, rows = np.ones(4, np.float32), np.ones((3, 4), np.float32)
    shared = comm.empty(4)
    shared[:] = 1
    for call, words in (
        (lambda: comm.allreduce(x, deterministic=True, algorithm="ring"),
         ["allreduce ring does not at 3 ranks; expected one of ", "one_shot", "linear"]),
        (lambda: comm.allreduce(shared, out=shared, deterministic=True, algorithm="tree"),
         ["allreduce tree does not at 3 ranks; expected one of ", "linear", "one_sided"]),
        (lambda: comm.reduce(x, deterministic=True, algorithm="chain"),
         ["reduce chain does not at 3 ranks; expected one of linear"]),
        (lambda: comm.reduce_scatter(rows, deterministic=True, algorithm="pairwise"),
         ["reduce_scatter pairwise does not at 3 ranks; expected one of linear"]),
        (lambda: comm.reduce_scatter(rows, deterministic=True, algorithm="ring"), ["linear"]),
    ):  # fmt: skip
        for _ in range(2):
            refused(comm, ValueError, ["folds in rank order", *words], call)
    assert comm.allreduce(x, algorithm=backwards)[0] == 3
    refused(comm, ValueError, ["allreduce backwards does not at 3 ranks", "linear"],
            lambda: comm.allreduce(x, algorithm=backwards, deterministic=True))  # fmt: skip


@ranks(1, 2)
def test_with_two_ranks_every_order_is_that_order(comm):
    each = contributions(comm.size, 1000, np.float32)
    for name in ("ring", "one_shot", "linear", "recursive_doubling"):
        found = comm.allreduce(each[comm.rank], algorithm=name, deterministic=True)
        assert found.tobytes() == in_order(each).tobytes(), name


@ranks(3)
def test_ranks_that_do_not_all_ask_for_it(comm):

    part = comm.split(0)
    x = np.ones(4)
    with raising(collectives.MismatchError, "in rank order"):
        part.allreduce(x, algorithm="one_shot", deterministic=part.rank == 1)
        part.barrier()
    part.close()
