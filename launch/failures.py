"""Which rank failed first: the one whose failure is the cause, not a consequence of another's.

When one rank fails, the others soon fail too, since they wait for it: their `PeerLostError` or
`AbortedError` says no more than that. They may even end earlier than the culprit, which is still
taking its interpreter down. So the first failure is the earliest that is not such a consequence, by
the time its traceback began rather than by the time its process ended.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# A line of a traceback that names one of the two errors, by whatever path it was imported; the
# marks before it are those of an exception group.
_CONSEQUENCE = re.compile(rb"[\s|+]*(\w+\.)*(PeerLostError|AbortedError)\b")

OUT_OF_MEMORY_HINT = "; the kernel does this when memory runs out"


class RankFailedError(RuntimeError):
    """A rank of `spawn` ended without a result: killed by a signal, or it left by `sys.exit`.

    Attributes:
        rank: which one.
        code: its exit code, or minus the signal that ended it.
    """

    def __init__(self, text: str, rank: int, code: int) -> None:
        super().__init__(text)
        self.rank = rank
        self.code = code

    def __reduce__(self) -> tuple[type[RankFailedError], tuple[str, int, int]]:
        return type(self), (str(self), self.rank, self.code)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """How one rank failed."""

    rank: int
    pid: int
    code: int  # exit code, or minus the signal
    time: float  # when its traceback began, or else when it ended (monotonic)
    consequence: bool = False
    traceback: Sequence[bytes] = ()

    @property
    def exit_code(self) -> int:
        """As shells have it: 128 + signal for a process that a signal ended."""
        return 128 - self.code if self.code < 0 else self.code

    def describe(self) -> str:
        """One line without its end: who, and how it ended."""
        return f"rank {self.rank} (pid {self.pid}) failed first, {ending(self.code)}"

    def brief(self) -> str:
        """The same, whoever else has failed before."""
        return f"rank {self.rank} (pid {self.pid}) failed, {ending(self.code)}"


def ending(code: int) -> str:
    """How a process ended, in words, from its exit code or minus its signal."""
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:  # real-time signals have no names
        name = f"signal {-code}"
    hint = OUT_OF_MEMORY_HINT if -code == signal.SIGKILL else ""
    return f"killed by {name}{hint}"


def first_failure(failures: Iterable[Failure]) -> Failure | None:
    """The failure to report: the earliest cause; if there is none, the earliest consequence."""
    return min(failures, key=lambda failure: (failure.consequence, failure.time), default=None)


def is_consequence(traceback: Iterable[bytes]) -> bool:
    """Whether a printed traceback tells of another rank's failure."""
    return any(_CONSEQUENCE.match(line) for line in traceback)
