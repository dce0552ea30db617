"""Shows the lines of all ranks on the launcher's own stdout and stderr, each line whole and marked.

On a terminal the line that a rank has begun and not ended, a progress bar say, is shown below the
finished ones and redrawn in place. Elsewhere a progress bar would be thousands of lines: its state
is shown once a second, and its last always.
"""

from __future__ import annotations

import io
import os
import select
import shutil
import sys
import time
from collections.abc import Sequence
from typing import Protocol, TextIO

from launch.processes import Stream

COLOURS = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)  # of the ranks in turn; red is for failures
CLEAR_LINE = b"\r\x1b[K"
PROGRESS_EVERY = 1.0


class Sink(Protocol):
    """Where whole lines go."""

    terminal: bool
    error: OSError | None  # why nothing more can be written

    def write(self, data: bytes) -> None:
        """Writes all of `data`."""


class DescriptorSink:
    """A file descriptor; one that takes no more swallows what comes, and says why in `error`."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.error: OSError | None = None
        self.terminal = os.isatty(descriptor)

    def write(self, data: bytes) -> None:
        """Writes all of `data`, also to a descriptor that somebody has made non-blocking."""
        rest = memoryview(data)
        while rest and self.error is None:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:
                select.select([], [self._descriptor], [])
            except OSError as error:  # the reader has gone, the disk is full
                self.error = error


class TextSink:
    """A text stream of Python, such as a notebook's `sys.stdout`."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.error: OSError | None = None
        self.terminal = False

    def write(self, data: bytes) -> None:
        """Writes all of `data`."""
        self._stream.write(data.decode(errors="replace"))
        self._stream.flush()


class Console:
    """The launcher's two outputs, shared by all ranks."""

    def __init__(self, out: Sink, err: Sink, *, prefix: bool = True) -> None:
        self._sinks = {Stream.OUT: out, Stream.ERR: err}
        self._prefix = prefix
        self._colour = {
            stream: sink.terminal and not os.environ.get("NO_COLOR")
            for stream, sink in self._sinks.items()
        }
        self._status: tuple[int, Stream, bytes] | None = None
        self._progress: dict[tuple[int, Stream], tuple[float, bytes]] = {}

    @property
    def error(self) -> OSError | None:
        """Why one of the outputs takes nothing more; None if both do."""
        return next((sink.error for sink in self._sinks.values() if sink.error), None)

    def show_lines(self, rank: int, stream: Stream, lines: Sequence[bytes]) -> None:
        """Shows whole lines of one rank."""
        if self._status and self._status[:2] == (rank, stream):
            self._clear_status()  # these lines are what it was going to be
        _, state = self._progress.pop((rank, stream), (0.0, None))
        if state is not None and lines and lines[0] == state:
            lines = lines[1:]  # shown already, as a state
        if not lines:
            return
        mark = self._mark(rank, stream)
        self._write(stream, b"".join(b"%b%b\n" % (mark, line) for line in lines))

    def show_partial(self, rank: int, stream: Stream, text: bytes, overwriting: bool) -> None:
        """Shows the line that a rank has begun, as far as that makes sense."""
        if self._sinks[stream].terminal:
            if text:
                self._clear_status()
                self._draw_status(rank, stream, text)
        elif overwriting and text:
            shown_at, state = self._progress.get((rank, stream), (0.0, None))
            now = time.monotonic()
            if text != state and now - shown_at >= PROGRESS_EVERY:
                self._progress[rank, stream] = (now, text)
                self._write(stream, self._mark(rank, stream) + text + b"\n")

    def show_notice(self, text: str, *, failure: bool = False, cut: bool = False) -> None:
        """Shows a line of the launcher itself, on stderr; `cut` keeps it one line on a terminal."""
        if cut and self._sinks[Stream.ERR].terminal:
            room = shutil.get_terminal_size().columns
            text = text if len(text) <= room else text[: room - 1] + "…"
        line = text.encode(errors="replace")
        if failure and self._colour[Stream.ERR]:
            line = b"\x1b[1;31m%b\x1b[0m" % line
        self._write(Stream.ERR, line + b"\n")

    def show_text(self, lines: Sequence[bytes]) -> None:
        """Shows lines on stderr as they are, without a mark."""
        self._write(Stream.ERR, b"".join(line + b"\n" for line in lines))

    def _write(self, stream: Stream, data: bytes) -> None:
        status = self._status
        self._clear_status()
        self._sinks[stream].write(data)
        if status:
            self._draw_status(*status)

    def _clear_status(self) -> None:
        if self._status:
            self._sinks[self._status[1]].write(CLEAR_LINE)
            self._status = None

    def _draw_status(self, rank: int, stream: Stream, text: bytes) -> None:
        # Cut, since a line that wraps cannot be redrawn in place.
        room = max(1, shutil.get_terminal_size().columns - len(f"[{rank}] ") - 1)
        seen = text.decode(errors="replace")[:room].encode()
        self._sinks[stream].write(self._mark(rank, stream) + seen)
        self._status = (rank, stream, text)

    def _mark(self, rank: int, stream: Stream) -> bytes:
        if not self._prefix:
            return b""
        if self._colour[stream]:
            return b"\x1b[%dm[%d]\x1b[0m " % (COLOURS[rank % len(COLOURS)], rank)
        return b"[%d] " % rank


def own_streams() -> tuple[Sink, Sink]:
    """Our stdout and stderr: descriptors where there are such, Python's streams in a notebook."""
    return _sink(sys.stdout, 1), _sink(sys.stderr, 2)


def _sink(stream: TextIO | None, number: int) -> Sink:
    if stream is None:  # it was closed when Python started
        return DescriptorSink(number)
    try:
        descriptor = stream.fileno()
    except (AttributeError, OSError, io.UnsupportedOperation):
        return TextSink(stream)
    stream.flush()
    return DescriptorSink(descriptor)
