"""Algorithms side by side on a model machine, and where one overtakes another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from collectives.catalogue import CATALOGUE, names
from collectives.closed_form import Number, evaluate
from collectives.cost.links import Links
from collectives.cost.simulation import run_simulation
from collectives.schedule import Algorithm

SIZES = tuple(1 << power for power in range(3, 29))
"""Bytes over which algorithms are compared: 8 to 256 Mi."""

_MARGIN = Fraction(3, 2)


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
    notice: Callable[[Algorithm, int], None] = lambda algo, nbytes: None,
) -> list[Reign]:
    """Which algorithm is the quickest at which of `sizes` bytes, which ascend; runs joined.

    An algorithm that cannot be the quickest is not simulated. While messages take their turns in
    the same order, its time is the longest of several straight lines over the size, so that it lies
    above the line through the two sizes last simulated. Where the order changes it has been seen a
    seventh below that; hence the margin. `notice` is told what is simulated next.
    """
    found: list[Reign] = []
    known: dict[Algorithm, list[tuple[int, Number]]] = {algo: [] for algo in algorithms}
    for nbytes in sizes:
        least = {algo: _least_seconds(points, nbytes) for algo, points in known.items()}
        times: dict[Algorithm, Number] = {}
        for algo in sorted(algorithms, key=lambda each: least[each]):
            if not times or least[algo] <= _MARGIN * min(times.values()):
                notice(algo, nbytes)
                times[algo] = model_seconds(algo, size, nbytes, links, root)
                known[algo] = [*known[algo][-1:], (nbytes, times[algo])]
        seconds = min(times.values())
        best = next(algo for algo in algorithms if times.get(algo) == seconds)
        if found and found[-1].algorithm is best:
            before = found.pop()
            found.append(Reign(best, before.least, nbytes, before.seconds))
        else:
            found.append(Reign(best, nbytes, nbytes, seconds))
    return found


def _least_seconds(known: Sequence[tuple[int, Number]], nbytes: int) -> Number:
    """What more bytes take at least, going on straight from the sizes known."""
    if not known:
        return 0
    least, seconds = known[-1]
    if len(known) == 1:
        return seconds
    before, quicker = known[0]
    return seconds + (seconds - quicker) * Fraction(nbytes - least, least - before)
