"""What ways of training came to: read, and shown as tables on a terminal and in Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from trainers.step_times import PARTS

CLOSE = 0.02
"""By what part losses and norms of gradients may differ in the first steps: 16 bits round."""

SAME = 1e-4
"""By what part norms may differ between the ranks of one way, which have the same gradients."""


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What one way came to in one case; seconds.

    Attributes:
        case: what was trained.
        who: by which way.
        rounds: seconds of a step in each round, its slowest rank's.
        parts: the median of a step's parts over all steps, over ranks the mean.
        step: the same of the whole step; None in records from before it was kept.
        spread: exposed communication in the tenth and in the ninetieth of a hundred steps.
        steps: how many were taken, warm-up left out.
        losses: the global batch's mean loss of the first steps.
        norms: the global norm of the averaged gradients in those steps, by rank.
        facts: about the model.
        problem: why there is nothing else; empty if there is.
    """

    case: str
    who: str
    rounds: tuple[float, ...] = ()
    parts: Mapping[str, float] = field(default_factory=dict)
    step: float | None = None
    spread: tuple[float, float] = (0.0, 0.0)
    steps: int = 0
    losses: tuple[float, ...] = ()
    norms: tuple[tuple[float, ...], ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""

    @property
    def best(self) -> float:
        """Steps a second in the best round."""
        return 1 / min(self.rounds)

    @property
    def exposed(self) -> float:
        """Seconds of communication that nothing hides."""
        return self.parts["exposed"]

    def agrees_with(self, other: TrainingResult) -> bool:
        """Whether the first steps had the same losses and gradients, on every rank."""
        mine, theirs = np.array(self.norms), np.array(other.norms)
        return bool(
            np.allclose(self.losses, other.losses, rtol=CLOSE, atol=0)
            and np.allclose(mine, mine[:1], rtol=SAME, atol=0)
            and np.allclose(mine, theirs, rtol=CLOSE, atol=0)
        )


def training_table(results: Sequence[TrainingResult]) -> Table:
    """One case, a way a row."""
    ours = results[0]
    facts = ours.facts
    title = f"{ours.case}: {facts.get('parameters', 0):,} parameters, {facts.get('precision', '')}"
    table = Table(title=title, caption=facts.get("buckets"))
    table.add_column("")
    for name in head_of(results):
        table.add_column(name, justify="right")
    for result in results:
        table.add_row(*row_of(result, ours))
    return table


def head_of(results: Sequence[TrainingResult]) -> list[str]:
    """What stands over the cells of `row_of`, after the first."""
    whole = ["ms"] if any(result.step is not None for result in results) else []
    return ["steps/s", *whole, *PARTS, "exposed ÷ ours", "steps/s ÷ ours"]


def row_of(result: TrainingResult, ours: TrainingResult) -> list[str]:
    """A way's cells, as tables have them."""
    if result.problem:
        return [result.who, result.problem.splitlines()[0]]
    cells = [result.who, f"{result.best:.2f}"]
    if result.step is not None:
        cells.append(f"{1e3 * result.step:.2f}")
    cells += [f"{1e3 * result.parts[part]:.3f}" for part in PARTS]
    if result is ours or ours.problem:
        return [*cells, "", ""]
    cells.append(f"{result.exposed / ours.exposed:.1f}")
    cells.append(f"{result.best / ours.best:.2f}")
    if not result.agrees_with(ours):
        cells[0] += " (other gradients!)"
    return cells


def is_training(path: Path) -> bool:
    """Whether a file begins as one of `collectives bench train --json`."""
    try:
        with path.open(encoding="utf-8") as lines:
            header = json.loads(next(lines, ""))
    except (OSError, ValueError):
        return False  # whoever reads it says what is wrong
    return isinstance(header, dict) and header.get("kind") == "training"


def read_training(path: Path) -> tuple[dict[str, Any], list[TrainingResult]]:
    """The header and the results of a run that `--json` has kept."""
    header, *lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return header, [_result(line) for line in lines]


def _result(line: dict[str, Any]) -> TrainingResult:
    tuples = {name: tuple(line[name]) for name in ("rounds", "spread", "losses")}
    tuples["norms"] = tuple(map(tuple, line["norms"]))
    return TrainingResult(**{**line, **tuples})


def training_markdown(path: Path) -> str:
    """A run's tables, one for each case, under what it was run on."""
    header, results = read_training(path)
    machine = header["machine"]
    about = ", ".join(
        each["library"] for name, each in header["contenders"].items() if name.startswith("ddp")
    )
    blocks = [
        f"{header['ranks']} ranks on {machine['cores']} cores of {machine['processor']}, "
        f"{header['threads']} thread each, {header['date'][:10]}. Milliseconds of a step: medians "
        f"of all steps; steps a second: the best of {header['rounds']} rounds in turns."
        + (f" Against {about}." if about else "")
    ]
    for case in dict.fromkeys(result.case for result in results if result.case):
        rows = [result for result in results if result.case == case]
        facts = rows[0].facts
        head = ["", *head_of(rows)]
        lines = [head, [":---", *["---:"] * (len(head) - 1)], *(row_of(r, rows[0]) for r in rows)]
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        low, high = rows[0].spread
        blocks.append(
            f"**{case}**, {facts['parameters']:,} parameters, {facts['precision']}; "
            f"{facts['buckets']}\n\n{table}\n\nOurs took {rows[0].steps} steps; of them a tenth "
            f"exposed below {1e3 * low:.3f} ms, a tenth above {1e3 * high:.3f} ms."
        )
    return "\n\n".join(blocks)
