"""Which cores each rank gets, and how many threads: the launcher's own cores, shared out.

Ranks that share a core's two hardware threads slow each other down, so cores are ordered by where
they are on the chip and cut into one run per rank, never inside a physical core while there are
enough of them. With more ranks than cores nothing is bound: ranks wait for one another at every
collective, and the scheduler evens out the unequal shares that a fixed assignment would keep.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from transports.allowances import CONTROL_GROUPS, core_time

Place = tuple[int, int]  # (package, physical core)

TOPOLOGY = Path("/sys/devices/system/cpu")
SHOWN_RANKS = 8


def own_cores() -> list[int]:
    """The cores this process may use, neighbours on the chip side by side."""
    cores = os.sched_getaffinity(0)
    return sorted(cores, key=lambda core: (*core_place(core), core))


def core_place(core: int, topology: Path = TOPOLOGY) -> Place:
    """Package and physical core of `core`; a core of its own where the system does not say."""
    folder = topology / f"cpu{core}" / "topology"
    try:
        package = int((folder / "physical_package_id").read_text())
        return package, int((folder / "core_id").read_text())
    except (OSError, ValueError):
        return 0, core


def share_cores(cores: Sequence[int], places: Sequence[Place], ranks: int) -> list[list[int]]:
    """The cores of each rank; no cores mean that the rank is not bound.

    Args:
        cores: those to share out, neighbours side by side.
        places: where each of them is.
        ranks: how many share them.
    """
    if ranks > len(cores):
        return [[] for _ in range(ranks)]
    paired = sorted(zip(places, cores, strict=True))
    whole = [[core for _, core in group] for _, group in groupby(paired, key=lambda pair: pair[0])]
    units = whole if len(whole) >= ranks else [[core] for _, core in paired]
    base, remainder = divmod(len(units), ranks)
    shares = []
    start = 0
    for rank in range(ranks):
        end = start + base + (rank < remainder)
        shares.append([core for unit in units[start:end] for core in unit])
        start = end
    return shares


def rank_cores(ranks: int, bind: bool) -> list[list[int]]:
    """The cores of each rank out of those of this process; empty lists where none is bound."""
    cores = own_cores()
    if not bind:
        return [[] for _ in range(ranks)]
    return share_cores(cores, [core_place(core) for core in cores], ranks)


def rank_threads(ranks: int, environment: Mapping[str, str]) -> int | None:
    """OMP_NUM_THREADS that keeps the ranks from crowding the cores; None if the user has set it."""
    if environment.get("OMP_NUM_THREADS"):
        return None
    cores = len(os.sched_getaffinity(0))
    return max(1, min(cores, core_quota() or cores) // ranks)


def core_quota(folder: Path = CONTROL_GROUPS) -> int | None:
    """How many cores' worth of time a container may use, which its list of cores does not tell."""
    allowed = core_time(folder)
    return None if allowed is None else max(1, round(allowed))


def binding_line(shares: Sequence[Sequence[int]], threads: str, bind: bool) -> str:
    """One line that says what was done with cores and threads."""
    ranks = len(shares)
    cores = len(os.sched_getaffinity(0))
    what = f"{_counted(ranks, 'rank')} on {_counted(cores, 'core')}, OMP_NUM_THREADS={threads}"
    if not bind:
        return f"{what}; not bound (--no-bind)"
    if not any(shares):
        return f"{what}; not bound (more ranks than cores)"
    shown = [f"{rank}: {_ranges(share)}" for rank, share in enumerate(shares[:SHOWN_RANKS])]
    more = ", …" if ranks > SHOWN_RANKS else ""
    return f"{what}; cores of rank {', '.join(shown)}{more} (--no-bind: leave free)"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _ranges(cores: Iterable[int]) -> str:
    """Cores as `0-3,8`."""
    runs: list[list[int]] = []
    for core in sorted(cores):
        if runs and core == runs[-1][-1] + 1:
            runs[-1].append(core)
        else:
            runs.append([core])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
