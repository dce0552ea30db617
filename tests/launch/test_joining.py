"""A script joins its ranks by `collectives.init()`, whoever started them: we, or torchrun."""

from __future__ import annotations

import re
import sys

import pytest

ALLREDUCE = """
    import os
    import numpy as np
    import collectives

    with collectives.init() as comm:
        total = comm.allreduce(np.full(4, comm.rank + 1.0, dtype=np.float32))
        # In one piece: torchrun's ranks write to one pipe, and nobody puts lines together there.
        text = f"rank {comm.rank} of {comm.size} has {total.tolist()}\\n"
        os.write(1, text.encode())
"""


def expected_lines(ranks: int) -> list[str]:
    total = [float(sum(range(1, ranks + 1)))] * 4
    return [f"rank {rank} of {ranks} has {total}" for rank in range(ranks)]


@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_ranks_of_our_launcher_join(launcher, program, ranks):
    done = launcher("run", "-n", ranks, "--no-prefix", program(ALLREDUCE))
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == expected_lines(ranks)


@pytest.mark.full
def test_ranks_of_torchrun_join(launcher, program):
    words = ("-m", "torch.distributed.run", "--nproc-per-node", 2, program(ALLREDUCE))
    process = launcher.start(*words, command=(sys.executable,))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert sorted(out.splitlines()) == expected_lines(2)


def test_without_a_launcher_there_is_a_world_of_one(launcher, program):
    process = launcher.start(program(ALLREDUCE), command=(sys.executable,))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out.splitlines() == expected_lines(1)


def test_two_jobs_at_once_do_not_meet(launcher, program):
    script = program(ALLREDUCE)
    jobs = [launcher.start("run", "-n", ranks, "--no-prefix", script) for ranks in (2, 3)]
    for job, ranks in zip(jobs, (2, 3), strict=True):
        out, err = job.communicate(timeout=60)
        assert job.returncode == 0, err
        assert sorted(out.splitlines()) == expected_lines(ranks)


def test_the_rank_that_raised_is_first_however_the_others_end(launcher, program):
    script = program("""
        import numpy as np
        import collectives

        with collectives.init() as comm:
            comm.barrier()
            if comm.rank == 1:
                raise ValueError("the cause")
            comm.allreduce(np.ones(1 << 20))
    """)
    done = launcher("run", "-n", 3, script)
    assert done.returncode == 1
    assert re.search(r"rank 1 \(pid \d+\) failed first, exit code 1:", done.stderr)
    assert done.stderr.endswith("ValueError: the cause\n")
    # The others do not stay silent until they are ended: they say what happened.
    assert re.search("rank[s]? .*ended by it.*AbortedError: rank 1 raised ValueError", done.stderr)


def test_a_rank_that_is_killed_in_a_collective_is_first(launcher, program):
    script = program("""
        import os, signal
        import numpy as np
        import collectives

        with collectives.init() as comm:
            comm.barrier()
            if comm.rank == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            while True:
                comm.allreduce(np.ones(1 << 16))
    """)
    done = launcher("run", "-n", 3, script)
    assert done.returncode == 128 + 9
    assert re.search(r"rank 2 \(pid \d+\) failed first, killed by SIGKILL", done.stderr)
    assert "PeerLostError" in done.stderr
