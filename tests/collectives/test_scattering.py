"""scatter once its shape is known: what comes is told by the first message, header or data."""

from __future__ import annotations

import numpy as np
from harness.batches import Batch
from harness.errors import raising, refused, still_works

import collectives
from collectives import scattering
from collectives.schedule import algorithm, recv, send

ranks = Batch()
tight = Batch({
    "COLLECTIVES_SLOTS": "2", "COLLECTIVES_SLOT_BYTES": "64", "COLLECTIVES_DEPTH": "2",
})  # fmt: skip

DTYPES = ("float32", "int16", "bool", "M8[s]", "S3")


@algorithm("scatter")
def mine(rank, size, root):
    if rank != root:
        yield recv(root, chunk=rank)
    else:
        for peer in range(size):
            if peer != root:
                yield send(peer, chunk=peer)


def rows_of(dice, size, counts, numpy_only):
    """An array of some type and shape, the same on every rank; what is said of it."""
    dtype = np.dtype(DTYPES[dice.integers(len(DTYPES) if numpy_only else 2)])
    rest = [(), (3,), (2, 2), (0,), (70,), (4, 1)][dice.integers(6)]
    shape = (size if counts is None else sum(counts), *rest)
    data = dice.integers(1, 100, int(np.prod(shape)) * dtype.itemsize, np.uint8)
    if dtype == np.bool_:
        data %= 2
    return np.frombuffer(data.tobytes(), dtype).reshape(shape)


def random_scatters(comm, turns, seed=0, names=(None, "linear", "ring", "tree", mine)):
    """Scatters of everything in any order, blocking or not, with out or not; checked one by one."""
    import torch

    dice, own = np.random.default_rng(seed), np.random.default_rng(seed + 100 + comm.rank)
    size, rank = comm.size, comm.rank
    pending = []
    reused = {}
    for turn in range(turns):
        root = int(dice.integers(size))
        counts = None if dice.random() < 0.7 else dice.integers(0, 4, size).tolist()
        family = ("numpy", "torch")[int(dice.random() < 0.3)]
        rows = rows_of(dice, size, counts, family == "numpy")
        name = names[dice.integers(len(names))]
        bounds = np.cumsum([0, *(counts or [1] * size)])
        wanted = rows[bounds[rank] : bounds[rank + 1]] if counts else rows[rank]
        x = rows if family == "numpy" else torch.from_numpy(rows.copy())
        keywords = {"root": root, "counts": counts, "algorithm": name}
        if own.random() < 0.6:  # only some ranks give an out, only some call at once
            out = reused.setdefault((wanted.shape, wanted.dtype), np.zeros_like(wanted))
            if own.random() < 0.2 or pending:
                out = np.zeros_like(wanted)
            keywords["out"] = out if family == "numpy" else torch.from_numpy(out)
        asynchronous = bool(own.random() < 0.3)
        given = x if rank == root else (None, rows, "anything")[own.integers(3)]
        found = comm.scatter(given, async_op=asynchronous, **keywords)
        pending.append((turn, found if asynchronous else None, found, wanted, keywords.get("out")))
        if not asynchronous:
            for number, work, result, right, out in pending:
                value = result if work is None else work.wait(30)
                assert out is None or value is out
                value = value if isinstance(value, np.ndarray) else value.numpy()
                assert value.dtype == right.dtype and value.shape == right.shape, number
                assert value.tobytes() == right.tobytes(), (number, value, right)
            pending.clear()
    comm.barrier()
    for _, work, _, right, _ in pending:
        assert np.asarray(work.wait(30)).tobytes() == right.tobytes()


@ranks(1, 2, 3)
def test_everything_in_any_order(comm):
    for seed in range(3):
        random_scatters(comm, 80, seed)
    still_works(comm)


@tight(2, 3)
def test_with_the_fewest_slots(comm):
    random_scatters(comm, 60, 7)


@ranks(2, 3)
def test_more_calls_than_are_kept(comm):
    once = scattering._MOST_TOLD
    scattering._MOST_TOLD = 5
    try:
        random_scatters(comm, 100, 11)
        assert sum(map(len, comm._told.values())) <= 5
    finally:
        scattering._MOST_TOLD = once


@ranks(2, 3)
def test_no_header_once_it_is_known(comm):
    rows, out = np.arange(4.0 * comm.size).reshape(comm.size, 4), np.zeros(4)
    other = rows.astype(np.float32)
    for root in range(comm.size):
        for x, taken in ((rows, out), (rows, None), (other, None)):
            mine_ = x if comm.rank == root else None
            comm.scatter(mine_, root=root, out=taken)
            before = comm._engine.calls
            for _ in range(3):
                found = comm.scatter(mine_, root=root, out=taken)
                assert np.array_equal(found, x[comm.rank])
            assert comm._engine.calls - before == 3
    big = np.zeros((comm.size, 3), [(f"a field of number {k}", "i4") for k in range(60)])
    big[:] = (7,) * 60  # the header of such a type takes a message more
    for _ in range(2):
        found = comm.scatter(big if comm.rank == 0 else None)
        assert found.dtype == big.dtype and found.tobytes() == big[0].tobytes()


