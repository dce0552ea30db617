"""Who takes part and under what conditions: said on the terminal first, kept with the results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from launch.bench.devices import counted
from launch.bench.groups import Group
from launch.bench.hardware import processor_name, run_facts


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What is the same for all contenders.

    Attributes:
        ranks: how many.
        rounds: turns of each in a case.
        round_seconds: how long a turn lasts, at least about.
        threads: of each rank.
        cores: of each rank; empty where none is bound.
        cache_bytes: of the last-level cache.
        devices: the names of those that arrays lie on; none: arrays lie in host memory.
    """

    ranks: int
    rounds: int
    round_seconds: float
    threads: int
    cores: Sequence[Sequence[int]]
    cache_bytes: int
    devices: Sequence[str] = ()


def introduce(console: Console, groups: Sequence[Group], conditions: Conditions) -> None:
    """Prints the conditions, and every contender with version and settings."""
    cores = [",".join(map(str, each)) for each in conditions.cores]
    bound = f"on cores {' | '.join(cores)}" if any(conditions.cores) else "not bound"
    cache = f"{conditions.cache_bytes >> 20} MiB last-level cache"
    threads = f"{conditions.threads} thread{'s' * (conditions.threads > 1)} each"
    least = f"each at least {conditions.round_seconds * 1e3:g} ms"
    for line in (
        f"{conditions.ranks} ranks {bound}, {threads}; {processor_name()}, {cache}",
        *_about_devices(conditions.devices),
        f"times in microseconds: the slowest rank's, best of {conditions.rounds} rounds, {least}",
        "spread: by how much the slowest round was slower than the best",
        "÷ ours: their time over ours, so above 1 ours is the quicker",
    ):
        console.print(Text(line), soft_wrap=True)
    width = max(len(group.contender.name) for group in groups)
    for group in groups:
        about = dict(group.description)
        first = about.pop("library", "")
        more = "".join(f"; {name} {text}" for name, text in about.items())
        line = f"{group.contender.name:<{width}}  {first}{more}"
        console.print(Text(line, style="dim"), soft_wrap=True)
        if group.bound != groups[0].bound:
            text = f"{group.contender.name} is bound otherwise than ours: {group.bound}"
            console.print(Text(text, style="red"), soft_wrap=True)


def header(
    groups: Sequence[Group], conditions: Conditions, absent: Sequence[str]
) -> dict[str, Any]:
    """The first line of a record."""
    return {
        "kind": "run",
        **run_facts(),
        "ranks": conditions.ranks,
        "rounds": conditions.rounds,
        "round_seconds": conditions.round_seconds,
        "threads": conditions.threads,
        "devices": list(conditions.devices),
        "contenders": {
            group.contender.name: {
                **group.description,
                "python": group.contender.python,
                "environment": dict(group.contender.settings),
                "cores": group.bound,
            }
            for group in groups
        },
        "absent": list(absent),
    }


def _about_devices(devices: Sequence[str]) -> list[str]:
    if not devices:
        return []
    return [f"arrays on devices, the ranks' in turn: {counted(devices)}"]
