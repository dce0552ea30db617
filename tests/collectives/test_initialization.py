"""`collectives.init`: alone, by a launcher's environment, by torchrun's; and what it refuses."""

from __future__ import annotations

import os
import platform

import numpy as np
import pytest
from harness.processes import FOREIGN, Ranks, open_descriptors

import collectives
from transports.shm import connection


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in (*FOREIGN, "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
        monkeypatch.delenv(name, raising=False)


def test_alone_it_is_a_world_of_one():
    descriptors = len(open_descriptors())
    with collectives.init() as comm:
        assert (comm.rank, comm.size, comm.hosts, comm.timeout) == (0, 1, (0,), 1800.0)
        x = np.arange(3.0)
        assert comm.allreduce(x, op="avg").tolist() == [0, 1, 2]
        with collectives.init("shm", timeout=5) as other:
            assert other.timeout == 5.0
            assert other.allgather_object("me") == ["me"]
    assert len(open_descriptors()) <= descriptors + 1


@pytest.mark.parametrize(
    "arguments, kind, words",
    [
        (("shn",), ValueError, ["auto, shm", "'shn'", "did you mean shm?"]),
        (("tcp",), ValueError, ["'tcp'", "does not exist yet", "auto, shm, mpi or cuda_ipc"]),
        ((7,), ValueError, ["auto, shm", "7"]),
        (("auto", 0), ValueError, ["timeout must be positive", "0"]),
        (("auto", -1.5), ValueError, ["timeout must be positive", "-1.5"]),
        (("auto", float("nan")), ValueError, ["timeout must be positive", "nan"]),
        (("auto", "soon"), TypeError, ["timeout must be a number", "'soon'"]),
    ],
)
def test_wrong_arguments(arguments, kind, words):
    with pytest.raises(kind) as caught:
        collectives.init(*arguments)
    assert all(word in str(caught.value) for word in words), caught.value


def test_other_machines_are_refused_clearly(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(OSError, match="x86-64 and aarch64, found linux on riscv64"):
        collectives.init()


def test_environments_that_make_no_sense(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ValueError, match="no WORLD_SIZE"):
        collectives.init()
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("COLLECTIVES_JOB", "two hosts")
    with pytest.raises(
        ValueError, match=r"4 ranks, 2 of them on this host.*several hosts.*mpiexec or srun"
    ):
        collectives.init()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setenv("COLLECTIVES_SLOTS", "none")
    with pytest.raises(ValueError, match=r"COLLECTIVES_SLOTS must be an integer.*'none'"):
        collectives.init()


def meet_twice():
    with collectives.init(timeout=60) as comm:
        first = comm.allgather_object((comm.rank, os.environ["RANK"]))
    with collectives.init(timeout=60) as comm:  # the same job again
        return first, comm.allreduce(np.ones(2)).tolist(), len(open_descriptors())


@pytest.mark.parametrize("launcher", ["ours", "torchrun"])
def test_ranks_of_a_launcher_meet(launcher):
    environment = {}
    if launcher == "torchrun":
        environment = {
            "COLLECTIVES_JOB": "", "COLLECTIVES_SECRET": "", "MASTER_ADDR": "localhost",
            "MASTER_PORT": str(os.getpid()), "TORCHELASTIC_RUN_ID": "test",
            "TORCHELASTIC_RESTART_COUNT": "0",
        }  # fmt: skip
    with Ranks(meet_twice, 3, environment=environment) as job:
        for outcome in job.outcomes():
            first, total, descriptors = outcome.value
            assert first == [(rank, str(rank)) for rank in range(3)]
            assert total == [3, 3]
            assert descriptors < 20


def say_where():
    with collectives.init(timeout=60) as comm:
        return comm.allgather_object(os.environ["COLLECTIVES_JOB"]), comm._engine.slot_bytes


def test_two_jobs_at_once_do_not_meet():
    with Ranks(say_where, 2) as one, Ranks(say_where, 3) as other:
        names = [outcome.value[0] for outcome in (*one.outcomes(), *other.outcomes())]
    assert [len(each) for each in names] == [2, 2, 3, 3, 3]
    assert all(len(set(each)) == 1 for each in names) and names[0][0] != names[2][0]


def test_rank_0_decides_on_the_memory():
    sizes = {0: "1024", 1: "2048"}
    with Ranks(say_where, 2, each=lambda r: {"COLLECTIVES_SLOT_BYTES": sizes[r]}) as job:
        assert [outcome.value[1] for outcome in job.outcomes()] == [1024, 1024]


def test_hosts_that_differ_are_refused():
    with Ranks(say_where, 2, each=lambda rank: {"COLLECTIVES_HOST_ID": f"host {rank}"}) as job:
        for outcome in job.outcomes():
            assert outcome.error == "MismatchError" and "on another host" in outcome.text


def come_with(timeout):
    collectives.init(timeout=timeout)


def test_a_rank_that_never_comes_is_named():
    # Time for the other that comes to start, on cores that others use too.
    with Ranks(come_with, 4, 4.0, only=[0, 2]) as job:
        for outcome in job.outcomes():
            assert outcome.error == "CollectiveTimeout"
            assert "ranks 1, 3 of 4 did not come" in outcome.text


def test_rank_0_that_never_comes_is_named():
    with Ranks(come_with, 2, 0.5, only=[1]) as job:
        (outcome,) = job.outcomes()
        assert outcome.error == "CollectiveTimeout" and "rank 0 did not come" in outcome.text


def have_no_memory():
    comm = collectives.init(timeout=60)
    comm.close()


def test_memory_that_cannot_be_had_is_told_to_all():
    each = {"COLLECTIVES_SLOTS": str(1 << 20), "COLLECTIVES_SLOT_BYTES": str(1 << 30)}
    with Ranks(have_no_memory, 2, environment=each) as job:
        first, second = job.outcomes()
    assert first.error == "MemoryError" and "bytes of shared memory" in first.text
    assert second.error == "MismatchError" and "rank 0 has no shared memory" in second.text


def test_memory_that_is_not_what_rank_zero_wrote(monkeypatch):
    monkeypatch.setattr(connection._native, "format_region", lambda *_, **__: None)
    with pytest.raises(collectives.CollectiveError, match="was not formatted by this package"):
        collectives.init()
