"""Contenders: how each is found and started, and what becomes of groups that misbehave."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from collectives.bench.cases import Case
from launch.bench import contenders, groups
from launch.bench.contenders import Contender, ContenderMissing, distinct, find_contender
from launch.bench.groups import CaseRefused, Group, GroupLost
from launch.bench.leftovers import mapped_files, remove_leftovers
from launch.command_line import main

CASE = Case(collective="allreduce", nbytes=64, op="sum").as_json()


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """An environment that says of itself what a test wants."""

    def make(answer, mpiexec=True, kind="mpi"):
        for name in ("python", "mpiexec")[: 1 + mpiexec]:
            (tmp_path / name).write_text(f"#!/bin/sh\ncat <<'E'\n{answer}\nE\n")
            (tmp_path / name).chmod(0o755)
        return f"{kind}={tmp_path}/python"

    return make


def probed(version):
    return f'{{"python": [3, 12, 0], "missing": [], "mpi": "{version}"}}'


@pytest.mark.parametrize(
    "version, name, options, settings",
    [
        ("Open MPI v5.0.11", "Open MPI", "--bind-to none --map-by :OVERSUBSCRIBE", {}),
        ("MPICH Version: 5.0.2", "MPICH", "-launcher fork -bind-to none", {}),
        ("Intel(R) MPI Library", "Intel MPI", "-bootstrap fork", {"I_MPI_FABRICS": "shm"}),
        ("MVAPICH2", "MPI", "-bind-to none", {}),
    ],
)
def test_every_mpi_has_its_own_options(environment, version, name, options, settings):
    contender = find_contender(environment(probed(version)))
    assert contender.name == name
    command = contender.command(4, "{}")
    assert " ".join(command[1:]).startswith(options)
    assert command[-7:-4] == ["-n", "4", contender.python]
    assert settings.items() <= contender.environment.items()
    assert contender.environment["PATH"].startswith(str(Path(contender.python).parent))
    assert contender.options["settings"].items() >= settings.items()


@pytest.mark.parametrize(
    "answer, text",
    [
        ('{"python": [3, 10, 2], "missing": []}', "expected Python 3.11 or newer, found 3.10.2"),
        ('{"python": [3, 12, 0], "missing": ["mpi4py"]}', "mpi4py not installed in"),
        (
            '{"python": [3, 12, 0], "missing": [], "broken": "RuntimeError: no libmpi"}',
            "mpi4py finds no MPI in",
        ),
    ],
)
def test_an_environment_that_will_not_do_is_refused(environment, answer, text):
    with pytest.raises(ContenderMissing, match=text):
        find_contender(environment(answer))


@pytest.mark.parametrize(
    "spec, text",
    [
        ("ours", "expected ours=PYTHON, of an environment with another build"),
        ("gloo=/nowhere/python", "no program '/nowhere/python'; expected a Python's path"),
        ("mpi=/bin/false", "/bin/false is no Python that runs here"),
        ("gloo=/etc/passwd", "no program '/etc/passwd'; expected a Python's path"),
    ],
)
def test_what_is_no_python_is_refused_before_anything_is_measured(capsys, spec, text):
    assert main(["bench", "allreduce", "--against", f"ring,{spec}"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and f"error: {spec}: {text}" in captured.err


def test_an_mpi_without_mpiexec_is_refused(environment, monkeypatch):
    spec = environment(probed("MPICH"), mpiexec=False)
    found = contenders.shutil.which
    monkeypatch.setattr(
        contenders.shutil, "which", lambda name: None if name == "mpiexec" else found(name)
    )
    with pytest.raises(ContenderMissing, match=r"no mpiexec beside .* and none on PATH"):
        find_contender(spec)


def test_torch_and_deepspeed_are_started_with_their_settings(monkeypatch):
    monkeypatch.setattr(contenders, "_probed", lambda *_: {})
    gloo, other, deepspeed = map(find_contender, ("gloo", "torch:ucc", "deepspeed"))
    assert gloo.environment["GLOO_SOCKET_IFNAME"] == "lo" and gloo.options == {
        "backend": "gloo",
        "device": "cpu",
    }
    assert other.options == {"backend": "ucc", "device": "cpu"} and other.name == "ucc"
    assert deepspeed.environment["DS_ACCELERATOR"] == "cpu"


def test_names_are_made_distinct():
    named = distinct([Contender(name=name, library="mpi") for name in ("MPICH", "gloo", "MPICH")])
    assert [contender.name for contender in named] == ["MPICH #1", "gloo", "MPICH #2"]


def test_the_program_of_a_rank_needs_no_installed_package(tmp_path):
    """As in another environment: nothing of ours is on its path."""
    code = f"""
        import runpy, sys
        sys.path[:] = [p for p in sys.path if "site-packages" not in p and p != {str(Path.cwd())!r}]
        sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in repr(f).lower()]
        program = runpy.run_path({str(contenders.PROGRAM)!r}, run_name="looked at")
        program["load_package"](__import__("pathlib").Path({str(contenders.PROGRAM)!r}).parents[1])
        import collectives.version
        print(collectives.version.__file__)
        """
    done = subprocess.run([sys.executable, "-P", "-c", textwrap.dedent(code)], cwd=tmp_path,
                          capture_output=True, text=True, timeout=60)  # fmt: skip
    assert done.stdout.strip() == str(contenders.PROGRAM.parents[1] / "version.py"), done.stderr


class Program(Contender):
    """A contender whose ranks run a test's own words."""

    def command(self, ranks, options):
        speech = """
            import json, os, socket, sys, time
            options, rank = json.loads(sys.argv[1]), int(os.environ["RANK"])
            connection = socket.socket(socket.AF_UNIX)
            connection.connect("\\0" + options["address"])
            line = connection.makefile("rw")
            def say(**words):
                line.write(json.dumps(words) + "\\n"); line.flush()
            def hello():
                say(rank=rank, size=2, cores=[0], description={"library": "test"})
            """
        words = textwrap.dedent(speech) + textwrap.dedent(self.options["words"])
        return [sys.executable, "-c", words, options]


