"""The conformance suite over shared memory, with real processes."""

from __future__ import annotations

import pytest
from harness.conformance import record, sweep

import launch
from collectives.conformance import Results, write_results

USUAL = {}
FEWEST = {"COLLECTIVES_SLOTS": "2", "COLLECTIVES_SLOT_BYTES": "1024"}
"""Two slots are the least an engine has; 1 KiB holds an element of each chunk of any message."""

SWEEPS = [
    *((size, ("numpy",), (0, 1, 10, 11, 1009, 70001), USUAL) for size in (1, 4, 5)),
    (9, ("numpy",), (0, 11, 70001), USUAL),
    *((size, ("numpy", "torch"), (0, 1, 10, 11, 1009, 70001), USUAL) for size in (2, 3)),
    # Messages above the 40 bytes that travel inline, and of many segments.
    *((size, ("numpy",), (0, 1, 11, 256, 257, 1009), FEWEST) for size in (2, 3, 4, 5, 9)),
]

# Ranks, and whether with the usual slots; with the fewest more is tried.
QUICK = {(1, True), (3, True), (2, False), (4, False), (5, False)}


@pytest.fixture(scope="module")
def results(full):
    """Written down after all of the full sweeps, for `collectives algorithms --matrix`."""
    found, swept = Results(), []
    yield found, swept
    if full and len(swept) == len(SWEEPS):
        write_results(found)


@pytest.mark.parametrize(
    "size, kinds, counts, environment",
    [
        pytest.param(
            *each,
            id=f"{each[0]}-{'usual' if each[3] is USUAL else 'fewest'}",
            marks=[] if (each[0], each[3] is USUAL) in QUICK else [pytest.mark.full],
        )
        for each in SWEEPS
    ],
)
def test_every_algorithm(size, kinds, counts, environment, full, results):
    ranks = launch.spawn(
        sweep, size, counts, kinds, full, environment=environment, timeout=600 if full else 100
    )
    failures = [problem for problems, _ in ranks for problem in problems]
    tallies = [tally for _, tally in ranks]
    record(results[0], "shm", size, tallies)
    results[1].append(size)
    assert not failures, "\n".join(failures[:20])
    assert all(sum(passed for passed, _ in tally.values()) > 100 for tally in tallies)
    assert all(tally == tallies[0] for tally in tallies)
