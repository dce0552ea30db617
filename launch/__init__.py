"""Starts ranks, watches them and reports the first failure; the `collectives` command line.

`launch.spawn(function, nprocs, *args)` calls `function(comm, *args)` on local ranks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from launch.failures import RankFailedError
    from launch.spawning import spawn

__all__ = ["RankFailedError", "spawn"]


def __getattr__(name: str) -> Any:
    # Imported when first asked for: the command line needs neither.
    if name == "spawn":
        from launch.spawning import spawn

        return spawn
    if name == "RankFailedError":
        from launch.failures import RankFailedError

        return RankFailedError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
