"""What an engine cannot know of the ranks it names in its texts: where in their programs they are.

The engine knows who waits for whom, and in which call; the Python stack of a rank says the rest.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from traceback import extract_stack
from types import FrameType

from transports.acting import is_alone
from transports.rendezvous.identity import machine_identity, pid_namespace
from transports.rendezvous.local import Introduction
from transports.stacks import Found, Readiness, ask
from transports.telling import OUR_FOLDERS, tell

_MOST_ASKED = 4  # ranks whose stacks are shown; each may take half a second
_INDENT = "    "

QUEUE = "collectives-queue"
"""How the names of the threads begin that run a communicator's asynchronous calls."""

_QUEUED = threading.local()  # .place: where the call was made that this thread runs


def callers_place() -> str:
    """Where the program has called us: "train.py:91", or "" if nothing but our code did."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(OUR_FOLDERS):
        frame = frame.f_back
    return "" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"


def runs_for(place: str) -> None:
    """From now on this thread of a queue runs a call that was made there."""
    _QUEUED.place = place


Sighting = tuple[int, str, str, bool]
"""rank, its name, what it does, and whether it waits for nobody itself."""


class Describe:
    """Asked by an engine, from whichever thread waits; nothing it does may end a wait."""

    def __init__(self, ranks: Sequence[Introduction]) -> None:
        """For the ranks of a communicator."""
        self._ranks = tuple(ranks)

    def wait(self, text: str, sightings: Sequence[Sighting], aloud: bool) -> str:
        """The text of a wait that has become long; if `aloud`, it is printed on stderr, too."""
        lines = [text]
        asked = 0
        for rank, name, doing, holds_up in sightings:
            lines.append(f"  {name} {doing}")
            if not holds_up:
                continue
            asked += 1
            if asked <= _MOST_ASKED:
                lines += self._stack_lines(rank)
        whole = "\n".join(lines)
        if aloud:
            tell(whole)
        return whole

    def place(self, rank: int) -> str:
        """Where in its program a rank that is in a call has made it: "train.py:91", or ""."""
        if self._is_here(rank):
            if (queued := getattr(_QUEUED, "place", None)) is not None:
                return str(queued)
            frames = tuple(
                f"{summary.filename}:{summary.lineno}" for summary in reversed(extract_stack())
            )
        else:
            frames = tuple(frame.rpartition(" in ")[0] for frame in self._ask(rank).frames)
        # What our own code has called, to ask others say, lies within ours.
        ours = [number for number, frame in enumerate(frames) if frame.startswith(OUR_FOLDERS)]
        users = frames[ours[-1] + 1 :] if ours else frames
        return users[0] if users else ""

    def alone(self) -> bool:
        """Whether nothing but the thread that waits could act, as far as can be known."""
        return is_alone(QUEUE)

    def _is_here(self, rank: int) -> bool:
        """Whether a rank is this very process; a number means something in its name space only."""
        who = self._ranks[rank]
        return who.pid == os.getpid() and _shares_numbers(who)

    def _ask(self, rank: int) -> Found:
        who = self._ranks[rank]
        if not _shares_numbers(who):
            return Found("runs in another container, or on another machine")
        try:
            ready = Readiness(who.stack_signal, who.stack_descriptor, who.stack_file)
            return ask(who.pid, ready)
        except Exception as error:
            return Found(f"cannot be asked: {error}")

    def _stack_lines(self, rank: int) -> list[str]:
        if self._is_here(rank):
            return [f"{_INDENT}it is a thread of this process"]
        found = self._ask(rank)
        if found.frames:
            return [f"{_INDENT}its Python stack, the innermost first:",
                    *(f"{_INDENT}  {frame}" for frame in found.frames)]  # fmt: skip
        return [f"{_INDENT}it {found.state}"]


def _shares_numbers(who: Introduction) -> bool:
    """Whether a process's number means here what it means there."""
    here = who.machine in ("", machine_identity())  # it may not have said
    return here and who.pid_namespace == pid_namespace()
