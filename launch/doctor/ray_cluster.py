"""Ray: which version, and whether a cluster runs here; none is started, joined or stopped."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path

from launch.doctor.findings import Finding, fine

PROC = Path("/proc")

_OF_A_NODE = ("raylet", "gcs_server")


def check_ray() -> list[Finding]:
    """Looks, without importing it."""
    try:
        version = metadata.version("ray")
    except metadata.PackageNotFoundError:
        return [fine("Ray", "not installed (needed only to start ranks through Ray)")]
    node = node_processes()
    running = f"a node runs here ({', '.join(node)})" if node else "no node runs here"
    address = os.environ.get("RAY_ADDRESS")
    named = f", RAY_ADDRESS={address}" if address else ""
    return [fine("Ray", f"{version}, {running}{named}")]


def node_processes() -> list[str]:
    """What of a node runs on this host, with numbers; whoever's it is."""
    found = []
    for folder in PROC.iterdir():
        if not folder.name.isdigit():
            continue
        try:
            name = (folder / "comm").read_text().strip()
        except OSError:  # it has ended
            continue
        if name in _OF_A_NODE:
            found.append(f"{name} {folder.name}")
    return sorted(found)
