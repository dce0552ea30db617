"""What a run shows while it trains: one line that is redrawn, and a file of metrics.

The line ends in a carriage return, not a line end: the launcher redraws it in place on a terminal
and thins it out elsewhere. Metrics are JSON lines; resuming removes those of steps done anew.
"""

from __future__ import annotations

import io
import json
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress_bar import ProgressBar
from rich.table import Table

from trainers.errors import RecordError
from trainers.step_times import PARTS

REDRAW_EVERY = 2.0
METRICS = "metrics.jsonl"


class ProgressLine:
    """Steps done, loss, speed and communication, in one line of text.

    Args:
        steps: of the whole run.
        start: the step it begins or resumes at.
        epoch: steps per epoch.
        unit: what a speed is counted in.
        shown: whether this rank shows anything.
    """

    def __init__(self, *, steps: int, start: int, epoch: int, unit: str, shown: bool) -> None:
        self._steps = steps
        self._start = start
        self._epoch = epoch
        self._unit = unit
        self._shown = shown
        self._began = time.monotonic()
        self._drawn = self._began

    def update(self, done: int, facts: dict[str, float]) -> None:
        """Redraws the line if it is time to."""
        now = time.monotonic()
        if self._shown and now - self._drawn >= REDRAW_EVERY:
            self._drawn = now
            self._write(self._line(done, facts) + "\r")

    def leave(self, done: int, facts: dict[str, float], result: str) -> None:
        """Leaves the line standing, with what the evaluation found."""
        if self._shown:
            self._write(f"{self._line(done, facts)}  {result}\n")

    def _line(self, done: int, facts: dict[str, float]) -> str:
        passed = time.monotonic() - self._began
        left = passed / max(1, done - self._start) * (self._steps - done)
        epoch, epochs = -(-done // self._epoch), -(-self._steps // self._epoch)
        cells = Table.grid(padding=(0, 1))
        cells.add_row(
            ProgressBar(total=self._steps, completed=done, width=12),
            f"epoch {epoch}/{epochs}",
            f"step {done}/{self._steps}",
            f"loss {facts['loss']:.3g}",
            f"{facts[speed_key(self._unit)]:,.0f} {self._unit}/s",
            f"communicating {_share(facts, 'exposed'):.1f} %,",
            f"waiting {_share(facts, 'late'):.1f} %",
            f"{_clock(left)} left",
        )
        text = io.StringIO()
        Console(file=text, width=200, color_system=None).print(cells, end="")
        return text.getvalue().rstrip()

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


class MetricsFile:
    """`metrics.jsonl` in the run's folder, one record a line; on other ranks than 0 nothing.

    Args:
        path: of the file; None to write nothing.
        start: the step the run begins at; records beyond it are of a run that was broken off.
    """

    def __init__(self, path: Path | None, start: int) -> None:
        self._path = path
        if path is None:
            return
        kept = []
        if start and path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                # The last line may be half a record, if the run was killed while writing it.
                if line.endswith("}") and json.loads(line)["step"] <= start:
                    kept.append(line + "\n")
        path.write_text("".join(kept), encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        """Adds a record.

        Raises:
            RecordError: the disk is full, or the folder has gone.
        """
        if self._path is None:
            return
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise RecordError(f"cannot write {self._path}: {error.strerror}") from error


def judged_before(path: Path) -> dict[str, float] | None:
    """The evaluation before the first step in a file of metrics, if there was one."""
    with path.open(encoding="utf-8") as lines:
        record: dict[str, float] = json.loads(next(lines, '{"step": 1}'))
    return record if record.pop("step") == 0 else None


def speed_key(unit: str) -> str:
    """The name of a speed among a run's metrics, as in `images_per_second`."""
    return f"{unit}_per_second"


def _share(facts: dict[str, float], part: str) -> float:
    """How many hundredths of a step a part of it takes."""
    whole = sum(facts[f"{each}_ms"] for each in PARTS)
    return 100 * facts[f"{part}_ms"] / whole


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
