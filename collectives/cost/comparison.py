"""Algorithms side by side on a model machine, and where one overtakes another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from collectives.catalogue import CATALOGUE, names
from collectives.closed_form import Number, evaluate
from collectives.cost.links import Links
from collectives.cost.simulation import run_simulation
from collectives.schedule import Algorithm

SIZES = tuple(1 << power for power in range(3, 29))
"""Bytes over which algorithms are compared: 8 to 256 Mi."""


def able_algorithms(collective: str, size: int, *, one_sided: bool = False) -> list[Algorithm]:
    """All algorithms that can do a collective at `size` ranks, each once.

    Args:
        collective: which.
        size: number of ranks.
        one_sided: also those that need symmetric memory.
    """
    found = dict.fromkeys(CATALOGUE[collective, name] for name in names(collective))
    return [algo for algo in found if algo.allows(size) and (one_sided or not algo.one_sided)]


def model_seconds(
    algo: Algorithm, size: int, nbytes: Number, links: Links, root: int = 0
) -> Number:
    """Seconds on the model machine: by the closed form where all links are alike, else simulated.

    The two agree (a test); the form is quicker.
    """
    if links.uniform and algo.cost:
        rates = links.inside
        s = 0 if algo.spec.chunking == "empty" else nbytes
        return evaluate(
            algo.cost, n=size, s=s, alpha=rates.alpha, beta=rates.beta, gamma=rates.gamma
        )
    return run_simulation(algo, size, nbytes, links, root).seconds


@dataclass(frozen=True)
class Reign:
    """Where one algorithm is the quickest.

    Attributes:
        algorithm: which.
        least: the fewest bytes, of those tried.
        most: the most.
        seconds: what it takes at the fewest.
    """

    algorithm: Algorithm
    least: int
    most: int
    seconds: Number


def reigns(
    algorithms: Sequence[Algorithm],
    size: int,
    links: Links,
    root: int = 0,
    sizes: Sequence[int] = SIZES,
) -> list[Reign]:
    """Which algorithm is the quickest at which of `sizes` bytes, runs of the same joined."""
    found: list[Reign] = []
    for nbytes in sizes:
        times = [model_seconds(algo, size, nbytes, links, root) for algo in algorithms]
        seconds = min(times)
        best = algorithms[times.index(seconds)]
        if found and found[-1].algorithm is best:
            before = found.pop()
            found.append(Reign(best, before.least, nbytes, before.seconds))
        else:
            found.append(Reign(best, nbytes, nbytes, seconds))
    return found
