"""counts=: parts of different lengths, none included, for the collectives that have them."""

from __future__ import annotations

import numpy as np
from harness.batches import Batch
from harness.errors import refused
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

ranks = Batch()


def parts_of(size):
    """Ways to share entries out among ranks."""
    return [
        [1] * size,
        list(range(size)),
        list(range(size, 0, -1)),
        [0] * size,
        [5] + [0] * (size - 1),
        [0] * (size - 1) + [3],
        [1000 if rank == size // 2 else 0 for rank in range(size)],
        [(rank * 7 + 1) % 5 for rank in range(size)],
    ]


def whole_of(counts, row, dtype):
    return (
        (np.arange(sum(counts) * int(np.prod(row))) % 100).astype(dtype).reshape(sum(counts), *row)
    )


def pieces(whole, counts):
    return np.split(whole, np.cumsum(counts)[:-1])


def check(comm, counts, row, dtype, root):
    """All v-forms but alltoall for one choice of counts."""
    rank, size = comm.rank, comm.size
    whole = whole_of(counts, row, dtype)
    mine = pieces(whole, counts)[rank]
    found = comm.allgather(mine, counts=counts)
    assert found.shape == whole.shape and np.array_equal(found, whole)
    found = comm.gather(mine, counts=counts, root=root)
    assert found is None if rank != root else np.array_equal(found, whole)
    found = comm.scatter(whole if rank == root else None, counts=counts, root=root)
    assert found.shape == mine.shape and np.array_equal(found, mine)
    found = comm.reduce_scatter(whole, counts=counts)
    assert found.shape == mine.shape and np.array_equal(found, (size * mine).astype(dtype))
    out = np.empty_like(mine)
    assert comm.scatter(whole, counts=counts, root=root, out=out) is out
    assert np.array_equal(out, mine)
    out = np.empty_like(whole)
    assert comm.allgather(mine, counts=counts, out=out) is out and np.array_equal(out, whole)


@ranks(1, 2, 3)
def test_uneven_parts(comm):
    for number, counts in enumerate(parts_of(comm.size)):
        for row in ((), (3,), (2, 0), (1, 2)):
            check(comm, counts, row, "int32", number % comm.size)
    check(comm, np.arange(comm.size), (2,), "float64", 0)  # counts of numpy
    check(comm, tuple(range(comm.size)), (2,), "uint8", 0)


@ranks(3)
def test_every_algorithm_takes_counts(comm):
    from harness.conformance import MESSAGES

    def names(collective):
        return [name for of, name in MESSAGES if of == collective]

    counts = [4, 0, 9]
    whole = whole_of(counts, (2,), "int64")
    mine = pieces(whole, counts)[comm.rank]
    for name in names("allgather"):
        assert np.array_equal(comm.allgather(mine, counts=counts, algorithm=name), whole), name
    for name in names("reduce_scatter"):
        found = comm.reduce_scatter(whole, counts=counts, algorithm=name)
        assert np.array_equal(found, 3 * mine), name
    for root in range(comm.size):
        for name in names("gather"):
            found = comm.gather(mine, counts=counts, root=root, algorithm=name)
            assert found is None if comm.rank != root else np.array_equal(found, whole), name
        for name in names("scatter"):
            x = whole if comm.rank == root else None
            found = comm.scatter(x, counts=counts, root=root, algorithm=name)
            assert np.array_equal(found, mine), name


@ranks(1, 2, 3)
def test_alltoall_of_uneven_parts(comm):
    size, rank = comm.size, comm.rank
    tables = [
        np.ones((size, size), int),
        np.zeros((size, size), int),
        np.arange(size * size).reshape(size, size),
        np.triu(np.full((size, size), 4)),
        np.eye(size, dtype=int) * 6,
        np.where(np.arange(size) == 0, 50, 0)[None].repeat(size, 0),  # all to rank 0
    ]
    for table in tables:
        for row in ((), (3,)):
            sent, received = table[rank], table[:, rank]
            x = np.concatenate([np.full((n, *row), 100 * rank + d) for d, n in enumerate(sent)])
            wanted = np.concatenate(
                [np.full((n, *row), 100 * s + rank) for s, n in enumerate(received)]
            )
            counts = (sent.tolist(), received.tolist())
            found = comm.alltoall(x, counts=counts)
            assert found.shape == wanted.shape and np.array_equal(found, wanted)
            assert np.array_equal(comm.alltoall(x, counts=counts, algorithm="pairwise"), wanted)
            out = np.empty_like(wanted)
            assert comm.alltoall(x, counts=counts, out=out) is out and np.array_equal(out, wanted)
            if (table == table.T).all():
                assert comm.alltoall(x, counts=counts, out=x) is x and np.array_equal(x, wanted)


@ranks(1, 3)
def test_wrong_counts_are_refused(comm):
    size, rank = comm.size, comm.rank
    x = np.zeros((2 * size, 2))
    even = [2] * size
    forms = (comm.allgather, comm.gather, comm.scatter, comm.reduce_scatter)
    for call in forms:
        for counts, kind, words in (
            ([1] * (size + 1), ValueError, [f"expected {size} entries", f"found {size + 1}"]),
            ([], ValueError, [f"expected {size} entries", "found 0"]),
            ([-1] * size, ValueError, ["not be negative", "-1"]),
            ([1.0] * size, TypeError, ["integers", "1.0"]),
            (["1"] * size, TypeError, ["integers", "'1'"]),
            (3, TypeError, ["integers", "3"]),
        ):
            refused(comm, kind, ["counts", *words], lambda c=call, n=counts: c(x, counts=n))
    # The leading axis is not what the counts say.
    three = [3] * size
    for call in (comm.allgather, comm.gather):
        refused(comm, ValueError, ["leading axis of length 3", f"counts[{rank}]", str(x.shape)],
                lambda c=call: c(x, counts=three))  # fmt: skip
    refused(comm, ValueError, [f"leading axis of length {3 * size}", "sum(counts)"],
            lambda: comm.reduce_scatter(x, counts=three))  # fmt: skip
    if size == 1:
        refused(comm, ValueError, ["leading axis of length 3", "sum(counts)"],
                lambda: comm.scatter(x, counts=three))  # fmt: skip
    refused(comm, ValueError, ["leading axis"], lambda: comm.allgather(np.array(1), counts=even))
    for counts, kind, words in (
        ((even,), ValueError, ["(sent, received)", "found 1"]),
        ((even, even, even), ValueError, ["(sent, received)", "found 3"]),
        (5, TypeError, ["(sent, received)", "5"]),
        ((even, even[1:]), ValueError, [f"expected {size} entries", f"found {size - 1}"]),
        ((three, even), ValueError, ["sum(counts[0])", str(3 * size)]),
    ):
        refused(comm, kind, words, lambda n=counts: comm.alltoall(x, counts=n))
    out = np.zeros((2 * size + 1, 2))
    refused(comm, ValueError, ["out", f"({2 * size}, 2)", f"({2 * size + 1}, 2)"],
            lambda: comm.alltoall(x, counts=(even, even), out=out))  # fmt: skip


@ranks(4)
def test_an_alltoall_that_relays_refuses_counts(comm):
    even = [1] * comm.size
    for name in ("bruck", "tree"):
        refused(comm, ValueError, ["relays", "pairwise"],
                lambda n=name: comm.alltoall(np.zeros(4), counts=(even, even), algorithm=n)
                )  # fmt: skip


@ranks(2, 3)
def test_any_counts(comm):
    """Rank 0 draws the examples; the others learn of them, until there are no more."""
    types = st.sampled_from(["bool", "int8", "uint16", "float32", "int64", "float64"])

    def run(example):
        counts, row, dtype, root = example
        whole = whole_of(counts, row, dtype)
        mine = pieces(whole, counts)[comm.rank]
        assert np.array_equal(comm.allgather(mine, counts=counts), whole)
        part = comm.scatter(whole if comm.rank == root else None, counts=counts, root=root)
        assert np.array_equal(part, mine)
        summed = comm.reduce_scatter(whole, counts=counts, op="max")
        assert np.array_equal(summed, mine)
        found = comm.gather(mine, counts=counts, root=root)
        assert found is None if comm.rank != root else np.array_equal(found, whole)

    if comm.rank:
        while (example := comm.broadcast_object(None)) is not None:
            run(example)
        return

    @settings(max_examples=60, deadline=None, database=None, derandomize=True,
              phases=[Phase.generate], suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(
        st.lists(st.integers(0, 700), min_size=comm.size, max_size=comm.size),
        st.lists(st.integers(0, 3), max_size=2).map(tuple),
        types,
        st.integers(0, comm.size - 1),
    )
    def draw(counts, row, dtype, root):
        example = counts, row, dtype, root
        comm.broadcast_object(example)
        run(example)

    draw()
    comm.broadcast_object(None)
