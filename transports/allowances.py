"""What a container or a service allows this process of the machine: core time and memory.

Limits hold for a control group and all those within it, so that the groups around one's own count
too. Of both versions of control groups.
"""

from __future__ import annotations

from pathlib import Path

CONTROL_GROUPS = Path("/sys/fs/cgroup")
_NO_LIMIT = 1 << 62  # how version 1 says that there is none: the most that fits, in whole pages
MEMBERSHIP = Path("/proc/self/cgroup")


def group_folders(
    controller: str, root: Path = CONTROL_GROUPS, membership: Path = MEMBERSHIP
) -> list[Path]:
    """The folders of this process's control groups for `controller`, from its own outwards.

    Seen from inside of a container the path may not be mounted there, or begin outside of what is;
    the folders above it still count.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return [root]
    found: list[Path] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = root / controller if controllers else root  # version 1 has a folder for each
        own = base if ".." in path.split("/") else base / path.strip("/")
        around = [own, *own.parents]
        found += [folder for folder in around[: around.index(base) + 1] if folder.is_dir()]
    return found


def core_time(root: Path = CONTROL_GROUPS, membership: Path = MEMBERSHIP) -> float | None:
    """Seconds of core time a second that this process may use, if that is limited."""
    groups = group_folders("cpu", root, membership)
    found = [_core_time_of(group) for group in groups]
    if not any((group / "cpu.max").exists() for group in groups):
        # Containers have what is theirs of version 1 here, whatever path they are told.
        found += [_core_time_of_version_1(group) for group in (*groups, root / "cpu")]
    return min((each for each in found if each is not None), default=None)


def memory_left(
    root: Path = CONTROL_GROUPS, membership: Path = MEMBERSHIP, swap: int = 0
) -> tuple[int, Path] | None:
    """Bytes that the groups of this process may still take, and by whose limit, if there is one.

    Args:
        root: where control groups are mounted.
        membership: what the kernel says of this process.
        swap: bytes of it that the machine has left; they count as far as a group may use them.
    """
    found = []
    for group in group_folders("memory", root, membership):
        cache = _page_cache(group)
        if (left := _left(group, "memory.max", "memory.current")) is not None:
            swappable = _left(group, "memory.swap.max", "memory.swap.current")
            more = swap if swappable is None else min(swap, max(0, swappable))
            found.append((max(0, left + cache) + more, group / "memory.max"))
        # Version 1, whose second limit is one of both together.
        left = _left(group, "memory.limit_in_bytes", "memory.usage_in_bytes")
        if left is not None:
            both = _left(group, "memory.memsw.limit_in_bytes", "memory.memsw.usage_in_bytes")
            left = max(0, left + cache) + swap
            if both is not None:
                left = min(left, max(0, both + cache))
            found.append((left, group / "memory.limit_in_bytes"))
    return min(found, default=None)


def available_memory(
    root: Path = CONTROL_GROUPS, membership: Path = MEMBERSHIP, *, swap: bool = True
) -> tuple[int, str]:
    """Bytes that processes may still take, and who says so: the machine, or a control group.

    With `swap`, the machine's counts too, for a group as far as it may use it.
    """
    available = available_bytes(swap=swap)
    found = [(available, "the machine")]
    more = max(0, available - available_bytes(swap=False)) if swap else 0
    if (left := memory_left(root, membership, more)) is not None:
        found.append((left[0], str(left[1])))
    return min(found)


def available_bytes(*, swap: bool = True) -> int:
    """Memory that the machine can still give, with its swap or without."""
    fields = dict(
        line.split(":", 1)
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    )
    names = ("MemAvailable", "SwapFree") if swap else ("MemAvailable",)
    return sum(int(fields[name].split()[0]) * 1024 for name in names)


def number_in(path: Path) -> int | None:
    """The number in a file; None where there is none, or it is "max"."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _left(group: Path, most: str, used: str) -> int | None:
    """What a limit leaves, below zero if it was lowered; None where there is none."""
    allowed, taken = number_in(group / most), number_in(group / used)
    if allowed is None or taken is None or allowed >= _NO_LIMIT:
        return None
    return allowed - taken


def _core_time_of(group: Path) -> float | None:
    try:
        quota, period = (group / "cpu.max").read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # not there, or the quota is "max"
        return None


def _core_time_of_version_1(group: Path) -> float | None:
    quota, period = number_in(group / "cpu.cfs_quota_us"), number_in(group / "cpu.cfs_period_us")
    return quota / period if quota is not None and quota > 0 and period else None


def _page_cache(group: Path) -> int:
    """What a group's memory holds of files, which the kernel gives up when others need it."""
    try:
        words = [line.split() for line in (group / "memory.stat").read_text().splitlines()]
    except OSError:
        return 0
    facts = {name: int(count) for name, count in words}
    if "total_cache" in facts:  # version 1
        return facts["total_cache"] - facts.get("total_shmem", 0)
    return facts.get("file", 0) - facts.get("shmem", 0)
