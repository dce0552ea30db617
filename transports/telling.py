"""What this package says on stderr by itself, and which files are its own."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable
from pathlib import Path

OUR_FOLDERS = tuple(
    f"{Path(__file__).parents[1] / package}/" for package in ("transports", "collectives")
)
"""Where the frames of a stack lie that are not the user's."""


def tell(text: str) -> None:
    """Print lines under our name; a stderr that takes nothing is no reason to fail."""
    with contextlib.suppress(Exception):
        print(f"collectives: {text}", file=sys.stderr, flush=True)


def listed(ranks: Iterable[int]) -> str:
    """Ranks in words, `ranks 0, 2-7`."""
    spans: list[list[int]] = []
    for rank in sorted(ranks):
        if spans and rank == spans[-1][-1] + 1:
            spans[-1][1:] = [rank]
        else:
            spans.append([rank])
    one = len(spans) == 1 and len(spans[0]) == 1
    return ("rank " if one else "ranks ") + ", ".join("-".join(map(str, span)) for span in spans)
