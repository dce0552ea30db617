"""Measurements in a file: a JSON object a line, so that runs can be added to each other.

{"collective": "allreduce", "algorithm": "ring", "ranks": 2, "nbytes": 1024, "seconds": 1e-06,
 "spread": 0.3}
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path

from collectives.cost.measuring import Measurement


def write_measurements(measurements: Iterable[Measurement], path: Path) -> None:
    """Write them, one a line."""
    lines = (json.dumps(asdict(each)) + "\n" for each in measurements)
    path.write_text("".join(lines), encoding="utf-8")


def read_measurements(path: Path) -> list[Measurement]:
    """Read what `write_measurements` has written.

    Raises:
        ValueError: a line is something else; names file and line.
    """
    found = []
    names = {each.name for each in fields(Measurement)}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            entry = json.loads(line)
            if set(entry) != names:
                raise ValueError(f"expected {', '.join(sorted(names))}")
            found.append(Measurement(**entry))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: not a measurement: {error}") from None
    return found


def merged(*runs: Iterable[Measurement]) -> list[Measurement]:
    """Of the same call measured several times, the quickest."""
    best: dict[tuple[str, str, int, int], Measurement] = {}
    for run in runs:
        for each in run:
            key = (each.collective, each.algorithm, each.ranks, each.nbytes)
            if key not in best or each.seconds < best[key].seconds:
                best[key] = each
    return list(best.values())
