"""Which hosts ranks are to run on, and how many on each: as written by a user, checked and shared.

A host is written as `a` or `a:4`, in a file also as `a slots=4`. Either every host says how many
ranks it takes, or none does and the ranks are shared out evenly, the first hosts taking what is
left over. Ranks are placed in blocks: the first host's come first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

_HOST = re.compile(r"(?P<name>[\w.@-]+)(?::(?P<slots>\d+))?")
_LINE = re.compile(r"(?P<name>[\w.@-]+)(?:(?::|\s+slots\s*=\s*)(?P<slots>\d+))?")


class Host(NamedTuple):
    """One of them; `slots` is 0 where it does not say how many ranks it takes."""

    name: str
    slots: int = 0


def parse_hosts(text: str) -> list[Host]:
    """The hosts of `a:4,b:4` or `a,b`.

    Raises:
        ValueError: one is malformed, takes no rank or is named twice.
    """
    found = []
    for word in text.split(","):
        match = _HOST.fullmatch(word.strip())
        if match is None:
            raise ValueError(f"--hosts: expected HOST or HOST:RANKS, as in a:4,b:4, found {word!r}")
        found.append(_host(match, "--hosts"))
    return _distinct(found, "--hosts")


def read_hostfile(path: Path) -> list[Host]:
    """The hosts of a file, a line each: `host`, `host:4` or `host slots=4`; # begins a comment.

    Raises:
        ValueError: the file cannot be read or names no host, or a line is malformed.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ValueError(f"--hostfile {path}: cannot be read: {why}") from None
    found = []
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        where = f"{path}:{number}"
        match = _LINE.fullmatch(text)
        if match is None:
            raise ValueError(f"{where}: expected HOST, HOST:RANKS or HOST slots=RANKS: {text!r}")
        found.append(_host(match, where))
    if not found:
        raise ValueError(f"--hostfile {path}: expected a host on a line, found none")
    return _distinct(found, str(path))


def share_ranks(hosts: Sequence[Host], ranks: int | None) -> list[Host]:
    """The hosts with how many of the ranks each takes.

    Args:
        hosts: as the user has named them.
        ranks: how many there are; None: as many as the hosts say that they take.

    Raises:
        ValueError: the numbers do not fit together.
    """
    silent = [host.name for host in hosts if not host.slots]
    if silent and len(silent) < len(hosts):
        raise ValueError(
            "either every host says how many ranks it takes or none does: "
            f"{', '.join(silent)} {'does' if len(silent) == 1 else 'do'} not, others do"
        )
    if silent:
        if ranks is None:
            raise ValueError("expected -n RANKS, or hosts that say how many, as in a:4,b:4")
        base, remainder = divmod(ranks, len(hosts))
        if base == 0:
            raise ValueError(
                f"expected a rank for each host, found {ranks} for {len(hosts)} hosts: "
                "name fewer hosts, or start more ranks"
            )
        return [Host(host.name, base + (at < remainder)) for at, host in enumerate(hosts)]
    total = sum(host.slots for host in hosts)
    if ranks is not None and ranks != total:
        told = " + ".join(str(host.slots) for host in hosts)
        raise ValueError(f"-n is {ranks}, but the hosts take {told} = {total}: expected the same")
    return list(hosts)


def first_of_nodes(nodes: str) -> str:
    """The first host of a list as Slurm writes it: `gpu[003-007,9],b` begins with gpu003."""
    match = re.match(r"([^\[,]+)(?:\[([^\],-]+)[^\]]*\]([^,]*))?", nodes)
    if match is None:
        raise ValueError(f"SLURM_JOB_NODELIST: expected hosts, as in node[1-4], found {nodes!r}")
    return "".join(part or "" for part in match.groups())


def _host(match: re.Match[str], where: str) -> Host:
    slots = match["slots"]
    if slots is not None and int(slots) == 0:
        raise ValueError(f"{where}: {match['name']} must take at least one rank, found {slots}")
    return Host(match["name"], int(slots or 0))


def _distinct(hosts: list[Host], where: str) -> list[Host]:
    names = [host.name for host in hosts]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{where}: {name} is named {names.count(name)} times, expected once")
    return hosts
