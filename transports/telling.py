"""What this package says on stderr by itself, and which files are its own."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

OUR_FOLDERS = tuple(
    f"{Path(__file__).parents[1] / package}/" for package in ("transports", "collectives")
)
"""Where the frames of a stack lie that are not the user's."""


def tell(text: str) -> None:
    """Print lines under our name; a stderr that takes nothing is no reason to fail."""
    with contextlib.suppress(Exception):
        print(f"collectives: {text}", file=sys.stderr, flush=True)