@ranks(2, 3)
def test_a_known_one_takes_turns_with_others(comm):
    """Between known scatters come other calls, of which nobody mistakes a message for one."""
    rows, out = np.arange(2.0 * comm.size).reshape(comm.size, 2), np.zeros(2)
    x, total = np.ones(2), np.zeros(2)
    for turn in range(60):
        root = turn % comm.size
        comm.scatter(rows + turn if comm.rank == root else None, root=root, out=out)
        assert np.array_equal(out, rows[comm.rank] + turn)
        if turn % 2:
            assert comm.allreduce(x, out=total)[0] == comm.size
        if turn % 3 == 0:
            comm.barrier()
        if turn % 5 == 0:
            assert comm.broadcast_object(turn, root=root) == turn


@ranks(2, 3)
def test_an_out_that_does_not_fit_a_known_one(comm):
    last = comm.size - 1
    for out, words in (
        (np.zeros(3), ["expected shape (2,)", "found (3,)"]),
        (np.zeros(2, np.int8), ["expected float64", "found int8"]),
    ):
        part = comm.split(0)
        good, x = np.zeros(2), np.ones((part.size, 2)) if part.rank == 0 else None
        for _ in range(4):
            part.scatter(x, out=good)
        part.barrier()
        with raising(collectives.MismatchError, "scatter float64", f"rank {last}: out", *words):
            part.scatter(x, out=out if part.rank == last else good)
            part.barrier()
        part.close()
    still_works(comm)


@ranks(2, 3)
def test_ranks_that_do_not_scatter_the_same(comm):
    for what in ("root", "counts", "collective", "algorithm", "user's", "user's at the root"):
        part = comm.split(0)
        odd = part.rank == part.size - 1
        rows, out = np.ones((part.size, 2)), np.zeros(2)
        x = rows if part.rank == 0 else None
        for _ in range(3):
            part.scatter(x, out=out)
        part.barrier()  # nobody is in a good call any more when it is noticed
        with raising(collectives.MismatchError, "rank"):
            if not odd:
                by = {"algorithm": "ring", "user's at the root": mine}.get(what)
                part.scatter(x, out=None if by else out, algorithm=by)
            elif what == "root":
                part.scatter(rows, root=part.rank)
            elif what == "counts":
                part.scatter(None, counts=[1] * part.size)
            elif what == "algorithm":
                part.scatter(None, algorithm="tree")
            elif what.startswith("user's"):
                part.scatter(None, algorithm=mine if what == "user's" else None)
            else:
                part.allreduce(out)
            part.barrier()
            part.barrier()
        part.close()
    still_works(comm)


@ranks(2)
def test_wrong_arguments_after_a_good_call(comm):
    rows, out = np.ones((2, 2)), np.zeros(2)
    for _ in range(3):
        comm.scatter(rows if comm.rank == 0 else None, out=out)
    if comm.rank == 0:
        before = comm._engine.calls
        for x, taken, kind, words in (
            (rows[:1], out, ValueError, ["x: expected a leading axis of length 2", "(1, 2)"]),
            (rows, np.zeros(3), ValueError, ["out: expected shape (2,), found (3,)"]),
            (rows, rows[1], ValueError, ["x and out overlap"]),
            (None, out, TypeError, ["x: expected a numpy array"]),
            (np.array([[None]] * 2), None, TypeError, ["Python objects"]),
        ):
            with raising(kind, *words):
                comm.scatter(x, out=taken)
        assert comm._engine.calls == before
    still_works(comm)
    refused(comm, ValueError, ["unknown algorithm 'rang' for scatter"],
            lambda: comm.scatter(rows, algorithm="rang"))  # fmt: skip
    refused(comm, ValueError, ["root", "2"], lambda: comm.scatter(rows, root=2))
    refused(comm, ValueError, ["timeout"], lambda: comm.scatter(rows, timeout=0))
    assert comm.scatter(rows if comm.rank == 0 else None, out=out) is out


@ranks(2)
def test_a_deadline_while_it_waits_for_what_comes(comm):
    part = comm.split(0)
    out = np.zeros(2)
    for _ in range(3):
        part.scatter(np.ones((2, 2)) if part.rank == 0 else None, out=out)
    if part.rank == 1:
        part.timeout = 0.2
        for _ in range(2):
            with raising(collectives.CollectiveTimeout, "waited 0.2", "rank 0", "message from"):
                part.scatter(None, out=out)
    comm.barrier()
    part.close()
