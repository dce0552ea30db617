"""What is expected of a case before it runs: which algorithm is chosen, how long it will take.

The two places where the benchmark touches selection and the cost model.
"""

from __future__ import annotations

from collectives.bench.cases import COLLECTIVES, Case


def chosen_algorithm(case: Case, size: int) -> str:
    """The algorithm that runs where the caller names none; empty where there is no choice."""
    if case.collective not in COLLECTIVES:
        return ""
    from collectives.selection import default_table

    return default_table().choose(case.collective, size=size, nbytes=case.nbytes)


def predicted_seconds(case: Case, size: int, algorithm: str) -> float | None:
    """How long the cost model, fitted on this machine, expects a call to take; None without one."""
    return None
