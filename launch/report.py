"""What a job's ranks print and how they end, turned into what the user reads.

Lines appear as they come. A traceback is kept back (see `launch.output`) until the job has ended;
then those of the other failed ranks come first, without what only repeats or follows from another
(see `launch.tracebacks`), and the first failing rank's comes last, under a heading.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from launch.console import Console
from launch.failures import Failure, is_consequence
from launch.output import LineCutter, TracebackKeeper
from launch.processes import Ended, Output, Stream
from launch.tracebacks import shorten, told


class Report:
    """Takes the events of a job; a context manager because of its log files."""

    def __init__(
        self,
        console: Console,
        pid_of: Callable[[int], int],
        ranks: int,
        logs: Path | None = None,
        *,
        all_tracebacks: bool = False,
        restart: str = "",
    ) -> None:
        """Takes the place of an earlier report if `restart` has a line to divide the logs by."""
        self._console = console
        self._pid_of = pid_of
        self._cutters = {(rank, stream): LineCutter() for rank in range(ranks) for stream in Stream}
        self._keepers = [TracebackKeeper() for _ in range(ranks)]
        self._all_tracebacks = all_tracebacks
        self._quoted: Sequence[bytes] = ()  # the first failing rank's traceback, from another rank
        self._logs = logs
        self._restart = restart
        self._log_files: list[BinaryIO] = []
        self._stack = contextlib.ExitStack()
        self.failures: list[Failure] = []

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            if self._logs is not None:
                self._logs.mkdir(parents=True, exist_ok=True)
                for rank in range(len(self._keepers)):
                    path = self._logs / f"rank-{rank}.log"
                    file = path.open("a+b" if self._restart else "wb", buffering=0)
                    self._log_files.append(stack.enter_context(file))
                    if self._restart:
                        file.write(b"%b%b\n" % (_line_end(file), self._restart.encode()))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    @property
    def error(self) -> OSError | None:
        """Why our own output takes nothing more."""
        return self._console.error

    @property
    def due(self) -> float | None:
        """When `release_overdue` has something to do; None: not before the next event."""
        return min((keeper.due for keeper in self._keepers if keeper.kept), default=None)

    def take_output(self, output: Output, now: float) -> None:
        """Shows what a rank has written, as far as it is to be shown now."""
        rank, stream = output.rank, output.stream
        if self._log_files:
            self._log_files[rank].write(output.data)
        cutter = self._cutters[rank, stream]
        lines = cutter.feed(output.data) if output.data else cutter.finish()
        if stream is Stream.ERR:
            lines = self._keepers[rank].feed(lines, now)
        self._console.show_lines(rank, stream, lines)
        self._console.show_partial(rank, stream, cutter.partial, cutter.overwriting)

    def take_end(self, end: Ended, now: float, by_us: bool) -> Failure | None:
        """Notes how a rank ended.

        Args:
            end: which rank, and how.
            now: the time.
            by_us: whether the launcher had begun to end the ranks, which alone is then no failure;
            but
                a rank that was on its way out with a traceback has failed nevertheless.
        """
        rank = end.rank
        for stream in Stream:
            lines = self._cutters[rank, stream].finish()
            if stream is Stream.ERR:
                lines = self._keepers[rank].feed(lines, now)
            self._console.show_lines(rank, stream, lines)
        keeper = self._keepers[rank]
        if end.code == 0:
            self._console.show_lines(rank, Stream.ERR, keeper.release())
            return None
        if by_us and not keeper.kept:
            return None
        failure = Failure(
            rank=rank,
            pid=self._pid_of(rank),
            # Python's own code after a traceback, had we let it come to that.
            code=1 if by_us and end.code < 0 else end.code,
            time=keeper.began if keeper.kept else now,
            consequence=is_consequence(keeper.kept),
            traceback=tuple(keeper.kept),
        )
        self.failures.append(failure)
        return failure

    def release_overdue(self, now: float) -> None:
        """Shows tracebacks of ranks that have lived on with them."""
        for rank, keeper in enumerate(self._keepers):
            if keeper.overdue(now):
                self._console.show_lines(rank, Stream.ERR, keeper.release())

    def show_kept(self, first: Failure | None) -> None:
        """Shows what is kept back, but for the first failing rank's."""
        order = sorted(range(len(self._keepers)), key=lambda rank: self._keepers[rank].began)
        kept = {rank: self._keepers[rank].release() for rank in order}
        if first is not None:
            del kept[first.rank]
            self._quoted = _quoted(first, kept.values())
        if self._all_tracebacks:
            for rank, lines in kept.items():
                self._console.show_lines(rank, Stream.ERR, lines)
            return
        traceback = first.traceback if first else ()
        shortened = shorten(kept, traceback, cause_known=first is not None)
        for rank, whole in shortened.whole:
            self._console.show_lines(rank, Stream.ERR, whole)
        for line in shortened.lines:
            self._console.show_notice(line, cut=True)

    def show_first(self, first: Failure) -> None:
        """Shows the first failing rank's traceback, or the last it said, under a heading."""
        last: Sequence[bytes] = first.traceback
        heading = first.describe()
        if not last:
            last = self._keepers[first.rank].last_lines
            heading += "; the last it wrote to stderr" if last else ""
        if not last and not self._all_tracebacks:
            last = self._quoted
            heading += "; it had told the others" if last else ""
        self._console.show_notice(heading + (":" if last else ""), failure=True)
        self._console.show_text(last)

    def notice(self, text: str) -> None:
        """Shows a line of the launcher itself."""
        self._console.show_notice(text)


def _line_end(log: BinaryIO) -> bytes:
    """What ends the last line of a log, if a rank has begun it and was killed."""
    if log.tell() == 0:
        return b""
    log.seek(-1, os.SEEK_END)
    return b"" if log.read(1) == b"\n" else b"\n"


def _quoted(first: Failure, tracebacks: Iterable[Sequence[bytes]]) -> Sequence[bytes]:
    """What the first failing rank raised as others quote it: `sys.exit` prints no traceback."""
    quoting = b"AbortedError: rank %d raised" % first.rank
    says = (told(lines) for lines in tracebacks if lines)
    return next((each.quoted for each in says if each.error.startswith(quoting)), ())
