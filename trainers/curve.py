"""The curve of a run: the loss over its steps, and what the evaluations found below it."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from trainers.step_times import PARTS

_NOT_DRAWN = {"step", "loss", *(f"{part}_ms" for part in PARTS)}


def draw_curve(metrics: Path, path: Path) -> None:
    """Draws a run's `metrics.jsonl` as a PNG.

    Training loss and, where the task has a loss of its own on held-out data, that one too stand in
    the upper panel; the mean of all else that the evaluations found, by the word before a slash, in
    lower ones.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    records = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    losses = [(each["step"], each["loss"]) for each in records if "loss" in each]
    found = _evaluations(records)
    held_out = found.pop("validation_loss", [])
    panels = 1 + len(found)
    figure = Figure(figsize=(8, 2 + 2.2 * panels), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0]
    axes[0].plot(*zip(*losses, strict=True), label="training", color="tab:blue", lw=1)
    if held_out:
        axes[0].plot(*zip(*held_out, strict=True), label="held out", color="tab:orange", marker=".")
        axes[0].legend()
    else:
        axes[0].set_yscale("log")
    axes[0].set_ylabel("loss")
    for axis, (name, points) in zip(axes[1:], found.items(), strict=True):
        axis.plot(*zip(*points, strict=True), color="tab:green", marker=".")
        axis.set_ylabel(name.replace("_", " "))
    for axis in axes:
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel("steps")
    figure.savefig(path)


def _evaluations(records: list[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """Name -> (step, mean over what has that name before a slash)."""
    found: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for record in records:
        values: dict[str, list[float]] = defaultdict(list)
        for key, value in record.items():
            if key not in _NOT_DRAWN and not key.endswith("_per_second"):
                values[key.partition("/")[0]].append(value)
        for name, several in values.items():
            found[name].append((record["step"], sum(several) / len(several)))
    return dict(found)
