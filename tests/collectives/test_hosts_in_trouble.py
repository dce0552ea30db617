"""The contract over MPI, on two hosts of two ranks: what goes wrong on one is told on all."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import numpy as np
import pytest
from harness.under_mpi import mpi_spawn, told_by_ranks

import launch

PROGRAM = """
import os, pathlib, signal, sys, time
import numpy as np
rank, what, said = int(os.environ["PMI_RANK"]), sys.argv[1], pathlib.Path(sys.argv[2])
os.environ["COLLECTIVES_HOST_ID"] = "ab"[rank // 2]
import collectives

def say(text):
    (said / str(rank)).write_text(text)

if what == "never comes" and rank == 3:
    time.sleep(30)
if what == "never meets" and rank == 3:
    from mpi4py import MPI
    time.sleep(4)
    sys.exit(0)
if what == "is another version" and rank == 3:
    import collectives.communicator
    collectives.communicator.__version__ = "0.0.1"
short = what in ("never comes", "never meets", "is late")
with collectives.init(timeout=2 if short else 60) as comm:
    if rank == 3 and what == "raises":
        raise RuntimeError("bad luck")
    began = time.monotonic()
    try:
        comm.allreduce(np.ones(3))
        if rank == 3:
            if what == "is killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if what == "is late":
                time.sleep(3)
            if what == "leaves":
                sys.exit(0)
            if what == "differs":
                comm.allreduce(np.ones(5))
        comm.allreduce(np.ones(4))
        if what == "sends and leaves" and rank == 0:
            comm.send(np.arange(100_000.0), dest=3)
            sys.exit(0)
        if what == "sends and leaves" and rank == 3:
            time.sleep(0.5)
            assert comm.recv(np.empty(100_000), source=0)[-1] == 99_999
        say("fine")
    except collectives.CollectiveError as error:
        text = " ".join(str(error).split())
        say(f"{time.monotonic() - began:.1f} {type(error).__name__}: {text}")
        raise
"""


@pytest.fixture
def run(tmp_path):
    """Runs the program; how it ended, and what each rank has said."""
    return lambda what, **options: told_by_ranks(PROGRAM, what, 4, tmp_path, **options)


@pytest.mark.parametrize(
    "what, kind, words, heard",
    [
        ("raises", "AbortedError", ["rank 3 raised RuntimeError", "bad luck"], (0, 1, 2)),
        ("leaves", "PeerLostError", ["rank 3 (pid", "closed its communicator"], (0, 1, 2)),
        pytest.param(
            "is late",
            "CollectiveTimeout",
            ["has waited 2 s", "rank 3 (pid"],
            (0, 1, 2, 3),
            marks=pytest.mark.full,
        ),
        ("differs", "MismatchError", ["float64[4]", "float64[5]"], (0, 1, 2, 3)),
    ],
)
def test_all_ranks_hear_of_it(run, what, kind, words, heard):
    ended, said = run(what)
    assert sorted(said) == list(heard), ended.stderr
    for text in said.values():
        assert kind in text and all(word in text for word in words), text
        assert float(text.split()[0]) < 10  # within a second, ten times
    assert ended.code != 0


def test_a_killed_rank_ends_the_job(run):
    """MPI ends all ranks with it, before they could say what they have lost."""
    ended, said = run("is killed")
    assert ended.code != 0 and "fine" not in said.values()


def test_a_rank_that_never_comes_to_init(run):
    ended, _ = run("never comes", timeout=30)
    assert "every rank that mpiexec has started must call init, has lasted 2 s" in ended.stderr
    assert ended.code != 0


@pytest.mark.parametrize(
    "what, words",
    [
        pytest.param(
            "never meets",
            "rank 0 has waited 2 s for rank 3 of 4 to come to the rendezvous over MPI",
            marks=pytest.mark.full,
        ),
        ("is another version", "runs version 0.0.1 of this package, rank 0"),
    ],
)
def test_who_does_not_belong_ends_the_meeting(run, what, words):
    ended, said = run(what)
    assert words in ended.stderr and not said
    assert ended.code != 0


def test_what_was_sent_arrives_though_its_sender_has_left(run):
    ended, said = run("sends and leaves")
    assert ended.code == 0, ended.stderr
    assert said == dict.fromkeys((1, 2, 3), "fine")


def late_in_turn(comm):
    """Whoever waits long compares calls: these fit, though what ranks hear of others is old."""
    x = np.arange(5, dtype=np.float32)
    for turn in range(12):
        if comm.rank == turn % comm.size:
            time.sleep(0.25)
        root = (turn + 1) % comm.size
        if turn % 3:
            comm.broadcast(x, root=root, algorithm="linear")
        else:
            comm.reduce(x, root=root, algorithm="linear")
        if turn % 4 == 3:
            comm.allreduce(x)


@pytest.mark.parametrize("hosts", [pytest.param("abc", marks=pytest.mark.full), "aab"])
def test_no_rank_is_blamed_for_calls_that_fit(hosts):
    mpi_spawn(late_in_turn, 3, hosts=hosts)
    launch.spawn(late_in_turn, 3)


ALONE = "import collectives; collectives.init('mpi')"


@pytest.mark.parametrize(
    "before, environment, words",
    [
        (
            "import sys; sys.modules['mpi4py'] = None",
            {},
            ["ModuleNotFoundError", "pip install collectives-runtime[mpi]"],
        ),
        ("", {"MPI4PY_LIBMPI": "/nowhere/libmpi.so"}, ["MpiError", "cannot load an MPI library"]),
        (
            "",
            {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"},
            ["MpiError", "OMPI_COMM_WORLD_SIZE says 2 ranks", "the mpiexec of another MPI"],
        ),
        (
            "import mpi4py; mpi4py.rc.thread_level = 'single'",
            {},
            ["MpiError", "lets only one thread call it", "THREAD_MULTIPLE"],
        ),
    ],
)
def test_an_mpi_that_cannot_serve(before, environment, words):
    ended = subprocess.run(
        [sys.executable, "-c", f"{before}\n{ALONE}"], capture_output=True, text=True, timeout=60,
        env=os.environ | environment,
    )  # fmt: skip
    assert ended.returncode == 1
    assert all(word in ended.stderr for word in words), ended.stderr


def test_ranks_of_a_launcher_without_mpi_are_told_what_starts_them():
    ended = subprocess.run(
        [sys.executable, "-c", ALONE], capture_output=True, text=True, timeout=60,
        env=os.environ | {"RANK": "0", "WORLD_SIZE": "2", "COLLECTIVES_JOB": "job"},
    )  # fmt: skip
    assert "which collectives has started" in ended.stderr and "mpiexec" in ended.stderr


def test_shared_memory_alone_ends_at_the_host():
    variables = {
        "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
        "PMIX_NAMESPACE": "job",
    }  # fmt: skip
    ended = subprocess.run(
        [sys.executable, "-c", "import collectives; collectives.init('shm')"], text=True,
        capture_output=True, timeout=60, env=os.environ | variables,
    )  # fmt: skip
    assert "ValueError: transport 'shm' ends at the host" in ended.stderr
