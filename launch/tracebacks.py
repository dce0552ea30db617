"""Printed tracebacks, told in short: which say the same, and what in one line each of them says.

When a rank fails, all others soon print a traceback too. Most tell of the first failure
(`PeerLostError`, `AbortedError`, which even quotes the first traceback) or are the same error that
every rank of a call raises (`MismatchError`, `CollectiveTimeout`). One line says who printed them;
what else somebody prints is shown whole, once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from transports.telling import OUR_FOLDERS, listed

# A line that names an error of ours, by whatever path it was imported; the marks before it are
# those of an exception group.
_OURS = re.compile(
    rb"(?P<margin>[\s|+]*)(?:\w+\.)*"
    rb"(?P<error>(?P<name>PeerLostError|AbortedError|MismatchError|CollectiveTimeout)(?::.*|\s*))$"
)
_CONSEQUENCES = (b"PeerLostError", b"AbortedError")
_FRAME = re.compile(rb'[\s|+]*File "(.+)", line (\d+)')
_HEADER = re.compile(rb"[\s|+]*(?:Exception Group )?Traceback \(most recent call last\)")
_CHAIN = (
    b"During handling of the above exception, another exception occurred:",
    b"The above exception was the direct cause of the following exception:",
)


@dataclass(frozen=True)
class Told:
    """What a traceback says.

    Attributes:
        error: name and first line of the text.
        where: the user's line that it came from, `train.py:14`; empty if there is none.
        ours: whether it is one of the errors that every rank of a call raises.
        consequence: whether it tells of another rank's failure.
        quoted: the traceback of another rank in its text.
        rest: what was printed after it, an error that was raised in handling it included.
    """

    error: bytes
    where: str
    ours: bool = False
    consequence: bool = False
    quoted: tuple[bytes, ...] = ()
    rest: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Shortened:
    """Tracebacks of several ranks without their repetitions.

    Attributes:
        whole: rank, and lines of it to show as they are.
        lines: who has printed the others.
    """

    whole: list[tuple[int, Sequence[bytes]]]
    lines: list[str]


def told(traceback: Sequence[bytes]) -> Told:
    """Reads a traceback as it was printed, with whatever follows it."""
    for at, line in enumerate(traceback):
        if match := _OURS.match(line):
            error, name = match["error"].strip(), match["name"]
            if name == b"AbortedError":
                end = _end_of_quotation(traceback, at + 1)
            else:
                end = _end_of_text(traceback, at + 1, match["margin"])
            return Told(
                error=error.removesuffix(b":"),
                where=_user_line(traceback[:at]),
                ours=True,
                consequence=name in _CONSEQUENCES,
                quoted=tuple(traceback[at + 1 : end]) if name == b"AbortedError" else (),
                rest=_without_margins(traceback[end:]),
            )
    at = _last_error(traceback)
    return Told(error=traceback[at].strip(), where=_user_line(traceback[:at]))


def shorten(
    tracebacks: Mapping[int, Sequence[bytes]], first: Sequence[bytes], *, cause_known: bool
) -> Shortened:
    """What to show of the tracebacks of all ranks but the first failing one.

    Args:
        tracebacks: by rank, the earliest first.
        first: the first failing rank's, shown elsewhere; empty if it printed none.
        cause_known: whether there is a first failing rank.
    """
    whole: list[tuple[int, Sequence[bytes]]] = []
    speakers: dict[object, int | None] = {}  # who is shown whole, by what is said; None: the first
    groups: dict[tuple[str, bytes, str, tuple[bytes, ...]], list[int]] = {}
    if first:
        speakers[_identity(first, told(first))] = None
    for rank, lines in tracebacks.items():
        if not lines:
            continue
        says = told(lines)
        identity = _identity(lines, says)
        if identity in speakers:
            speaker = speakers[identity]
            how = "raised it too" if speaker is None else f"raised the same as rank {speaker}"
            says = replace(says, error=says.error.partition(b":")[0])  # its text is shown there
        elif says.consequence:
            how = "ended by it" if cause_known else "ended"
        else:
            speakers[identity] = rank
            whole.append((rank, lines))
            continue
        group = groups.setdefault((how, says.error, says.where, says.rest), [])
        if says.rest and not group:
            whole.append((rank, says.rest))
        group.append(rank)
    shown = [
        f"{listed(ranks)} {how}{where and f' at {where}'}: {error.decode(errors='replace')}"
        for (how, error, where, _), ranks in groups.items()
    ]
    return Shortened(whole, shown)


def _identity(traceback: Sequence[bytes], says: Told) -> object:
    """What makes two tracebacks the same: for an error of ours its text, else every byte."""
    return says.error if says.ours else tuple(traceback)


def _end_of_text(traceback: Sequence[bytes], begin: int, margin: bytes) -> int:
    """Where the text of another error of ours ends: its further lines are indented."""
    further = margin + b"  "
    after = (at for at in range(begin, len(traceback)) if not traceback[at].startswith(further))
    return next(after, len(traceback))


def _end_of_quotation(traceback: Sequence[bytes], begin: int) -> int:
    """Where the traceback ends that an `AbortedError` quotes: at a blank line, but in a chain."""
    for at in range(begin, len(traceback)):
        around = traceback[max(begin, at - 1) : at + 2]
        if not traceback[at].strip() and not any(line.strip() in _CHAIN for line in around):
            return at
    return len(traceback)


def _without_margins(lines: Sequence[bytes]) -> tuple[bytes, ...]:
    """Lines without the blank ones, and the rules of exception groups, at either end."""
    inked = [at for at, line in enumerate(lines) if line.strip(b" |+-")]
    return tuple(lines[inked[0] : inked[-1] + 1]) if inked else ()


def _last_error(traceback: Sequence[bytes]) -> int:
    """The line of the error itself: the first after the last frames."""
    headers = [at for at, line in enumerate(traceback) if _HEADER.match(line)]
    begin = headers[-1] + 1 if headers else 0
    after = (at for at in range(begin, len(traceback)) if traceback[at][:1] not in (b" ", b""))
    return next(after, len(traceback) - 1)


def _user_line(traceback: Sequence[bytes]) -> str:
    """File and line of the last frame that is not of ours, from here if it is below here."""
    for line in reversed(traceback):
        if _HEADER.match(line):
            break
        if not (match := _FRAME.match(line)):
            continue
        name = match[1].decode(errors="surrogateescape")
        # Our own are where such an error is raised, not where the user made the call.
        if not name.startswith(OUR_FOLDERS):
            path = Path(name)
            shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
            return f"{shown}:{match[2].decode()}"
    return ""
