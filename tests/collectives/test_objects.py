"""Python objects between ranks: of any length, own copies, and errors where pickling ends."""

from __future__ import annotations

import threading

import numpy as np
from harness.batches import Batch
from harness.errors import raising, still_works

ranks = Batch()


@ranks(1, 3)
def test_objects_of_any_kind(comm):
    items = [None, 0, "", "text", b"\0" * 100, {"a": [1, 2, (3, None)]}, {1, 2}, 1 << 200, 2.5,
             np.arange(5), "x" * 3_000_000, ValueError("as an object"), int]  # fmt: skip
    for number, item in enumerate(items):
        root = number % comm.size
        found = comm.broadcast_object(item if comm.rank == root else object, root=root)
        assert repr(found) == repr(item)
        assert (found is item) == (comm.rank == root) or isinstance(item, int | str | type | None)
        every = comm.allgather_object(item)
        assert len(every) == comm.size and all(repr(each) == repr(item) for each in every)
    every = comm.allgather_object("r" * (1000 * comm.rank))
    assert [len(each) for each in every] == [1000 * rank for rank in range(comm.size)]


@ranks(1, 3)
def test_what_comes_is_a_copy(comm):
    mine = [comm.rank]
    every = comm.allgather_object(mine)
    assert every == [[rank] for rank in range(comm.size)] and every[comm.rank] is not mine


@ranks(2)
def test_only_the_root_needs_an_object_that_can_travel(comm):
    item = threading.Lock() if comm.rank else "fine"
    assert comm.broadcast_object(item) == "fine"
    part = comm.split(0)
    with raising(TypeError, "allgather_object: expected", "pickled", "lock <unlocked"):
        part.allgather_object(threading.Lock())
    if part.rank == 0:
        with raising(TypeError, "broadcast_object: expected", "function <function"):
            part.broadcast_object(lambda: None)
    still_works(part)  # nothing was sent
    part.close()
