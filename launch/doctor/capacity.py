"""Cores and memory: what the machine has, what this process is allowed, what ranks would take."""

from __future__ import annotations

import os

from launch.doctor.asking import NoAnswer
from launch.doctor.findings import Finding, fine, problem, size_text, warning
from launch.doctor.installation import Runtime, value_of
from transports.allowances import available_memory, core_time, memory_left


def check_cores() -> list[Finding]:
    """Cores of the machine, of this process's affinity, and the time it may use of them."""
    ours, machine = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    found = f"{ours} of the machine's {machine}"
    allowed = core_time()
    if allowed is None:
        return [fine("cores", f"{found}, no quota")]
    found += f", a quota of {allowed:g}"
    if allowed < ours:
        advice = (
            f"Raise the quota, or start at most {max(1, int(allowed))} ranks: those that wait by "
            "spinning use it up, and then all are halted."
        )
        return [warning("cores", found, advice)]
    return [fine("cores", found)]


def check_memory(runtime: Runtime, ranks: int) -> list[Finding]:
    """Memory left here and in the container, and whether the ranks' channels fit."""
    import psutil

    swap = psutil.swap_memory()
    available, _ = available_memory(swap=False)
    found = f"{size_text(available)} available"
    left = memory_left()
    if left is not None:
        found += f" (a limit leaves {size_text(left[0])})"
    found += f", swap {size_text(swap.free)} free" if swap.total else ", no swap"
    try:
        needed = value_of(runtime(), "channels")
    except NoAnswer as error:
        advice = "Mend the setting or the installation that the text names."
        return [problem("memory", f"{found}; channels: {error}", advice)]
    found += f"; channels of {ranks} ranks take {size_text(needed)}"
    if needed > available:
        advice = "Start fewer ranks, or set COLLECTIVES_SLOTS or COLLECTIVES_LANE_BYTES lower."
        return [warning("memory", found, advice)]
    return [fine("memory", found)]
