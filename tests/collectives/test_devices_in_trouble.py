"""What goes wrong among devices: who hears of it, when, and what the text names."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest
from harness.device_arrays import emulated_only, environment, on_device, part
from harness.errors import raising
from harness.processes import Ranks

import collectives

DEVICES = environment("devices=1,seed=1")
SOON = 10.0  # the contract says a second; tests share their cores with others


DIFFERENT = {
    "collective": (
        lambda comm, x: comm.allreduce(x), lambda comm, x: comm.allgather(x),
        "allreduce float32[4] sum", "allgather float32[4]",
    ),
    "dtype": (
        lambda comm, x: comm.allreduce(x),
        lambda comm, x: comm.allreduce(on_device(np.zeros(4))),
        "allreduce float32[4] sum", "allreduce float64[4] sum",
    ),
    "count": (
        lambda comm, x: comm.allreduce(x), lambda comm, x: comm.allreduce(part(x, 0, 3)),
        "allreduce float32[4] sum", "allreduce float32[3] sum",
    ),
    "op": (
        lambda comm, x: comm.allreduce(x, op="max"), lambda comm, x: comm.allreduce(x, op="min"),
        "float32[4] max", "float32[4] min",
    ),
    "root": (
        lambda comm, x: comm.broadcast(x, root=0), lambda comm, x: comm.broadcast(x, root=1),
        "root 0", "root 1",
    ),
    "algorithm": (
        lambda comm, x: comm.allreduce(x, algorithm="ring"),
        lambda comm, x: comm.allreduce(x, algorithm="tree"),
        "by ring", "by tree",
    ),
    "place": (
        lambda comm, x: comm.allreduce(x),
        lambda comm, x: comm.allreduce(np.zeros(4, np.float32)),
        "allreduce float32[4] sum", "on devices",
    ),
    "number": (
        lambda comm, x: [comm.allreduce(x), comm.barrier()],
        lambda comm, x: [comm.allreduce(x), comm.allreduce(x), comm.barrier()],
        "barrier", "allreduce float32[4] sum",
    ),
}  # fmt: skip

FIRST = {"count": DIFFERENT["count"][2:], "place": ("connecting devices", "allreduce float32[4]")}
"""What the text names where no call was made before, by which the devices were connected."""


def mismatched(what, first):
    """Two ranks make calls that do not fit; a call, or else close, raises on both."""
    with collectives.init(timeout=60) as comm:
        x = on_device(np.ones(4, np.float32))
        if not first:
            comm.allreduce(x)  # so the devices are connected
        begun = time.monotonic()
        with raising(collectives.MismatchError) as caught:
            DIFFERENT[what][comm.rank](comm, x)
            comm.close()
        return str(caught), time.monotonic() - begun


@pytest.mark.parametrize(
    "what, first",
    # The first call connects, in the same way whatever it is, so what each calls is heard of later.
    [*((what, False) for what in DIFFERENT), ("count", True), ("place", True)],
)
def test_calls_that_do_not_fit_together(what, first):
    with Ranks(mismatched, 2, what, first, environment=DEVICES) as job:
        outcomes = job.outcomes()
    for outcome in outcomes:
        assert outcome.error == "", outcome.text
        text, seconds = outcome.value
        for words in DIFFERENT[what][2:] if not first else FIRST[what]:
            assert words in text
        assert "threading.py" not in text  # no place in the user's program
        assert seconds < SOON


def lost(moment):
    """Rank 1 is killed; what rank 0 is told."""
    with collectives.init(timeout=60) as comm:
        x = on_device(np.ones(1000, np.float32))
        comm.allreduce(x, out=x)
        x.get()
        if comm.rank == 1:
            if moment == "amid":  # on its stream, and never done
                connected = comm._connected
                connected.device._streams[connected.engine.stream].put(lambda: time.sleep(60))
                comm.allreduce(x)
                time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGKILL)
        begun = time.monotonic()
        with raising(collectives.PeerLostError, "rank 1", "SIGKILL") as caught:
            comm.allreduce(x)
            while time.monotonic() < begun + 30:
                comm.allreduce(x)
                time.sleep(0.01)
        with raising(collectives.PeerLostError):
            comm.allreduce(x)
        with raising(collectives.PeerLostError):
            comm.barrier()
        return str(caught), time.monotonic() - begun


@pytest.mark.parametrize("moment", ["before", pytest.param("amid", marks=emulated_only)])
def test_a_killed_rank(moment):
    with Ranks(lost, 2, moment, environment=DEVICES) as job:
        outcome = job.outcomes()[0]
    assert outcome.error == "", outcome.text
    assert outcome.value[1] < SOON


@emulated_only
def test_a_killed_rank_where_hosts_wait():
    """The call waits in the place of its stream, and has to be let go."""

    def body():
        with collectives.init(timeout=60) as comm:
            x = on_device(np.ones(1000, np.float32))
            comm.allreduce(x).get()
            if comm.rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            begun = time.monotonic()
            with raising(collectives.PeerLostError, "rank 1", "SIGKILL"):
                comm.allreduce(x)
            return time.monotonic() - begun

    with Ranks(body, 2, environment=environment("devices=1,hosted=1,seed=1")) as job:
        outcome = job.outcomes()[0]
    assert outcome.error == "" and outcome.value < SOON, outcome


@emulated_only
@pytest.mark.parametrize("interrupted", [False, True])
def test_a_device_that_takes_no_more_work(interrupted):
    def body():
        from transports.cuda_ipc.device import DeviceError

        with collectives.init(timeout=60) as comm:
            x = on_device(np.ones(1000))
            comm.allreduce(x).get()

            # Ctrl-C has no text of its own: what the others hear is its kind.
            error = KeyboardInterrupt() if interrupted else DeviceError("launch failed")
            here = KeyboardInterrupt if interrupted else collectives.CollectiveError
            word = "KeyboardInterrupt" if interrupted else "launch failed"

            def refuse(*arguments):
                raise error

            if comm.rank == 1:
                comm._connected.device.copy = comm._connected.device.fold = refuse
                with raising(here, *[] if interrupted else [word]):
                    comm.allreduce(x)
                return
            with raising(collectives.AbortedError, "rank 1", word):
                comm.allreduce(x)
                comm._watch.until_done(comm._connected.engine.put)

    with Ranks(body, 2, environment=DEVICES) as job:
        assert [outcome.text for outcome in job.outcomes()] == ["", ""]


def test_the_survivors_go_on():
    def body():
        with collectives.init(timeout=60) as comm:
            x = on_device(np.full(100, comm.rank + 1.0))
            comm.allreduce(x).get()
            if comm.rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            with raising(collectives.PeerLostError):
                comm.allreduce(x)
                comm._watch.until_done(comm._connected.engine.put)
            with comm.shrink() as left:
                return float(left.allreduce(x).get()[0])

    with Ranks(body, 3, environment=DEVICES) as job:
        outcomes = job.outcomes()
    assert [outcomes[rank].value for rank in (0, 2)] == [4.0, 4.0], outcomes


def test_an_exception_reaches_the_others():
    def body():
        with collectives.init(timeout=60) as comm:
            x = on_device(np.ones(100))
            comm.allreduce(x)
            if comm.rank == 1:
                raise RuntimeError("no more")
            comm.allreduce(x).get()
            comm._watch.until_done(comm._connected.engine.put)

    with Ranks(body, 2, environment=DEVICES) as job:
        outcomes = job.outcomes()
    assert (outcomes[1].error, outcomes[1].text) == ("RuntimeError", "no more")
    assert outcomes[0].error == "AbortedError" and "no more" in outcomes[0].text


@emulated_only
def test_a_call_has_a_deadline():
    def body():
        with collectives.init(timeout=60) as comm:
            x = on_device(np.ones(100))
            comm.allreduce(x).get()
            connected = comm._connected
            if comm.rank == 1:  # its host comes to the call, its device never does
                connected.device._streams[connected.engine.stream].put(lambda: time.sleep(8))
            work = comm.allreduce(x, async_op=True, timeout=1.5)
            with raising(collectives.CollectiveTimeout, "it goes on"):
                work.wait(timeout=0.1)
            # Whoever is first to find that its time is up tells the other.
            either = (collectives.CollectiveTimeout, collectives.AbortedError)
            with raising(either, "allreduce", "1.5 s"):
                work.wait(timeout=30)
            with raising(either):
                comm.allreduce(x)

    with Ranks(body, 2, environment=DEVICES) as job:
        assert [outcome.text for outcome in job.outcomes()] == ["", ""]


def test_a_rank_that_never_comes_is_named():
    def body():
        with collectives.init(timeout=60) as comm:
            x = on_device(np.ones(100))
            comm.allreduce(x).get()
            if comm.rank == 1:
                time.sleep(3)
                return
            with raising(collectives.CollectiveTimeout, "rank 1"):
                comm.allreduce(x, timeout=1)
                comm._watch.until_done(comm._connected.engine.put)

    with Ranks(body, 2, environment=DEVICES) as job:
        assert job.outcomes()[0].text == ""


@pytest.mark.parametrize("collective", ["broadcast", "reduce", "gather", "allreduce"])
def test_ranks_that_are_done_may_leave(collective):
    """Whoever needs nothing more closes; those that come late find what it has sent."""

    def body():
        with collectives.init(timeout=60) as comm:
            x = on_device(np.full(5000, comm.rank + 1.0))
            comm.allreduce(x)
            comm.barrier()
            time.sleep(0.4 * (comm.rank != 0) if collective == "broadcast" else 0.0)
            time.sleep(0.4 * (comm.rank == 0) if collective in ("reduce", "gather") else 0.0)
            found = getattr(comm, collective)(x)
            return None if found is None else float(found.get().ravel()[-1])

    with Ranks(body, 3, environment=DEVICES) as job:
        outcomes = job.outcomes()
    wanted = {"broadcast": [1.0] * 3, "reduce": [6.0, None, None], "gather": [3.0, None, None],
              "allreduce": [6.0] * 3}  # fmt: skip
    assert [outcome.value for outcome in outcomes] == wanted[collective], outcomes


def test_after_close():
    def body():
        comm = collectives.init()
        x = on_device(np.ones(10))
        y = comm.allreduce(x)
        comm.close()
        comm.close()
        assert y.get()[0] == 1
        with raising(collectives.CollectiveError, "closed"):
            comm.allreduce(x)
        with raising(collectives.CollectiveError, "closed"):
            comm.empty(10, device="cuda")

    with Ranks(body, 1, environment=DEVICES) as job:
        assert [outcome.text for outcome in job.outcomes()] == [""]


@emulated_only
def test_a_fault_on_the_device_is_told():
    def body():
        with collectives.init(timeout=60) as comm:
            x = on_device(np.ones(10))
            comm.allreduce(x).get()
            connected = comm._connected
            connected.device.copy(connected.engine.stream, 12345, 67890, 8)
            with raising(collectives.CollectiveError, "an illegal address"):
                comm.allreduce(x)
                comm._watch.until_done(comm._connected.engine.put)

    with Ranks(body, 1, environment=DEVICES) as job:
        assert [outcome.text for outcome in job.outcomes()] == [""]


def test_ctrl_c_while_it_waits():
    def body():
        begun = 0.0
        try:
            with collectives.init(timeout=60) as comm:
                x = on_device(np.ones(100))
                comm.allreduce(x).get()
                if comm.rank == 1:
                    time.sleep(2)
                    return 0.0
                work = comm.allreduce(x, async_op=True)
                signal.signal(signal.SIGALRM, signal.default_int_handler)
                begun = time.monotonic()
                signal.setitimer(signal.ITIMER_REAL, 0.3)
                work.wait(timeout=30)
        except KeyboardInterrupt:  # and the block has been left without waiting for the other
            return time.monotonic() - begun

    with Ranks(body, 2, environment=DEVICES) as job:
        outcome = job.outcomes()[0]
    assert outcome.text == "" and 0.2 < outcome.value < 1.5


def test_two_threads_at_once():
    def body():
        with collectives.init(timeout=60) as comm:
            x = on_device(np.ones(100))
            comm.allreduce(x).get()
            # As if another thread were in one.
            with comm._device_turn, raising(collectives.CollectiveError, "allreduce", "thread"):
                comm.allreduce(x)
            assert comm.allreduce(x).get()[0] == 1

    with Ranks(body, 1, environment=DEVICES) as job:
        assert [outcome.text for outcome in job.outcomes()] == [""]


def test_a_forked_child_leaves_the_devices_alone():
    def body():
        with collectives.init(timeout=60) as comm:
            x = on_device(np.full(1000, comm.rank + 1.0))
            comm.allreduce(x).get()
            child = os.fork()
            if child == 0:
                with raising(collectives.CollectiveError, "forked from rank"):
                    comm.allreduce(x)
                comm.close()
                os._exit(7)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
            return float(comm.allreduce(x).get()[0])

    with Ranks(body, 2, environment=DEVICES) as job:
        outcomes = job.outcomes()
    assert [outcome.value for outcome in outcomes] == [3.0, 3.0], outcomes


def test_a_good_exit_amid_calls_loses_nobody():
    def body():
        with collectives.init(timeout=60) as comm:
            x = on_device(np.full(5000, comm.rank + 1.0))
            comm.allreduce(x)
            if comm.rank == 1:
                time.sleep(0.5)
            y = comm.broadcast(x, root=0)
            if comm.rank == 0:
                raise SystemExit(0)
            return float(y.get()[-1])

    with Ranks(body, 2, environment=DEVICES) as job:
        outcomes = job.outcomes()
    assert (outcomes[0].error, outcomes[1].value) == ("SystemExit", 1.0), outcomes
