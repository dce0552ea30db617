"""Dissemination: news spreads to everyone at doubling distances, without a middle."""

from __future__ import annotations

from collectives.algorithms.neighbours import doubling_distances
from collectives.schedule import Steps, algorithm, recv, send


@algorithm(
    "barrier",
    name="dissemination",
    widest=lambda size: 1,
    cost="lg(n) alpha",
    messages="lg(n)",
    volume="0",
    source="Hensgen, Finkel & Manber 1988",
)
def dissemination_barrier(rank: int, size: int) -> Steps:
    """Tell the rank `distance` to the right, hear from the one to the left: ceil(log2 n) steps.

    After distance d a rank has heard from the 2d-1 ranks to its left, so in the end from all.
    """
    for distance in doubling_distances(size):
        yield send((rank + distance) % size, chunk=0)
        yield recv((rank - distance) % size, chunk=0)
