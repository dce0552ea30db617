"""Every rank finds torchrun's variables and our own; torch.distributed works by them alone."""

from __future__ import annotations

import json
import os
import re
import socket
from pathlib import Path

import pytest

from launch.environment import JobIdentity, ReservedPort, rank_environment

SHOW = """
    import json, os
    from pathlib import Path
    own = {name: text for name, text in os.environ.items()}
    own["cmdline"] = Path(f"/proc/{os.getppid()}/cmdline").read_text()
    own["own_cmdline"] = Path("/proc/self/cmdline").read_text()
    print(json.dumps(own))
"""


def shown(output: str) -> list[dict[str, str]]:
    """What each rank has printed, by rank."""
    lines = [re.fullmatch(r"\[(\d+)\] (.*)", line) for line in output.splitlines()]
    return [json.loads(line[2]) for line in sorted(lines, key=lambda line: int(line[1]))]


def test_every_variable_of_torchrun_is_set(launcher, program):
    done = launcher("run", "-n", 3, program(SHOW))
    assert done.returncode == 0, done.stderr
    ranks = shown(done.stdout)
    for rank, variables in enumerate(ranks):
        expected = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "3",
            "LOCAL_WORLD_SIZE": "3",
            "GROUP_RANK": "0",
            "GROUP_WORLD_SIZE": "1",
            "ROLE_NAME": "default",
            "ROLE_RANK": str(rank),
            "ROLE_WORLD_SIZE": "3",
            "MASTER_ADDR": "127.0.0.1",
            "TORCHELASTIC_RESTART_COUNT": "0",
            "TORCHELASTIC_MAX_RESTARTS": "0",
            "TORCHELASTIC_USE_AGENT_STORE": "False",
            "TORCHELASTIC_ERROR_FILE": "",
            "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
        }
        assert {name: variables[name] for name in expected} == expected
        assert 1024 <= int(variables["MASTER_PORT"]) < 65536
    for shared in ("MASTER_PORT", "TORCHELASTIC_RUN_ID", "COLLECTIVES_JOB", "COLLECTIVES_SECRET"):
        assert len({variables[shared] for variables in ranks}) == 1, shared


def test_no_variable_of_torchruns_agent_is_missing():
    import torch.distributed.elastic.agent.server.local_elastic_agent as agent
    import torch.distributed.elastic.multiprocessing.api as multiprocessing

    source = Path(agent.__file__).read_text()
    written = source[source.index("worker_env = {") :]
    wanted = set(re.findall(r'"([A-Z_]+)":', written[: written.index("}\n")]))
    wanted |= set(re.findall(r'worker_env\["([A-Z_]+)"\]', source)) - {
        "CUDA_VISIBLE_DEVICES",
        "OMP_NUM_THREADS",
    }
    wanted |= set(re.findall(r'\["(TORCH[A-Z_]+)"\]', Path(multiprocessing.__file__).read_text()))
    assert "RANK" in wanted
    ours = rank_environment(0, JobIdentity(ranks=1, master_port=1), {}, 1)
    assert wanted <= set(ours)


def test_the_secret_is_long_and_on_no_command_line(launcher, program):
    first, second = (shown(launcher("run", "-n", 1, program(SHOW)).stdout)[0] for _ in range(2))
    assert re.fullmatch("[0-9a-f]{32,}", first["COLLECTIVES_SECRET"])
    assert first["COLLECTIVES_SECRET"] != second["COLLECTIVES_SECRET"]
    assert first["COLLECTIVES_JOB"] != second["COLLECTIVES_JOB"]
    for line in (first["cmdline"], first["own_cmdline"]):
        assert first["COLLECTIVES_SECRET"] not in line


def test_the_secret_is_not_shown_with_the_identity():
    identity = JobIdentity(ranks=1, master_port=1)
    assert identity.secret not in repr(identity)


def test_variables_of_another_launcher_are_replaced(launcher, program):
    done = launcher(
        "run", "-n", 1, program(SHOW), environment={"RANK": "7", "MASTER_PORT": "1", "OWN": "kept"}
    )
    (variables,) = shown(done.stdout)
    assert variables["RANK"] == "0"
    assert variables["MASTER_PORT"] != "1"
    assert variables["OWN"] == "kept"


def test_omp_threads_are_shared_out_unless_the_user_says(launcher, program):
    cores = len(os.sched_getaffinity(0))
    script = program(SHOW)
    (one,) = shown(launcher("run", "-n", 1, script).stdout)
    assert one["OMP_NUM_THREADS"] == str(cores)
    many = shown(launcher("run", "-n", cores + 1, script).stdout)
    assert {variables["OMP_NUM_THREADS"] for variables in many} == {"1"}
    (own,) = shown(launcher("run", "-n", 1, script, environment={"OMP_NUM_THREADS": "7"}).stdout)
    assert own["OMP_NUM_THREADS"] == "7"
    (asked,) = shown(
        launcher(
            "run", "-n", 1, "--threads", 5, script, environment={"OMP_NUM_THREADS": "7"}
        ).stdout
    )
    assert asked["OMP_NUM_THREADS"] == "5"


def test_a_reserved_port_is_nobody_elses_and_can_be_listened_to():
    with ReservedPort() as first, ReservedPort() as second:
        assert first.number != second.number
        with socket.create_server(("127.0.0.1", first.number)) as server:  # sets SO_REUSEADDR
            assert server.getsockname()[1] == first.number


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.full), 2])
def test_torch_distributed_works_by_the_environment(launcher, program, ranks):
    script = program("""
        import torch, torch.distributed as dist
        dist.init_process_group("gloo")
        x = torch.ones(3) * (dist.get_rank() + 1)
        dist.all_reduce(x)
        print(dist.get_world_size(), x.tolist())
        dist.destroy_process_group()
    """)
    done = launcher("run", "-n", ranks, script)
    total = float(sum(range(1, ranks + 1)))
    assert done.returncode == 0, done.stderr
    lines = [f"[{rank}] {ranks} {[total] * 3}" for rank in range(ranks)]
    assert sorted(done.stdout.splitlines()) == lines