def group_of(words, **changes):
    contender = Program(name="test", library="none", options={"words": words}, **changes)
    return Group(contender, 2, cores=[[], []], threads=1, cache_bytes=1 << 20)


LOSSES = {
    "rank 1 has ended: exit code 3\n    something went wrong": """
        if rank == 1:
            print("something went wrong", file=sys.stderr, flush=True)
            sys.exit(3)
        time.sleep(60)""",
    "no library here": """
        say(failed="no library here")
        time.sleep(60)""",
    "rank 0, 1 has not started in time": "time.sleep(60)",
}


@pytest.mark.parametrize("text", LOSSES)
def test_a_group_that_does_not_start_is_lost(text, monkeypatch):
    monkeypatch.setattr(groups, "START_SECONDS", 2.0 if "time" in text else 30.0)
    with group_of(LOSSES[text]) as group, pytest.raises(GroupLost) as error:
        group.meet()
    assert str(error.value) == text


ANSWERS = {
    "all refuse": "say(refused='not this')",
    "all fail": "say(failed='MemoryError: too much')",
    "not all ranks agree: only here": "say(**({'failed': 'only here'} if rank else {'wrong': 0}))",
    "rank 0 has not answered 'check' in time": "say(wrong=0) if rank else None",
    "not all ranks agree: only 1": "say(failed='only 1') if rank else say(refused='only 0')",
}


@pytest.mark.parametrize("what", ANSWERS)
def test_answers_that_end_a_case_or_a_group(what, monkeypatch):
    monkeypatch.setattr(groups, "ANSWER_SECONDS", 2.0)
    monkeypatch.setattr(groups, "LEAVE_SECONDS", 0.1)
    kind = CaseRefused if what.startswith("all") else GroupLost
    words = f"hello()\nline.readline()\n{ANSWERS[what]}\nline.readline()\ntime.sleep(60)"
    with group_of(words) as group:
        group.meet()
        assert group.description == {"library": "test"} and group.bound == [[0], [0]]
        with pytest.raises(kind) as error:
            group.ask("check", 1, plant=0)
    expected = {"all refuse": "not this", "all fail": "MemoryError: too much"}.get(what, what)
    if "only 1" not in what:
        assert str(error.value) == expected


def test_a_rank_that_ends_while_it_is_asked_is_a_lost_group():
    with group_of("hello()\nline.readline()\nos.kill(os.getpid(), 9)") as group:
        group.meet()
        with pytest.raises(GroupLost, match="has ended: killed by SIGKILL"):
            group.ask("check", 1, plant=0)


def test_a_rank_that_no_longer_listens_is_a_lost_group():
    with group_of("hello()\nconnection.shutdown(2)\ntime.sleep(60)") as group:
        group.meet()
        with pytest.raises(GroupLost, match=r"does not listen|has ended"):
            for _ in range(100):
                group.ask("check", 1, plant=0)


def test_what_ranks_leave_in_shared_memory_is_removed_unless_others_use_it(tmp_path):
    import mmap

    files = [tmp_path / name for name in ("left", "used", "gone")]
    for file in files[:2]:
        file.write_bytes(bytes(4096))
    with files[1].open("r+b") as opened, mmap.mmap(opened.fileno(), 4096):
        assert mapped_files([os.getpid()], tmp_path) == {files[1]}
        remove_leftovers(files, tmp_path)
        assert not files[0].exists() and files[1].exists()
    remove_leftovers(files, tmp_path)
    assert not files[1].exists()
    assert mapped_files([-1], tmp_path) == set()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_real_group_of_ours_is_asked(dtype):
    case = {**CASE, "dtype": dtype}
    with Group(contenders.OURS, 2, cores=[[], []], threads=1, cache_bytes=1 << 20) as group:
        group.meet()
        group.ask("prepare", 1, case=case, variant="ring")
        assert [answer["wrong"] for answer in group.ask("check", 1, plant=0)] == [0, 0]
        assert all(answer["seconds"] > 0 for answer in group.ask("time", 1, calls=5))
        with pytest.raises(CaseRefused, match=r"ValueError: allreduce has no algorithm|unknown"):
            group.ask("prepare", 2, case=case, variant="no such")
            group.ask("check", 2, plant=0)
        assert group.ask("release", 1) == [{}, {}]
