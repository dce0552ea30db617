"""The ranks that are left go on together, whoever was lost, and whenever."""

from __future__ import annotations

import os
import re
import time

import numpy as np
import pytest
from harness.batches import Batch
from harness.errors import raising
from harness.processes import Ranks, say, told

import collectives

ranks = Batch()
SOON = 10.0


def go_on_without(lost, moment):
    """Ranks in `lost` end; the others shrink until they are through their work."""
    comm = collectives.init(timeout=30)
    me = comm.rank
    sums, turn, began = [], 0, None
    while turn < 6:
        try:
            if me in lost and turn == 2 + lost.index(me) and moment == "before":
                os._exit(9)
            total = comm.allreduce(np.full(1000, float(me)))
            turn = int(comm.allreduce(np.array([turn]), op="min")[0]) + 1
            sums.append(float(total[0]))
            if me in lost and turn == 2 + lost.index(me) and moment == "after":
                os._exit(9)
        except collectives.PeerLostError:
            began = time.monotonic()
            if me in lost and moment == "shrinking":
                os._exit(9)
            smaller = comm.shrink()
            comm.close()
            comm = smaller
    with comm:
        took = time.monotonic() - began
        everyone = comm.allgather_object(me)
        assert comm.rank == everyone.index(me)
        with pytest.raises(ValueError, match="root"):
            comm.broadcast(np.ones(1), root=len(everyone))
        half = comm.split(0)
        x = comm.empty(1000)
        x[:] = 1
        assert comm.allreduce(x, out=x)[0] == half.size == comm.size
        half.close()
        return everyone, sums[-1], took


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize(
    "lost",
    [
        [0],
        [3],
        [2, 0],
        *(pytest.param(lost, marks=pytest.mark.full) for lost in ([1], [0, 1], [3, 2, 1])),
    ],
)
def test_who_is_left(lost, moment):
    with Ranks(go_on_without, 4, lost, moment) as job:
        left = [rank for rank in range(4) if rank not in lost]
        for rank in left:
            outcome = job.outcome(rank)
            assert not outcome.error, outcome.text
            everyone, total, took = outcome.value
            assert everyone == left
            assert total == sum(left)
            assert took < SOON


def lost_in_the_meeting(second):
    """Rank 3 is lost at once; `second` says whether, and when, the one who leads the meeting is."""
    comm = collectives.init(timeout=30)
    comm.barrier()
    if comm.rank == 3:
        os._exit(9)
    with pytest.raises(collectives.PeerLostError):
        comm.barrier()
        comm.barrier()
    if comm.rank == 0:
        if second == "before":
            os._exit(9)
        if second in (
            "welcomes",
            "raises",
        ):  # all have come, and none has heard that they may go on
            import transports.rendezvous.local as local

            def say_and_end(connection, note):
                if "go" in note:
                    if second == "raises":
                        raise KeyboardInterrupt
                    os._exit(9)
                original(connection, note)

            original, local.say = local.say, say_and_end
        if second == "some go":  # one has heard it
            import transports.rendezvous.local as local

            def say_once_and_end(connection, note):
                original(connection, note)
                if "go" in note:
                    os._exit(9)

            original, local.say = local.say, say_once_and_end
    while True:
        comm = comm.shrink()
        try:
            return comm.allgather_object(os.getpid()), comm.rank
        except collectives.PeerLostError:
            continue


@pytest.mark.parametrize(
    "second",
    [pytest.param("never", marks=pytest.mark.full), "before", "welcomes", "raises", "some go"],
)
def test_who_leads_the_meeting_is_lost_too(second):
    with Ranks(lost_in_the_meeting, 4, second) as job:
        left = [0, 1, 2] if second == "never" else [1, 2]
        pids = [job.processes[rank].pid for rank in left]
        for number, rank in enumerate(left):
            outcome = job.outcome(rank)
            assert not outcome.error, outcome.text
            assert outcome.value == (pids, number)


@ranks(3)
def test_after_a_mismatch_all_are_left(comm):
    part = comm.split(0)
    with raising(collectives.MismatchError, "rank"):
        part.allreduce(np.ones(3 + part.rank))
        part.barrier()
    for _ in range(2):  # and again, under the same name
        again = part.shrink()
        assert (again.rank, again.size) == (part.rank, 3)
        assert again.allreduce(np.ones(1))[0] == 3
        assert again.timeout == part.timeout
        part.close()
        part = again
    part.close()
    with raising(collectives.CollectiveError, "closed"):
        part.shrink()
    with raising(TypeError, "timeout"):
        comm.shrink(timeout="soon")


def only_some_shrink():
    comm = collectives.init(timeout=30)
    comm.barrier()
    if comm.rank == 1:
        say("here")
        told()
        return ""
    with pytest.raises(collectives.CollectiveTimeout) as caught:
        comm.shrink(timeout=0.5)
    return str(caught.value)


def test_a_rank_that_lives_and_does_not_come_is_named():
    with Ranks(only_some_shrink, 3) as job:
        assert job.said(1) == "here"
        texts = [job.outcome(rank).value for rank in (0, 2)]
        job.tell(1)
        assert job.outcome(1).value == ""
    for text in texts:
        assert re.match(r"shrink: .*rank 1 of 3 did not come .*; these ranks, counted anew, were "
                        "0, 1, 2 before", text), text  # fmt: skip
