"""What the stages of `gpu_check.py` share: their time, what they say, the programs they run."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
KIND = os.environ.get("COLLECTIVES_TEST_DEVICES", "emulated")
EMULATED = KIND == "emulated"
PATIENCE = 15.0  # seconds a wait may take; none should
_BEGUN = time.monotonic()


def left(reserve: float = 3.0) -> float:
    """Seconds until this stage is killed, but for some to say what was found."""
    return max(1.0, _BEGUN + float(sys.argv[3]) - time.monotonic() - reserve)


def shown(command: list[str], seconds: float) -> tuple[bool, list[str]]:
    """Whether a program fails, or takes longer; and its lines, said as they come."""
    program = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
    )

    def end() -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            found = psutil.Process(program.pid)
            for each in [*found.children(recursive=True), found]:  # who all hold the pipe
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.kill()

    timer = threading.Timer(seconds, end)
    timer.start()
    lines = []
    assert program.stdout is not None, "a pipe"
    for line in program.stdout:
        print(line, end="", flush=True)
        lines.append(line.rstrip())
    failed = program.wait() != 0
    if not timer.is_alive():
        print(f"not done after {seconds:.0f} s: {' '.join(command)}", flush=True)
    timer.cancel()
    return failed, [line for line in lines if line]


def leave(found: dict[str, Any]) -> None:
    """What has been found so far."""
    file = Path(sys.argv[2])
    draft = file.with_suffix(".part")
    draft.write_text(json.dumps(found) + "\n")
    draft.replace(file)  # whole, whenever this stage is killed
