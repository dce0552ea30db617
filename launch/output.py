"""Cuts what a rank writes into whole lines; keeps a traceback until we know what it means."""

from __future__ import annotations

from dataclasses import dataclass, field

from launch.failures import is_consequence

# A line longer than this is passed on in pieces, so that output without line ends cannot fill
# memory.
LONGEST_LINE = 1 << 24

# How long a traceback is kept back. A rank that dies of it ends sooner; one that has only logged it
# goes on, and the log appears this much later.
TRACEBACK_KEPT = 3.0
# One that tells of another rank's failure is hardly a log; on a busy machine an interpreter with
# torch in it takes seconds to end.
CONSEQUENCE_KEPT = 10.0
LARGEST_KEPT = 1 << 20

LAST_LINES = 5

_TRACEBACK_BEGINS = (
    b'  File "',  # a syntax error in the script itself has no heading
    b"Fatal Python error: ",
    b"terminate called ",
    b"Exception in thread ",
)
_TRACEBACK_NAMES = b"Traceback (most recent call last)"


class LineCutter:
    """Bytes in, whole lines out; a carriage return begins the line anew, as on a terminal."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that `data` completes, without their ends."""
        if b"\n" not in data:
            self._rest = _overwrite(self._rest + data, keep=True)
            if len(self._rest) < LONGEST_LINE:
                return []
            return self.finish()
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = _overwrite(rest, keep=True)
        return [_overwrite(line) for line in lines]

    def finish(self) -> list[bytes]:
        """What is left without a line end."""
        rest, self._rest = _overwrite(self._rest), b""
        return [rest] if rest else []

    @property
    def partial(self) -> bytes:
        """What a terminal would show of the line that has not ended yet."""
        return _overwrite(self._rest)

    @property
    def overwriting(self) -> bool:
        """Whether the line that has not ended yet is a progress display: it has returned once."""
        return b"\r" in self._rest


def _overwrite(line: bytes, keep: bool = False) -> bytes:
    """What is seen of a line with carriage returns; `keep` leaves one to tell of them."""
    if b"\r" not in line:
        return line
    seen = next((part for part in reversed(line.split(b"\r")) if part), b"")
    if not keep:
        return seen
    return seen + b"\r" if line.endswith(b"\r") else b"\r" + seen


@dataclass
class TracebackKeeper:
    """A rank's lines on stderr, with the traceback that may be its last words kept back."""

    began: float = 0.0
    kept: list[bytes] = field(default_factory=list)
    last_lines: list[bytes] = field(default_factory=list)
    _size: int = 0
    _patience: float = TRACEBACK_KEPT

    def feed(self, lines: list[bytes], now: float) -> list[bytes]:
        """The lines to show at once."""
        self.last_lines = [*self.last_lines, *lines[-LAST_LINES:]][-LAST_LINES:]
        shown = self.release() if self.overdue(now) else []
        for position, line in enumerate(lines):
            if not self.kept and not _begins_traceback(line):
                shown.append(line)
                continue
            if not self.kept:
                self.began = now
                self._patience = TRACEBACK_KEPT
            if is_consequence([line]):
                self._patience = CONSEQUENCE_KEPT
            self.kept.append(line)
            self._size += len(line)
            if self._size > LARGEST_KEPT:
                return [*shown, *self.release(), *lines[position + 1 :]]
        return shown

    def overdue(self, now: float) -> bool:
        """Whether the rank has lived on with the traceback, which was only a log then."""
        return bool(self.kept) and now >= self.due

    @property
    def due(self) -> float:
        """When what is kept is to be released."""
        return self.began + self._patience

    def release(self) -> list[bytes]:
        """What was kept back, which is now no longer."""
        kept, self.kept, self._size = self.kept, [], 0
        return kept


def _begins_traceback(line: bytes) -> bool:
    return line.startswith(_TRACEBACK_BEGINS) or _TRACEBACK_NAMES in line
