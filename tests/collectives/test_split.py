"""Communicators made of parts of others: who is in them, in which order; all work at once."""

from __future__ import annotations

import os
import signal

import numpy as np
from harness.batches import Batch
from harness.errors import raising, refused, still_works
from harness.processes import Ranks, say, told

import collectives

ranks = Batch()


@ranks(1, 2, 4)
def test_colors_and_keys(comm):
    rank, size = comm.rank, comm.size
    for color, key, members in (
        (0, 0, list(range(size))),
        (rank % 2, 0, list(range(rank % 2, size, 2))),
        (7, -rank, list(range(size))[::-1]),
        (-3, (rank + 1) % size, sorted(range(size), key=lambda r: (r + 1) % size)),
        (rank, 5, [rank]),
        (np.int64(1 << 40), np.int8(rank), list(range(size))),
        (True, False, list(range(size))),
    ):
        part = comm.split(color, key)
        assert part.size == len(members) and part.rank == members.index(rank)
        assert part.allgather_object(rank) == members
        assert part.hosts == (0,) * part.size and part.timeout == comm.timeout
        part.close()
    still_works(comm)


@ranks(1, 4)
def test_no_color_is_no_communicator(comm):
    assert comm.split(None) is None
    part = comm.split(None if comm.rank == 0 else 3)
    if comm.rank == 0:
        assert part is None
    else:
        assert (part.rank, part.size) == (comm.rank - 1, comm.size - 1)
        still_works(part)
        part.close()


@ranks(1, 4)
def test_parts_of_parts(comm):
    parts = [comm]
    while parts[-1].size > 1:
        parts.append(parts[-1].split(parts[-1].rank % 2))
    for part in parts[::-1]:
        still_works(part)
    for part in parts[1:]:
        part.close()
    still_works(comm)


@ranks(4)
def test_parts_and_the_whole_at_once(comm):
    """Ranks of one color are in their part while the others are in the whole, or in their own."""
    part = comm.split(comm.rank % 2)
    works = []
    for number in range(30):
        if comm.rank % 2:
            works.append(comm.allreduce(np.full(100, number), async_op=True))
            assert part.allreduce(np.full(100, number))[0] == 2 * number
        else:
            assert part.allreduce(np.full(100, number + 1))[0] == 2 * (number + 1)
            works.append(comm.allreduce(np.full(100, number), async_op=True))
    assert [int(work.wait()[0]) for work in works] == [4 * number for number in range(30)]
    part.close()


@ranks(3)
def test_a_part_that_breaks_leaves_the_whole(comm):
    part, other = comm.split(0), comm.split(0)
    with raising(collectives.MismatchError):
        part.allreduce(np.zeros(2 + part.rank))
    with raising(collectives.MismatchError):
        part.barrier()
    still_works(other)
    still_works(comm)
    part.close()
    other.close()


@ranks(2)
def test_wrong_types_are_refused(comm):
    for color, key, words in (
        ("red", 0, ["color", "'red'"]), (1.0, 0, ["color", "1.0"]), (0, None, ["key", "None"]),
        (None, "1", ["key", "'1'"]), ([], 0, ["color", "[]"]),
    ):  # fmt: skip
        refused(comm, TypeError, [*words, "must be an integer"],
                lambda c=color, k=key: comm.split(c, k))  # fmt: skip


def split_without(end):
    """Rank 2 comes to no rendezvous of a split, for which rank 0 waits."""
    with collectives.init(timeout=30) as comm:
        comm.barrier()
        if comm.rank == 2:
            import collectives.communicator as within

            def stay_away(**arguments):
                say("away")
                told()
                if end == "exit":
                    os._exit(9)
                return original(**arguments)

            original, within.Communicator = within.Communicator, stay_away
        if comm.rank == 0:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        say("splits")
        comm.split(0)


def test_a_member_that_ends_in_it_is_the_one_that_is_named():
    with Ranks(split_without, 3, "exit") as job:
        assert [job.said(rank) for rank in (0, 1, 2, 2)] == ["splits"] * 3 + ["away"]
        job.tell(2)
        pid = job.processes[2].pid
        for rank in (0, 1):
            outcome = job.outcome(rank)
            assert outcome.error == "PeerLostError", outcome
            assert f"rank 2 (pid {pid} on " in outcome.text, outcome
            assert "ended (exit code 9)" in outcome.text, outcome


def test_who_is_interrupted_in_it_has_not_ended():
    with Ranks(split_without, 3, "late") as job:
        assert [job.said(rank) for rank in (0, 1, 2, 2)] == ["splits"] * 3 + ["away"]
        job.kill(0, signal.SIGINT)
        assert job.outcome(0).error == "KeyboardInterrupt"
        outcome = job.outcome(1)
        assert outcome.error == "AbortedError", outcome
        assert outcome.text.startswith("rank 0 raised KeyboardInterrupt"), outcome
        job.tell(2)
        assert job.outcome(2).error == "AbortedError"
