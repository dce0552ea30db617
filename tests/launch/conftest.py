"""Starts the launcher as a user does, as a process of its own, and waits for it by events."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

import launch

SOURCES = str(Path(launch.__file__).parents[1])
LIMIT = 60.0  # seconds that no launcher of these tests may take

Program = Callable[..., str]


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
