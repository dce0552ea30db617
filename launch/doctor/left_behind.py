"""Ranks of ours whose launcher has gone, and with `--clean` their end."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from launch.doctor.findings import Finding, fine, problem, warning
from launch.orphans import Orphan, end_orphans, find_orphans


def check_orphans(clean: str | None) -> list[Finding]:
    """Lists them.

    Args:
        clean: which to end: "" all, a job's name those of that job, None no one.
    """
    with ExitStack() as stack:
        try:
            orphans = find_orphans(stack, clean or None)
        except (AttributeError, OSError) as error:
            advice = "Use Linux 5.3 or newer, or allow pidfd_open."
            found = f"cannot be told for certain without pidfds ({error})"
            return [warning("orphans", found, advice)]
        if not orphans:
            return [fine("orphans", "no process of ours without its launcher")]
        if clean is None:
            found = f"{_counted(orphans)} whose launcher has gone"
            advice = "Run `collectives doctor --clean` to end them."
            return [warning("orphans", found, advice, _lines(orphans))]
        left = end_orphans(orphans)
        if left:
            found = f"{_counted(left)} cannot be ended"
            advice = "Look at what they wait for in /proc/PID/stack, then reboot."
            return [problem("orphans", found, advice, _lines(left))]
        return [fine("orphans", f"{_counted(orphans)} ended", _lines(orphans))]


def _counted(orphans: Sequence[Orphan]) -> str:
    return f"{len(orphans)} process{'es' * (len(orphans) > 1)}"


def _lines(orphans: Sequence[Orphan]) -> list[str]:
    return [
        f"pid {each.pid}, job {each.job}, {_age_text(each.age)} old: {each.command}"
        for each in orphans
    ]


def _age_text(seconds: float) -> str:
    for unit, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} seconds"
