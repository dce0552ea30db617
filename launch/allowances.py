"""What a container or a service allows this process of the machine: core time and memory.

Limits hold for a control group and all those within it, so that the groups around one's own count
too. Of version 2; of version 1 only core time, at the root, where containers have it.
"""

from __future__ import annotations

from pathlib import Path

CONTROL_GROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def own_groups(root: Path = CONTROL_GROUPS, membership: Path = MEMBERSHIP) -> list[Path]:
    """The folders of this process's group and of those around it, the root last."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        lines = []
    inside = next((line[3:].strip("/") for line in lines if line.startswith("0::")), "")
    # Seen from inside of a container, the path may begin outside of what is mounted here.
    folder = root / inside if ".." not in inside.split("/") else root
    return [folder, *(around for around in folder.parents if around.is_relative_to(root))]


def core_time(root: Path = CONTROL_GROUPS, membership: Path = MEMBERSHIP) -> float | None:
    """Seconds of core time a second that this process may use, if that is limited."""
    groups = own_groups(root, membership)
    found = [_core_time_of(group) for group in groups]
    if not any((group / "cpu.max").exists() for group in groups):
        found = [_core_time_of_version_1(root / "cpu")]
    return min((each for each in found if each is not None), default=None)


def memory_left(root: Path = CONTROL_GROUPS, membership: Path = MEMBERSHIP) -> int | None:
    """Bytes that the groups of this process may still take, if that is limited."""
    found = []
    for group in own_groups(root, membership):
        try:
            most = (group / "memory.max").read_text().strip()
            if most.isdigit():
                found.append(int(most) - int((group / "memory.current").read_text()))
        except (OSError, ValueError):  # no control groups of version 2 here
            continue
    return max(0, min(found)) if found else None


def available_memory(root: Path = CONTROL_GROUPS, membership: Path = MEMBERSHIP) -> int:
    """Bytes that processes may still take: the machine's, or less where a container says so."""
    import psutil  # by those alone who ask for it: `collectives run` does not

    available = int(psutil.virtual_memory().available)
    left = memory_left(root, membership)
    return available if left is None else min(available, left)


def _core_time_of(group: Path) -> float | None:
    try:
        quota, period = (group / "cpu.max").read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # not there, or the quota is "max"
        return None


def _core_time_of_version_1(group: Path) -> float | None:
    try:
        quota = int((group / "cpu.cfs_quota_us").read_text())
        return quota / int((group / "cpu.cfs_period_us").read_text()) if quota > 0 else None
    except (OSError, ValueError):
        return None
