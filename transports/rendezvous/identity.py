"""Which host this is: what decides that two ranks may share memory."""

from __future__ import annotations

import os
from pathlib import Path


def host_identity(override: str | None = None) -> str:
    """The kernel's boot id and the network namespace; equal on two ranks of one host.

    Args:
        override: used instead, so that one machine can play several hosts.
    """
    if override:
        return override
    return f"{machine_identity()}:{os.stat('/proc/self/ns/net').st_ino}"  # noqa: PTH116 - a magic link


def machine_identity() -> str:
    """The kernel's boot id: equal on all that share its cores."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def pid_namespace() -> int:
    """In which pid namespace this process has its number."""
    return os.stat("/proc/self/ns/pid").st_ino  # noqa: PTH116 - a magic link
