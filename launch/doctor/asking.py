"""Asks what may hang or crash: a program in a process of its own, a function in a thread.

A process that does not answer in time is killed with all it has started; one that not even the
kernel can end, as when a driver is stuck, is left to it. A thread cannot be ended and is left
alone; it does not keep this process from ending.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from launch.failures import ending
from launch.orphans import LAUNCHER_VARIABLE
from launch.processes import FOLDER, ISOLATED_PYTHON
from launch.sweeping import JOB_VARIABLE

T = TypeVar("T")

_REAP_SECONDS = 1.0  # for a process that was killed to go


class NoAnswer(Exception):
    """Who was asked did not say; the text is why."""


def output_of(command: Sequence[str], seconds: float) -> str:
    """What a program, given by its path, writes to stdout.

    Raises:
        NoAnswer: it does not end in time, or not well.
    """
    # The shim ties the program's life to ours: a library that hangs must not outlive Ctrl-C.
    shim = [*ISOLATED_PYTHON, str(FOLDER / "rank_shim.py"), str(os.getpid()), ""]
    process = subprocess.Popen(
        [*shim, *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=_environment(),
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        raise NoAnswer(f"no answer within {seconds:g} s") from None
    finally:
        _end(process)
    if process.returncode:
        last = ([line for line in err.splitlines() if line.strip()] or ["nothing was said"])[-1]
        raise NoAnswer(f"{ending(process.returncode)} ({last.strip()})")
    return out


def ask(module: str, *words: str, seconds: float) -> dict[str, Any]:
    """Runs one of our modules as a program, and returns the object that its last line is.

    Raises:
        NoAnswer: it does not end in time, or not well, or with anything else.
    """
    out = output_of([sys.executable, "-P", "-m", module, *words], seconds)
    return last_object(out)


def last_object(out: str) -> dict[str, Any]:
    """The JSON object on the last line, after whatever libraries have printed.

    Raises:
        NoAnswer: there is none.
    """
    last = (out.splitlines() or [""])[-1]
    try:
        found = json.loads(last)
    except json.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise NoAnswer(f"expected an answer in JSON, found {last[:80]!r}")
    return found


def begin(function: Callable[[], T]) -> Future[T]:
    """Calls it in a thread of its own, which may be left alone."""
    future: Future[T] = Future()

    def call() -> None:
        try:
            result = function()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=call, daemon=True).start()
    return future


def await_result(future: Future[T], seconds: float) -> T:
    """What the function returns or raises.

    Raises:
        NoAnswer: it does neither in time.
    """
    try:
        return future.result(timeout=seconds)
    except TimeoutError:
        if future.done():
            raise  # the function's own
        raise NoAnswer(f"no answer within {seconds:g} s") from None


def _environment() -> dict[str, str]:
    """Ours, so that our modules are found where we find them; but no mark of a job.

    Called from what is left of a job, we would take those we ask for more of it, and end them.
    """
    marks = (JOB_VARIABLE, LAUNCHER_VARIABLE)
    kept = {name: text for name, text in os.environ.items() if name not in marks}
    return {**kept, "PYTHONPATH": os.pathsep.join(entry or os.curdir for entry in sys.path)}


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_REAP_SECONDS)
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()
