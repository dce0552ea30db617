"""Between a user's call and the engine: the scatter's note, texts, caches, fewest slots."""

from __future__ import annotations

import numpy as np
import pytest
from harness.batches import Batch
from harness.errors import raising, refused, still_works

import collectives
from collectives import calls as calls_module
from collectives.calls import Calls, Request
from collectives.cost.work import Room
from collectives.schedule import algorithm
from collectives.selection import default_table

ranks = Batch()
ROOM = Room(slots=8, slot_bytes=4096, depth=16, cores=2)
tight = Batch({"COLLECTIVES_SLOTS": "2", "COLLECTIVES_SLOT_BYTES": "64"})


@ranks(1, 2, 3)
def test_scatter_tells_the_others_what_comes(comm):
    size, rank = comm.size, comm.rank
    for root in range(size):
        rows = np.arange(size * 6, dtype=np.int16).reshape(size, 2, 3) + root
        for others in (None, "anything", [1]):
            x = rows if rank == root else others
            found = comm.scatter(x, root=root)
            assert found.dtype == np.int16 and np.array_equal(found, rows[rank])
            out = np.zeros((2, 3), np.int16)
            assert comm.scatter(x, root=root, out=out) is out and np.array_equal(out, rows[rank])
            work = comm.scatter(x, root=root, async_op=True, algorithm="ring")
            assert np.array_equal(work.wait(), rows[rank])
    found = comm.scatter(np.arange(float(size)) if rank == 0 else None)
    assert found.shape == () and found == rank
    assert comm.scatter(np.zeros((size, 0)) if rank == 0 else None).shape == (0,)


@ranks(3)
def test_a_wrong_out_off_the_root_is_a_mismatch_everywhere(comm):
    read_only = np.zeros(2)
    read_only.flags.writeable = False
    for out, words in (
        (np.zeros(3), ["expected shape (2,)", "found (3,)"]),
        (np.zeros(2, np.int8), ["expected float64", "found int8"]),
        (read_only, ["read-only"]),
    ):
        part = comm.split(0)
        with raising(collectives.MismatchError, "scatter float64", "rank 1: out", *words):
            x = np.ones((3, 2)) if part.rank == 0 else None
            part.scatter(x, out=out if part.rank == 1 else None)
            part.barrier()  # where a rank that already has its part learns of it
        part.close()
    part = comm.split(0)
    kind = TypeError if part.rank == 1 else collectives.AbortedError
    x, out = np.ones((3, 2)) if part.rank == 0 else None, [1] if part.rank == 1 else None
    with raising(kind, "out", "list"), part:
        part.scatter(x, out=out)
        part.barrier()


@ranks(2)
def test_counts_that_differ_between_ranks_are_a_mismatch(comm):
    for counts in ([1, 2], [2, 1]), ([1] * 30, [2] * 30):
        part = comm.split(0)
        mine = [*counts[part.rank], 0][:2]
        with raising(collectives.MismatchError, "allgather float64["):
            part.allgather(np.zeros(mine[part.rank]), counts=mine)
            part.barrier()
        part.close()
    still_works(comm)


@ranks(2)
def test_a_program_that_never_repeats_a_shape_does_not_grow(comm):
    from collectives import calls, execution

    calls._MOST_CALLS = execution._MOST_READY = 20
    for count in range(100):
        comm.allreduce(np.zeros(count, np.int8))
    assert len(comm._ready) <= 20 and len(comm._calls._calls) <= 20
    still_works(comm)


@tight(2, 3)
def test_slots_smaller_than_an_element_of_a_moved_type(comm):
    dtype = np.dtype("V1000")
    x = np.arange(2000).astype(np.uint8).view(dtype) if comm.rank == 0 else np.zeros(2, dtype)
    assert comm.broadcast(x).tobytes() == np.arange(2000).astype(np.uint8).tobytes()
    assert comm.allreduce(np.ones(1000)).tolist() == [comm.size] * 1000
    assert comm.scatter(np.ones((comm.size, 1000)) if comm.rank == 0 else None).sum() == 1000
    still_works(comm)


