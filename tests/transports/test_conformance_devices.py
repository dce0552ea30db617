"""The conformance suite over devices, emulated: real processes, streams that are late.

It shows that programs and their order are right. What a driver does it cannot show.
"""

from __future__ import annotations

import pytest
from harness.conformance import record, sweep
from harness.under_mpi import mpi_spawn

import launch
from collectives.conformance import Results

# Two devices that do not reach each other: some ranks go through memory of the host.
APART = "devices=3,apart=0-1,seed={seed}"
TOGETHER = "devices=1,seed={seed}"
EACH = "devices=8,seed={seed}"
SLOTS = {"COLLECTIVES_DEVICE_SLOTS": "2", "COLLECTIVES_DEVICE_SLOT_BYTES": "1024"}

PLAIN, TORCH = "emulated", "torch emulated"

SWEEPS = [
    pytest.param(1, TOGETHER, (0, 11, 300), PLAIN, marks=pytest.mark.full),
    pytest.param(2, TOGETHER, (0, 1, 11, 700), PLAIN, marks=pytest.mark.full),
    (2, EACH, (0, 300), TORCH),
    (3, APART, (0, 11, 300), PLAIN),
    pytest.param(3, EACH, (0, 1, 11, 300), PLAIN, marks=pytest.mark.full),
    pytest.param(4, APART, (0, 1, 11, 300), PLAIN, marks=pytest.mark.full),
    pytest.param(4, APART, (0, 1, 11, 300), TORCH, marks=pytest.mark.full),
    pytest.param(8, TOGETHER, (0, 11, 300), PLAIN, marks=pytest.mark.full),
]


@pytest.mark.parametrize("seed", [1, *(pytest.param(s, marks=pytest.mark.full) for s in (2, 3))])
@pytest.mark.parametrize("size, machine, counts, kind", SWEEPS)
def test_every_algorithm(size, machine, counts, kind, seed, full):
    """Ranks that share a device, have one each, and some that do not reach each other's."""
    environment = SLOTS | {"COLLECTIVES_EMULATED_DEVICES": machine.format(seed=seed)}
    ranks = launch.spawn(
        sweep,
        size,
        counts,
        (kind,),
        full,
        "apart" not in machine,
        environment=environment,
        timeout=600,
    )
    failures = [problem for problems, _ in ranks for problem in problems]
    record(Results(), "cuda_ipc", size, [tally for _, tally in ranks])
    assert not failures, "\n".join(failures[:20])
    assert all(sum(passed for passed, _ in tally.values()) > 100 for _, tally in ranks)


@pytest.mark.parametrize(
    "hosts, machine, kind, reaches",
    [
        pytest.param("aab", APART, PLAIN, "0", marks=pytest.mark.full),
        pytest.param("ab", TOGETHER, TORCH, "0", marks=pytest.mark.full),
        pytest.param("abab", APART, PLAIN, "1", marks=pytest.mark.full),
        pytest.param("aabb", EACH, PLAIN, "0", marks=pytest.mark.full),
        pytest.param("abcc", EACH, TORCH, "1", marks=pytest.mark.full),
    ],
)
def test_every_algorithm_over_hosts(hosts, machine, kind, reaches, full):
    """Between hosts MPI, that reaches memory of devices or does not."""
    environment = SLOTS | {
        "COLLECTIVES_EMULATED_DEVICES": machine.format(seed=1),
        "COLLECTIVES_MPI_REACHES_DEVICES": reaches,
    }
    counts = (0, 1, 11, 300) if full else (11, 300)
    ranks = mpi_spawn(
        sweep, len(hosts), counts, (kind,), full, False, hosts=hosts, environment=environment,
        timeout=600,
    )  # fmt: skip
    failures = [problem for problems, _ in ranks for problem in problems]
    assert not failures, "\n".join(failures[:20])
    assert all(sum(passed for passed, _ in tally.values()) > 100 for _, tally in ranks)
