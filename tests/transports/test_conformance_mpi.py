"""The conformance suite over MPI: each rank a host of its own, and hosts of several ranks."""

from __future__ import annotations

import pytest
from harness.conformance import record, sweep
from harness.namespaces import hosts as hosts_on_a_network
from harness.open_mpi import install_open_mpi
from harness.under_mpi import mpi_spawn

from collectives.conformance import Results, write_results

USUAL = {}
FEWEST = {"COLLECTIVES_SLOTS": "2", "COLLECTIVES_SLOT_BYTES": "1024", "COLLECTIVES_LANE_SLOTS": "2"}

SWEEPS = [
    # ranks, hosts ("": one each), kinds of arrays, counts
    (1, "", ("numpy",), (0, 11, 1009), USUAL),
    (2, "", ("numpy", "torch"), (0, 1, 10, 11, 1009, 70001), USUAL),
    (3, "", ("numpy",), (0, 11, 70001), USUAL),
    (3, "", ("numpy",), (0, 1, 11, 256, 257, 1009), FEWEST),
    (4, "", ("numpy",), (0, 1, 10, 11, 1009, 70001), USUAL),
    (3, "aab", ("numpy",), (0, 11, 70001), USUAL),
    (4, "aabb", ("numpy",), (0, 1, 11, 1009, 70001), USUAL),
    (4, "abab", ("numpy",), (0, 1, 11, 256, 257, 1009), FEWEST),
    (6, "aabbcc", ("numpy",), (0, 11, 70001), USUAL),
]
NETWORKS = [(2, 4), (3, 3)]
"""Hosts with a network of their own between them, and ranks there."""

QUICK = [(3, "", USUAL), (4, "abab", FEWEST)]


@pytest.fixture(scope="module")
def results(full):
    """Written down after all of the full sweeps, for `collectives algorithms --matrix`."""
    found, swept = Results(), []
    yield found, swept
    if full and len(swept) == len(SWEEPS):
        write_results(found)


@pytest.mark.parametrize(
    "size, hosts, kinds, counts, environment",
    [
        pytest.param(
            *each,
            id=f"{each[0]}-{each[1] or 'apart'}-{'usual' if each[4] is USUAL else 'fewest'}",
            marks=[] if (*each[:2], each[4]) in QUICK else [pytest.mark.full],
        )
        for each in SWEEPS
    ],
)
def test_every_algorithm(size, hosts, kinds, counts, environment, full, results):
    """Each algorithm, on every kind of array, through channels that MPI carries."""
    ranks = mpi_spawn(
        sweep, size, counts, kinds, full, False, hosts=hosts,
        transport="auto" if hosts else "mpi", environment=environment,
        timeout=600 if full else 100,
    )  # fmt: skip
    results[1].append(size)
    check(ranks, size, results[0])


@pytest.mark.full
@pytest.mark.parametrize("hosts, size", NETWORKS)
def test_every_algorithm_on_a_network(hosts, size, results):
    """Hosts by their namespaces, and MPI over TCP between them."""
    with hosts_on_a_network(hosts) as network:
        ranks = network.spawn(
            sweep, size, (0, 1, 11, 1009, 70001), ("numpy",), True, False, timeout=600
        )
    check(ranks, size, results[0])


def check(ranks, size, found):
    """What the ranks of a sweep have found is written down, and all is well."""
    failures = [problem for problems, _ in ranks for problem in problems]
    tallies = [tally for _, tally in ranks]
    record(found, "mpi", size, tallies)
    assert not failures, "\n".join(failures[:20])
    assert all(sum(passed for passed, _ in tally.values()) > 100 for tally in tallies)
    assert all(tally == tallies[0] for tally in tallies)


@pytest.fixture(scope="module")
def open_mpi(tmp_path_factory):
    return install_open_mpi(tmp_path_factory.mktemp("open_mpi"))


@pytest.mark.full
@pytest.mark.parametrize(
    "size, hosts", [(1, ""), (2, ""), (3, ""), (4, ""), (3, "aab"), (4, "aabb")]
)
def test_every_algorithm_over_open_mpi(open_mpi, size, hosts):
    """The same build, whose handles are other things there."""
    ranks = mpi_spawn(
        sweep, size, (0, 1, 11, 257, 1009, 70001), ("numpy",), False, False, mpi=open_mpi,
        hosts=hosts, transport="auto" if hosts else "mpi", timeout=600,
    )  # fmt: skip
    failures = [problem for problems, _ in ranks for problem in problems]
    assert not failures, "\n".join(failures[:20])
    assert all(sum(passed for passed, _ in tally.values()) > 100 for _, tally in ranks)
