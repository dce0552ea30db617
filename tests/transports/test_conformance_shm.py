"""The conformance suite over shared memory, with real processes."""

from __future__ import annotations

import pytest
from harness.conformance import sweep

import launch

FEWEST = {"COLLECTIVES_SLOTS": "2", "COLLECTIVES_SLOT_BYTES": "1024"}
"""Two slots are the least an engine has; 1 KiB holds an element of each chunk of any message."""


def check(size: int, counts: tuple[int, ...], full: bool, environment: dict[str, str]) -> None:
    results = launch.spawn(
        sweep, size, counts, full, environment=environment, timeout=600 if full else 100
    )
    failures = [problem for problems, _ in results for problem in problems]
    assert not failures, "\n".join(failures[:20])
    for _, tally in results:
        assert sum(tally.values()) > 100  # a sweep that ran nothing proves nothing
        assert tally == results[0][1]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 9])
def test_every_algorithm_with_the_usual_slots(size, full):
    check(size, (0, 1, 10, 11, 1009, 70001), full, {})


@pytest.mark.parametrize("size", [2, 3, 4, 5, 9])
def test_every_algorithm_with_the_fewest_slots(size, full):
    # Messages above the 40 bytes that travel inline, and of many segments.
    check(size, (0, 1, 11, 256, 257, 1009), full, FEWEST)
