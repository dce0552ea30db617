"""Where arrays lie is part of what ranks agree on; lost ranks; users' one-sided algorithms."""

from __future__ import annotations

import signal
import time

import numpy as np
import pytest
from harness.batches import Batch
from harness.errors import raising, refused, still_works
from harness.processes import Ranks, say, told

import collectives
from collectives.schedule import algorithm, notify, read, read_reduce, wait, write

ranks = Batch()


@ranks(2, 3)
def test_different_places_are_a_mismatch_that_names_them(comm):
    for name in ("allreduce", "allgather"):
        for what in ("offset of x", "block of x", "offset of out"):
            part = comm.split(0)
            a, b, out = part.empty(64), part.empty(64), part.empty(64)
            a[:] = b[:] = out[:] = 1
            odd = part.rank == part.size - 1
            keywords = {"out": out[:8]} if name == "allreduce" else {}
            x = a[:8]
            for _ in range(3):  # so that it is known
                getattr(part, name)(x, algorithm="one_sided", **keywords)
            if odd:
                if what == "offset of x":
                    x = a[8:16]
                elif what == "block of x":
                    x = b[:8]
                elif name == "allreduce":
                    keywords["out"] = out[16:24]
            if name == "allgather" and what == "offset of out":
                part.close()
                continue
            before = out.copy()
            with raising(
                collectives.MismatchError, f"{name} float32[8]", "by one_sided #",
                f"({what.split()[-1]} must lie at the same place on every rank: here it is at ",
                "of symmetric memory, there at ",
            ) as caught:  # fmt: skip
                getattr(part, name)(x, algorithm="one_sided", **keywords)
                part.barrier()
            offsets = {"offset of x": ("32",), "offset of out": ("64",)}.get(what, ())
            assert all(f"at {offset} of block" in str(caught) for offset in ("0", *offsets))
            assert np.array_equal(out, before), "data came out of calls that do not fit"
            part.close()
    still_works(comm)


@ranks(2, 3)
def test_arrays_that_are_symmetric_on_one_rank_only(comm):
    for large in (16, 50_000):
        for whose in ("x", "out"):
            part = comm.split(0)
            x, out = part.empty(large), part.empty(large)
            x[:] = 1
            if part.rank == 0 and whose == "x":
                x = np.ones(large, np.float32)
            if part.rank == 0 and whose == "out":
                out = np.ones(large, np.float32)
            if large == 16:  # short arrays go by messages, wherever they lie
                assert part.allreduce(x, out=out)[0] == part.size
            else:
                with raising(collectives.MismatchError, "by one_sided", "by ring"):
                    part.allreduce(x, out=out)
                    part.barrier()
            part.close()
    still_works(comm)


@ranks(2)
def test_an_array_that_ends_beyond_its_block(comm):
    """What the engine itself finds, late: memory that is not in the block as a whole."""
    part = comm.split(0)
    x, out = part.empty(1000), part.empty(1000)
    part.allreduce(x, out=out, algorithm="one_sided")
    call = next(each for each in part._ready.values() if each.one_sided)
    with raising(
        collectives.MismatchError, "has allreduce float32[1000]",
        "on an array that does not lie in symmetric memory of all ranks",
    ):  # fmt: skip
        part._engine.execute(call, np.zeros(1000, np.float32), out, 20.0, False)
    part.close()


# --- a lost rank


def lose_one(where):
    with collectives.init(timeout=60) as comm:
        x, out = comm.empty(200_000), comm.empty(200_000)
        x[:] = 1
        for _ in range(3):
            comm.allreduce(x, out=out)
        say("ready")
        told()
        if comm.rank == 1 and where == "inside":
            comm.allreduce(x, out=out, async_op=True)
            while comm._engine.calls < 6:
                pass
            say("inside")
            told()
        began = time.monotonic()
        try:
            for _ in range(2):
                comm.allreduce(x, out=out)
        except collectives.PeerLostError as error:
            return str(error), time.monotonic() - began
        return "went well", 0.0


@pytest.mark.parametrize("where", ["before", "inside"])
def test_a_rank_that_is_killed(where):
    with Ranks(lose_one, 3, where) as job:
        assert [job.said(rank) for rank in range(3)] == ["ready"] * 3
        if where == "inside":
            job.tell(1)
            assert job.said(1) == "inside"
        job.kill(1)
        assert job.outcome(1).code == -signal.SIGKILL
        for rank in (0, 2):
            job.tell(rank)
        for rank in (0, 2):
            text, took = job.outcome(rank).value
            assert "rank 1" in text and "allreduce float32[200000]" in text, text
            assert str(job.processes[1].pid) in text and took < 10


# --- algorithms of users


@algorithm("allreduce", chunks=lambda size: size, one_sided=True)
def mine(rank, size):
    """Everyone adds up its chunk and hands it out; two meetings around it."""
    others = [peer for peer in range(size) if peer != rank]
    for meeting in range(2):
        if others:
            yield notify(others)
            yield wait(others)
        if others and meeting == 0:
            yield read_reduce(others, chunk=rank)
            yield write(others, chunk=rank)


@algorithm("broadcast", one_sided=True)
def look(rank, size, root):
    if rank == root:
        for peer in range(size):
            if peer != root:
                yield notify(peer)
        for peer in range(size):
            if peer != root:
                yield wait(peer)
    else:
        yield wait(root)
        yield read(root, chunk=0)
        yield notify(root)


@algorithm("allgather", one_sided=True)
def hasty(rank, size):
    """Reads before anybody has come."""
    for peer in range(size):
        if peer != rank:
            yield read(peer, chunk=peer)


@ranks(1, 2, 3)
def test_an_algorithm_of_the_users(comm):
    for count in (0, 1, 1000, 70_001):
        x, out = comm.empty(count), comm.empty(count)
        for turn in range(3):
            x[:] = np.arange(count) % 100 + comm.rank + turn
            comm.allreduce(x, out=out, algorithm=mine)
            wanted = comm.size * (np.arange(count) % 100 + turn) + sum(range(comm.size))
            assert np.array_equal(out, wanted)
        for root in range(comm.size):
            assert np.all(comm.broadcast(x, root=root, algorithm=look)[:1] == root + 2)
    comm.allreduce(x, out=x, algorithm=mine)
    proved = {algo.name for algo, _ in comm._proved}
    assert proved == {"mine", "look"}


@ranks(2, 3)
def test_one_that_races_is_refused(comm):
    x = comm.empty(10)
    with raising(collectives.ProofError, "hasty"):
        comm.allgather(x, algorithm=hasty)
    still_works(comm)
    private = np.zeros(10, np.float32)
    for call, words in (
        (lambda: comm.allreduce(private, algorithm=mine), ["allreduce mine", "found none"]),
        (lambda: comm.broadcast(private, algorithm=look), ["broadcast look", "expected x from"]),
    ):
        with raising(ValueError, "reaches into the memory of peers", *words):
            call()
    still_works(comm)
    refused(comm, ValueError, ["algorithm mine does allreduce, expected one for allgather"],
            lambda: comm.allgather(x, algorithm=mine))  # fmt: skip