@tight(9)
def test_a_message_too_wide_for_a_slot_is_refused(comm):
    refused(comm, ValueError, ["a slot of 64 bytes cannot hold", "elements of 8 bytes"],
            lambda: comm.reduce_scatter(np.zeros((9, 9)), algorithm="tree"))  # fmt: skip


def calls_of(rank=0, size=4, prove=None):
    return Calls(rank, size, (0,) * size, default_table(), ROOM, 1 << 20, prove)


def test_texts_say_what_ranks_must_agree_on():
    calls = calls_of()

    def text(*request, **more):
        return calls.get(Request(*request, **more)).text

    assert text("allreduce", "float32", 4, 8, "sum") == "allreduce float32[8] sum by one_shot"
    assert text("broadcast", "int8", 1, 8, root=2) == "broadcast int8[8] root 2 by linear"
    assert text("barrier", "", 1, 0) == "barrier by dissemination"
    assert text("allgather", "int8", 1, 0, counts=(1, 2, 3, 4)).startswith(
        "allgather int8[1,2,3,4]"
    )
    assert text("alltoall", "int8", 1, 0, counts=(1,) * 8) == "alltoall int8 by pairwise"
    assert text("broadcast", "a record of very many fields", 8, 1) != text(
        "broadcast", "a record of very MANY fields", 8, 1
    )
    long = tuple(range(10**11, 10**11 + 4))
    assert "4 counts #" in text("allgather", "int8", 1, 0, counts=long)
    other = (*long[:3], 7)
    assert text("allgather", "int8", 1, 0, counts=long) != text(
        "allgather", "int8", 1, 0, counts=other
    )


def test_a_call_is_made_once(monkeypatch):
    calls = calls_of()
    first = calls.get(Request("allreduce", "float32", 4, 8, "sum"))
    assert calls.get(Request("allreduce", "float32", 4, 8, "sum")) is first
    assert calls.get(Request("allreduce", "float32", 4, 8, "max")) is not first
    monkeypatch.setattr(calls_module, "_MOST_CALLS", 2)
    calls.get(Request("allreduce", "float32", 4, 9, "sum"))
    assert calls.get(Request("allreduce", "float32", 4, 8, "sum")) is not first


def test_only_algorithms_of_the_users_are_proved():
    proved = []

    @algorithm("broadcast")
    def mine(rank, size, root):
        from collectives.schedule import recv, send

        if rank == root:
            for peer in range(size):
                if peer != root:
                    yield send(peer, chunk=0)
        else:
            yield recv(root, chunk=0)

    def prove(*what):
        proved.append(what)
        return "digest"

    calls = calls_of(prove=prove)
    calls.get(Request("broadcast", "int8", 1, 8, algorithm="ring"))
    assert proved == []
    calls.get(Request("broadcast", "int8", 1, 8, root=1, algorithm=mine))
    assert proved == [(mine, 1)]


def test_what_cannot_be_called_is_refused_by_name():
    calls = calls_of(size=8)
    with pytest.raises(ValueError, match=r"unknown collective 'allreduc'.*did you mean allreduce"):
        calls.get(Request("allreduc", "int8", 1, 8))
    with pytest.raises(TypeError, match="op must be one of"):
        calls.get(Request("reduce", "int8", 1, 8))
    with pytest.raises(ValueError, match=r"bruck relays chunks.*use pairwise"):
        calls.get(Request("alltoall", "int8", 1, 8, algorithm="bruck", counts=(1,) * 16))


def test_a_one_sided_algorithm_is_refused_by_name():
    request = Request("allreduce", "float32", 4, 8, op="sum", algorithm="one_sided")
    with pytest.raises(
        ValueError,
        match=r"allreduce one_sided reaches into the memory of peers: expected x and out "
        r"from comm\.empty, contiguous, found none",
    ):
        calls_of().get(request)
