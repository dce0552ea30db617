"""Two ranks, started as any job's: whether they meet, compute the right thing, and how fast."""

from __future__ import annotations

from launch.doctor.asking import NoAnswer, ask
from launch.doctor.findings import Finding, fine, problem

SECONDS = 20.0

_FOR_ENDING = 2.0  # more than the ranks have, so that it is said which of them had not ended


def check_ranks() -> list[Finding]:
    """Runs them."""
    try:
        ranks_seconds = str(max(0.1, SECONDS - _FOR_ENDING))
        found = ask("launch.doctor.self_test_probe", ranks_seconds, seconds=SECONDS)
    except NoAnswer as error:
        advice = "Mend what is said above first; if nothing is, report this text."
        return [problem("self-test", f"two ranks: {error}", advice)]
    each = f"{found['seconds'] * 1e6:.3g} µs"
    text = f"two ranks: allreduce and broadcast right; an allreduce of 8 bytes takes {each}"
    return [fine("self-test", text)]
