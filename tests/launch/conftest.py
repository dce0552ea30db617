"""Starts the launcher as a user does, as a process of its own, and waits for it by events."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import launch
from launch.command_line import main
from launch.doctor import examination, gpus, mpi, self_test

SOURCES = str(Path(launch.__file__).parents[1])
LIMIT = 60.0  # seconds that no launcher of these tests may take

Program = Callable[..., str]
Doctor = Callable[..., dict[str, dict[str, Any]]]

DOCTORS_RUNTIME = {
    "kernels": {"value": "avx2"},
    "channels": {"value": 3 << 20},
    "memory": {"value": {"memfd": True, "sealed": True}},
    "kernel_calls": {"value": {"membarrier": True, "futex": True, "pidfd_open": True}},
    "tuning": {"value": {"folder": "/tuned", "there": True}},
}


class Launcher:
    """`python -m launch`, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[str]] = []

    def environment(self, extra: Mapping[str, str | None] | None = None) -> dict[str, str]:
        """Ours, without what another launcher may have left in it; None takes a variable out."""
        path = os.pathsep.join(filter(None, [SOURCES, os.environ.get("PYTHONPATH")]))
        wanted: dict[str, str | None] = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": None}
        wanted.update(extra or {})
        return {name: text for name, text in wanted.items() if text is not None}

    def start(
        self,
        *words: str | Path,
        environment: Mapping[str, str | None] | None = None,
        stdin: int = subprocess.DEVNULL,
        command: tuple[str, ...] = (sys.executable, "-m", "launch"),
    ) -> subprocess.Popen[str]:
        """Starts it and does not wait."""
        process = subprocess.Popen(
            [*command, *map(str, words)],
            cwd=self.folder,
            env=self.environment(environment),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        self.started.append(process)
        return process

    def __call__(
        self,
        *words: str | Path,
        environment: Mapping[str, str | None] | None = None,
        text: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Runs it to its end; `text` is what it reads from stdin."""
        stdin = subprocess.DEVNULL if text is None else subprocess.PIPE
        process = self.start(*words, environment=environment, stdin=stdin)
        out, err = process.communicate(text, timeout=LIMIT)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def close(self) -> None:
        """Ends launchers that a failed test has left; their ranks end with them."""
        for process in self.started:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()


def read_until(process: subprocess.Popen[str], wanted: str, times: int = 1) -> list[str]:
    """Reads lines of stdout until `wanted` has been in so many of them."""
    assert process.stdout is not None
    lines = []
    while times > 0:
        line = process.stdout.readline()
        assert line, f"the output ended before {wanted!r}: {lines}"
        lines.append(line.rstrip("\n"))
        times -= wanted in line
    return lines


@pytest.fixture(autouse=True)
def signals_as_at_a_terminal() -> Iterator[None]:
    """Undoes what nohup or a shell's background job has made these tests ignore."""
    numbers = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
    ignored = [number for number in numbers if signal.getsignal(number) == signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Launcher]:
    starter = Launcher(tmp_path)
    yield starter
    starter.close()


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """Writes a program into the launcher's folder and returns its name."""

    def write(code: str, name: str = "program.py") -> str:
        (tmp_path / name).write_text(textwrap.dedent(code).lstrip())
        return name

    return write


@pytest.fixture
def read_lines() -> Callable[..., list[str]]:
    return read_until


@pytest.fixture
def doctor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Doctor:
    """Runs it here, where all is well unless `answers` say otherwise; returns findings and code.

    `answers` are those of `runtime` (what differs), `gpus`, `self_test` and `mpi` (by program); an
    exception is raised.
    """

    def look(*words: str, **answers: Any) -> dict[str, dict]:
        def ask(module: str, *words: str, seconds: float) -> Any:
            if module.endswith("runtime_probe"):
                given = answers.get("runtime", {})
                found = given if isinstance(given, Exception) else {**DOCTORS_RUNTIME, **given}
            elif module.endswith("gpu_probe"):
                found = answers.get("gpus", {"driver": None, "gpus": [], "apart": []})
            else:
                found = answers.get("self_test", {"seconds": 5e-7})
            if isinstance(found, Exception):
                raise found
            return found

        def output_of(command: Sequence[str], seconds: float) -> str:
            found = answers.get("mpi", {}).get(command[0], '{"missing": ["mpi4py"]}')
            if isinstance(found, Exception):
                raise found
            return found

        for module in (examination, gpus, self_test):
            monkeypatch.setattr(module, "ask", ask)
        monkeypatch.setattr(mpi, "output_of", output_of)
        code = main(["doctor", "--json", *words])
        report = json.loads(capsys.readouterr().out)
        found = {each["subject"]: each for each in report["findings"]}
        assert len(found) == len(report["findings"]) == sum(report["counts"].values())
        assert code == (report["counts"]["problem"] > 0)
        for each in found.values():
            advice = each["advice"]
            assert (advice == "") == (each["verdict"] == "ok")
            assert not advice or (advice[0].isupper() and advice.endswith(".")), advice
        return found

    monkeypatch.setattr(mpi, "mpiexec_beside", lambda python: None)
    monkeypatch.setattr(mpi.shutil, "which", lambda name: None)
    return look
