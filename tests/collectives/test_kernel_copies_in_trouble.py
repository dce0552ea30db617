"""What becomes of calls by the kernel's copies when a rank fails in the midst.

Nobody writes, or reads, what is not a rank's to give any more.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from harness.processes import Ranks, say, told
from soak.bad_bytes import WRITES_TO, areas, mapped_at

import collectives
import launch
from collectives import settings
from transports import _native

ALWAYS = {"COLLECTIVES_LEND": "always"}
LONG = 1 << 20  # elements of 8 bytes
SOON = 10.0


def _with_seal(comm, key):
    comm._engine.set_seal(key + comm.rank)
    comm.allreduce(np.ones(LONG))


def test_an_address_that_is_not_under_the_seal_is_not_used():
    with pytest.raises(collectives.MismatchError, match=r"rank \d .* posted a damaged message"):
        launch.spawn(_with_seal, 2, 5, environment=ALWAYS)


CALLS = {
    "allreduce": lambda comm, x, root: comm.allreduce(x, out=x),
    "reduce": lambda comm, x, root: comm.reduce(x, root=root),
    "broadcast": lambda comm, x, root: comm.broadcast(x, root=root),
    "scatter": lambda comm, x, root: comm.scatter(x[: 3 << 20].reshape(comm.size, -1), root=root),
    "gather": lambda comm, x, root: comm.gather(x, root=root),
}


def _until_lost(timeout, collective="allreduce", root=0):
    comm = collectives.init(timeout=timeout)
    x = np.ones(8 * LONG)
    CALLS[collective](comm, x, root)
    say("runs")
    began = time.monotonic()
    try:
        while True:
            began = time.monotonic()
            CALLS[collective](comm, x, root)
    except collectives.CollectiveError as error:
        return type(error).__name__, str(error), time.monotonic() - began


@pytest.mark.parametrize("delay", [0.001, 0.02, 0.0337])
def test_a_rank_that_is_killed_in_the_midst(delay):
    with Ranks(_until_lost, 2, 30, environment=ALWAYS) as ranks:
        assert (ranks.said(0), ranks.said(1)) == ("runs", "runs")
        time.sleep(delay)
        ranks.kill(1)
        kind, text, took = ranks.outcome(0).value
    assert kind == "PeerLostError" and "rank 1" in text and "SIGKILL" in text, text
    assert took < SOON


@pytest.mark.parametrize("root", [0, 1])
@pytest.mark.parametrize("collective", ["reduce", "broadcast", "scatter", "gather"])
def test_a_rank_that_is_killed_in_the_midst_of_what_is_around_a_root(collective, root):
    with Ranks(_until_lost, 3, 30, collective, root, environment=ALWAYS) as ranks:
        assert {ranks.said(rank) for rank in range(3)} == {"runs"}
        time.sleep(0.0137)
        ranks.kill(1)
        for rank in (0, 2):
            kind, text, took = ranks.outcome(rank).value
            assert kind == "PeerLostError" and "rank 1" in text and "SIGKILL" in text, text
            assert took < SOON


def test_a_rank_that_is_stopped_in_the_midst_is_waited_for_until_the_deadline():
    with Ranks(_until_lost, 2, 1.0, environment=ALWAYS) as ranks:
        assert (ranks.said(0), ranks.said(1)) == ("runs", "runs")
        ranks.kill(1, signal.SIGSTOP)
        kind, text, _ = ranks.outcome(0).value
    assert kind == "CollectiveTimeout" and "rank 1" in text, text


def _with_trouble_half_told(comm):
    """As when a rank is killed while it writes down why it gives up."""
    comm.barrier()
    geometry = settings.geometry()
    region = mapped_at(_native.region_bytes(**geometry.for_ranks(2)))
    board = next(area for area in areas(geometry, 2) if area.name == "trouble")
    ctypes.c_uint32.from_address(region + board.begin).value = 1
    comm.allreduce(np.ones(LONG))


def test_trouble_of_which_nobody_says_why_is_no_leave_to_use_what_was_copied():
    with pytest.raises(collectives.AbortedError, match="a rank gave up, and did not say why"):
        launch.spawn(_with_trouble_half_told, 2, environment=ALWAYS)


def _without_its_first_thread(known):
    """Rank 1 goes on in another thread, of a process whose memory none finds by its number."""
    comm = collectives.init(timeout=60)
    x = np.ones(LONG)
    if known:  # what the kernel has copied from once is not asked about again
        comm.allreduce(x, out=x)
    comm.barrier()
    if comm.rank == 0:
        say("there")
        told()
        began = time.monotonic()
        try:
            return "", str(comm.allreduce(x, out=x)[0]), 0.0
        except collectives.CollectiveError as error:
            return type(error).__name__, str(error), time.monotonic() - began

    def go_on():
        first = Path(f"/proc/self/task/{os.getpid()}/stat")
        while first.read_text().rpartition(")")[2].split()[0] != "Z":
            time.sleep(0.001)
        with contextlib.suppress(collectives.CollectiveError):
            comm.allreduce(x, out=x)
        os._exit(0)

    threading.Thread(target=go_on).start()
    exit_thread = {"x86_64": 60, "aarch64": 93}[os.uname().machine]
    ctypes.CDLL(None).syscall(exit_thread, 0)
    return None


def _without_first_thread(known):
    with Ranks(_without_its_first_thread, 2, known, environment=ALWAYS) as ranks:
        assert ranks.said(0) == "there"
        time.sleep(0.5)
        ranks.tell(0)
        outcome = ranks.outcome(0)
        assert outcome.value, outcome
        return outcome.value


def test_a_rank_whose_memory_is_not_found_is_sent_messages():
    assert _without_first_thread(False) == ("", "2.0", 0.0)


@pytest.mark.full
def test_a_rank_whose_memory_is_not_found_any_more_is_lost_after_a_while():
    kind, text, took = _without_first_thread(True)
    assert kind == "PeerLostError" and "rank 1" in text, text
    assert 9 < took < 30


class Stop(Exception):
    pass


def _interrupted():
    """Rank 1 is interrupted somewhere in the call; what it then writes to its array stays."""
    stopped = 0.0

    def stop(number, frame):
        nonlocal stopped
        stopped = time.monotonic()
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        raise Stop

    comm = collectives.init(timeout=30)
    x, out = np.ones(LONG), np.ones(LONG)
    for number in range(ROUNDS):
        result = (x, out)[number % 2]
        comm.allreduce(x, out=result)
        if comm.rank == 1:
            signal.signal(signal.SIGUSR1, stop)
        say("runs")
        try:
            while True:
                comm.allreduce(x, out=result)
        except (Stop, collectives.AbortedError):
            comm._engine.abort("interrupted between two calls")  # if it was not within one
        if comm.rank == 1:
            # Else the other was stopped just between its look at this rank and the kernel's copy.
            is_sure = time.monotonic() - stopped < 0.9
            result[:] = 7
            say("changed")
            told()
            time.sleep(0.02)
            assert (result == 7).all() or not is_sure
        comm = comm.shrink()


ROUNDS = 40


@pytest.mark.full
def test_nobody_writes_to_the_array_of_a_call_that_was_interrupted():
    dice = np.random.default_rng(7)
    with Ranks(_interrupted, 2, environment=ALWAYS) as ranks:
        for _ in range(ROUNDS):
            assert (ranks.said(0), ranks.said(1)) == ("runs", "runs")
            time.sleep(dice.uniform(0, 3e-3))
            ranks.kill(0, signal.SIGSTOP)  # wherever it is
            ranks.kill(1, signal.SIGUSR1)
            assert ranks.said(1) == "changed"
            ranks.kill(0, signal.SIGCONT)
            ranks.tell(1)
        assert [outcome.text for outcome in ranks.outcomes()] == ["", ""]


def shown_writing():
    """Where rank 1 says whose array it is having copied to."""
    geometry = settings.geometry()
    region = mapped_at(_native.region_bytes(**geometry.for_ranks(2)))
    standing = [area for area in areas(geometry, 2) if area.name == "standing"][1]
    return ctypes.c_uint32.from_address(region + standing.begin + WRITES_TO)


def _with_a_writer_that_stands_still(kind):
    if kind == "torch":
        import torch  # first: it takes a while, of which the time of a call has none to spare
    comm = collectives.init(timeout=1.0)
    x, out = np.ones(LONG), np.ones(LONG)
    if kind == "torch":
        x, out = torch.from_numpy(x), torch.ones(LONG, dtype=torch.float64)
    comm.allreduce(x, out=out)
    if comm.rank == 1:
        told()
        return None
    # As if rank 1 had been stopped between its look at this rank and the kernel's copy.
    shown_writing().value = 1
    held = sys.getrefcount(out)
    found = []
    for _ in range(2):
        began = time.monotonic()
        try:
            comm.allreduce(x, out=out)
        except collectives.CollectiveTimeout as error:
            found.append((str(error), time.monotonic() - began))
    gc.collect()
    return found, sys.getrefcount(out) - held


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_an_array_that_a_stopped_rank_may_write_to_is_kept(kind):
    with Ranks(_with_a_writer_that_stands_still, 2, kind, environment=ALWAYS) as ranks:
        ((text, took), (again, _)), more = ranks.outcome(0).value
    assert "a rank was stopped while it wrote to the array of the result" in text, text
    assert again.startswith("allreduce") and more == 1  # it is kept once
    assert took < SOON


def _with_a_writer_that_closes():
    """Its program has closed the communicator, while the thread of its queue still writes."""
    comm = collectives.init(timeout=20)
    x, out = np.ones(LONG), np.ones(LONG)
    comm.allreduce(x, out=out)
    if comm.rank == 1:
        shown_writing().value = 1
        told()
        comm.close()
        told()
        return None
    say("waits")
    try:
        comm.allreduce(x, out=out)
    except collectives.PeerLostError as error:
        return str(error)


def test_a_writer_that_has_only_closed_is_waited_for():
    with Ranks(_with_a_writer_that_closes, 2, environment=ALWAYS) as ranks:
        assert ranks.said(0) == "waits"
        time.sleep(0.3)
        ranks.tell(1)
        text = ranks.outcome(0).value
        ranks.tell(1)
    assert "rank 1" in text and "a rank was stopped while it wrote" in text, text


def _until_a_fault(collective):
    comm = collectives.init(timeout=20)
    x = np.ones(LONG)
    done = 0
    try:
        while done < 5:
            CALLS[collective](comm, x, 0)
            done += 1
    except collectives.CollectiveError as error:
        return done + 1, type(error).__name__


@pytest.mark.parametrize("collective", CALLS)
@pytest.mark.parametrize("lost", [0, 1])
def test_the_middle_of_a_call_is_in_it(collective, lost):
    for lend in ("never", "always") if lost else ("always",):
        # Only scatter has calls of its own, of a header, before others know what comes.
        op = 3 if collective == "scatter" else 2
        environment = {
            "COLLECTIVES_LEND": lend, "COLLECTIVES_INJECT": f"kill rank={lost} op={op} at=middle"
        }  # fmt: skip
        with Ranks(_until_a_fault, 2, collective, environment=environment) as ranks:
            done, kind = ranks.outcome(1 - lost).value
        assert kind == "PeerLostError"
        # A rank may have all that it needs, or have given it, when the other is amid its own part.
        assert done == 2 or (collective != "allreduce" and done == 3)
