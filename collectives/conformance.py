"""What the conformance suite found last: which algorithm passed over which transport.

The suite writes it, `collectives algorithms --matrix` shows it. The file is JSON:

    {"date": "2025-01-31T12:00:00+00:00",
     "native": {"allreduce": {"ring": {"passed": 120, "failed": 0, "sizes": [1, 2, 3]}}}}
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).with_name("conformance.json")
"""Where the results lie unless another file is named."""


class Cell(NamedTuple):
    """What was tried."""

    transport: str
    collective: str
    algorithm: str


@dataclass(frozen=True)
class Outcome:
    """How it went: cases passed and failed, and the sizes they were run at."""

    passed: int = 0
    failed: int = 0
    sizes: frozenset[int] = frozenset()


@dataclass
class Results:
    """Outcomes by cell, and when the last of them was written."""

    outcomes: dict[Cell, Outcome] = field(default_factory=dict)
    date: str = ""

    def record(self, cell: Cell, size: int, *, passed: int = 0, failed: int = 0) -> None:
        """Count cases of one cell at one size."""
        before = self.outcomes.get(cell, Outcome())
        self.outcomes[cell] = Outcome(
            before.passed + passed, before.failed + failed, before.sizes | {size}
        )

    def transports(self) -> tuple[str, ...]:
        """All transports anything was run over."""
        return tuple(sorted({cell.transport for cell in self.outcomes}))


def read_results(path: Path = RESULTS) -> Results:
    """The results in a file; none where there is no file.

    Raises:
        ValueError: the file is something else; names it and what is off.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Results()
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: expected conformance results as JSON, found {error}") from None
    results = Results()
    try:
        for transport, collectives in document.items():
            if transport == "date":
                results.date = str(collectives)
                continue
            for collective, algorithms in collectives.items():
                for name, entry in algorithms.items():
                    results.outcomes[Cell(transport, collective, name)] = _outcome(entry)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: these are no conformance results: {error!r}") from None
    return results


def _outcome(entry: Any) -> Outcome:
    return Outcome(int(entry["passed"]), int(entry["failed"]), frozenset(entry["sizes"]))


def merged_results(runs: Iterable[Results]) -> Results:
    """All cells of several runs, oldest first; a cell run again counts as it went last."""
    whole = Results()
    for run in runs:
        whole.outcomes.update(run.outcomes)
        whole.date = max(whole.date, run.date)
    return whole


def write_results(run: Results, path: Path = RESULTS) -> None:
    """Add a run to what the file holds, dated now; the file is replaced in one go."""
    whole = merged_results([read_results(path), run])
    document: dict[str, Any] = {"date": datetime.now(UTC).isoformat(timespec="seconds")}
    for cell, outcome in sorted(whole.outcomes.items()):
        entry = {"passed": outcome.passed, "failed": outcome.failed}
        algorithms = document.setdefault(cell.transport, {}).setdefault(cell.collective, {})
        algorithms[cell.algorithm] = {**entry, "sizes": sorted(outcome.sizes)}
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    fresh.replace(path)
