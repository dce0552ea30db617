"""Point-to-point through the public door: order, tags, any source, arrays of every layout."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from harness.batches import Batch
from harness.errors import raising, still_works

import collectives
from collectives import ANY

ranks = Batch()


@ranks(2, 3)
def test_round_the_ring(comm):
    right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    for count in (0, 1, 5, 1000, 300_000):
        x = np.arange(count) + comm.rank
        work = comm.isend(x, right, tag=count % 7)
        out = np.zeros(count, x.dtype)
        assert comm.recv(out, source=left, tag=count % 7) is out
        assert work.wait() is None and work.done()
        assert np.array_equal(out, np.arange(count) + left)
        found = comm.sendrecv(x, right, source=left)
        assert np.array_equal(found, np.arange(count) + left)
        assert comm.sendrecv(x, right, source=left, out=x, tag=3, recv_tag=3) is x
        assert np.array_equal(x, np.arange(count) + left)


@ranks(2)
def test_tags_choose_and_messages_of_a_tag_keep_their_order(comm):
    if comm.rank == 0:
        for number in range(20):
            comm.send(np.array([number]), 1, tag=number % 2)
        comm.send(np.array([99]), 1, tag=2**31 - 1)
    else:
        assert comm.recv(np.zeros(1, int), source=0, tag=2**31 - 1)[0] == 99
        odd = [int(comm.recv(np.zeros(1, int), source=0, tag=1)[0]) for _ in range(10)]
        even = [int(comm.recv(np.zeros(1, int), source=0, tag=0)[0]) for _ in range(10)]
        assert odd == list(range(1, 20, 2)) and even == list(range(0, 20, 2))


@ranks(3)
def test_any_source_and_any_tag_tell_who_it_was(comm):
    if comm.rank == 0:
        seen = set()
        for _ in range(4):
            work = comm.irecv(np.zeros(1, int))
            value = int(work.wait()[0])
            assert value == 10 * work.source + work.tag
            seen.add((work.source, work.tag))
        assert seen == {(1, 5), (1, 6), (2, 5), (2, 6)}
    else:
        for tag in (5, 6):
            comm.send(np.array([10 * comm.rank + tag]), 0, tag=tag)


@ranks(2)
def test_a_pending_receive_delays_nothing(comm):
    other = 1 - comm.rank
    late = comm.irecv(np.zeros(3), source=other, tag=9)
    assert not late.done()
    still_works(comm)
    assert comm.sendrecv(np.array([comm.rank]), other, source=other, tag=1)[0] == other
    comm.send(np.full(3, float(comm.rank)), other, tag=9)
    assert late.wait()[0] == other and late.wait() is late.wait()


@ranks(2)
def test_arrays_of_every_layout_and_type(comm):
    import torch

    other = 1 - comm.rank
    base = np.arange(12.0).reshape(3, 4)
    for x, out in (
        (base.T, np.zeros((3, 4)).T),
        (base[::2, ::-1], np.zeros((4, 4))[::2]),
        (np.float64(3.5), np.zeros(())),
        (np.array(["2024-05-06"], "M8[D]"), np.zeros(1, "M8[D]")),
        (np.ones(3, ml_dtypes.bfloat16), np.zeros(3, ml_dtypes.bfloat16)),
        (torch.arange(6.0).reshape(2, 3).T, torch.zeros(2, 3).T),
        (torch.tensor([1 + 2j]).conj(), torch.zeros(1, dtype=torch.complex64)),
        (torch.ones(3, dtype=torch.bfloat16), torch.zeros(3, dtype=torch.bfloat16)),
    ):
        work = comm.isend(x, other)
        assert comm.recv(out, source=other) is out
        work.wait()
        assert (out == x).all()


@ranks(2)
def test_what_is_wrong_is_refused_before_it_is_sent(comm):
    x = np.zeros(3)
    read_only = np.zeros(3)
    read_only.flags.writeable = False
    for kind, words, call in (
        (ValueError, ["dest must be in 0..1", "found 2"], lambda: comm.send(x, 2)),
        (ValueError, ["dest must be in", "-1"], lambda: comm.isend(x, ANY)),
        (TypeError, ["dest must be an integer", "'1'"], lambda: comm.send(x, "1")),
        (ValueError, ["source must be in 0..1", "found 7"], lambda: comm.recv(x, source=7)),
        (TypeError, ["source must be an integer"], lambda: comm.irecv(x, source=None)),
        (ValueError, ["tag must be in", "-1"], lambda: comm.send(x, 1, tag=-1)),
        (ValueError, ["tag must be in", str(2**31)], lambda: comm.recv(x, 1, tag=2**31)),
        (TypeError, ["tag must be an integer"], lambda: comm.send(x, 1, tag="a")),
        (TypeError, ["numpy array", "list"], lambda: comm.send([1], 1)),
        (TypeError, ["numpy array", "float64"], lambda: comm.recv(np.float64(1), 1)),
        (TypeError, ["broadcast_object"], lambda: comm.send(np.array([{}]), 1)),
        (ValueError, ["read-only"], lambda: comm.recv(read_only, 1)),
        (ValueError, ["read-only"], lambda: comm.recv(read_only[::2], 1)),
        (ValueError, ["timeout"], lambda: comm.send(x, 1, timeout=-1)),
        (ValueError, ["timeout"], lambda: comm.recv(x, 1, timeout=0)),
        (ValueError, ["dest"], lambda: comm.sendrecv(x, 5, source=1)),
        (ValueError, ["tag"], lambda: comm.sendrecv(x, 1, source=1, tag=-5)),
        (ValueError, ["timeout"], lambda: comm.sendrecv(x, 1, source=1, timeout=-5)),
        (ValueError, ["source"], lambda: comm.sendrecv(x, 1, source=9)),
        (TypeError, ["out", "list"], lambda: comm.sendrecv(x, 1, source=1, out=[])),
        (ValueError, ["overlap"], lambda: comm.sendrecv(x[1:], 1, source=1, out=x[:2])),
    ):
        with raising(kind, *words):
            call()
    # Neither a message nor a receive was left behind.
    other = 1 - comm.rank
    assert comm.sendrecv(np.array([comm.rank]), other, source=other).tolist() == [other]


@ranks(2)
def test_a_message_of_another_length_is_a_mismatch(comm):
    for sent, room in ((3, 4), (4, 3), (100_000, 100_001)):
        part = comm.split(0)
        with raising(collectives.MismatchError, f"float64[{sent}]", f"float64[{room}]"):
            if part.rank == 0:
                part.send(np.zeros(sent), 1)
                part.barrier()  # a short send may return before it is received
            else:
                part.recv(np.zeros(room), source=0)
        part.close()


@ranks(2)
def test_to_oneself_and_alone(comm):
    work = comm.irecv(np.zeros(2), source=comm.rank)
    comm.send(np.array([1.0, 2.0]), comm.rank)
    assert work.wait().tolist() == [1, 2]


@ranks(2)
def test_nobody_sends(comm):
    part = comm.split(0)
    with raising(collectives.CollectiveTimeout, "rank 1" if part.rank == 0 else "rank 0"):
        part.recv(np.zeros(2), source=1 - part.rank, timeout=0.05)
    part.close()
    still_works(comm)
