"""A job whose ranks an mpiexec starts, on any hosts, watched as if they were processes of ours.

What we have is one process, the mpiexec. Its ranks tell by blocks (`launch.mpi_blocks`), through
its stderr, when they begin, what they write and how they end. What an mpiexec or a remote shell
itself says stands between the blocks and is passed on.

To stop is asked of ranks by the one signal that every mpiexec hands on (see `launch.mpi_rank`). To
be ended at once is asked of the mpiexec by SIGTERM: killed, it would leave its remote shells.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from launch.mpi_blocks import Block, BlockReader, Kind
from launch.output import LineCutter
from launch.processes import Ended, Job, Output, RankCommand, Stream
from transports.telling import listed

BEGINNING = 120.0  # seconds that all ranks have to begin: a host that is off answers nothing
CLEANING = 5.0  # seconds that an mpiexec gets to end by itself what it has started

_STREAMS = {Kind.OUT: Stream.OUT, Kind.ERR: Stream.ERR}


class MpiJob:
    """As `launch.processes.Job`, for ranks that are another program's children."""

    def __init__(
        self,
        job: str,
        mpiexec: RankCommand,
        ranks: int,
        say: Callable[[Sequence[bytes]], None],
        *,
        shown: str,
        hint: str = "",
        beginning: float = BEGINNING,
    ) -> None:
        """A job that has not started.

        Args:
            job: its name, 16 characters.
            mpiexec: how to start it.
            ranks: how many it starts.
            say: shows lines of the mpiexec.
            shown: its command line as messages have it.
            hint: what to do where ranks do not begin.
            beginning: seconds that they have to begin.
        """
        self.job = job
        self._inner = Job(job, [mpiexec])
        self._shown = shown
        self._hint = hint
        self._say = say
        self._reader = BlockReader(job)
        self._cutters = {stream: LineCutter() for stream in Stream}
        self._pids: dict[int, int] = {}
        self._left = set(range(ranks))  # that have not ended, as far as we know
        self._failed = False  # whether one of them has: it waits to be let go
        self._begin_by = time.monotonic() + beginning
        self._beginning = beginning
        self._kill_by: float | None = None
        self._code: int | None = None  # of the mpiexec
        self._asked_to_end = False
        self.failure = ""  # what is wrong with the mpiexec itself

    def __enter__(self) -> Self:
        self._inner.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def running(self) -> list[int]:
        """The ranks that have not ended."""
        return sorted(self._left)

    @property
    def exit_code(self) -> int:
        """The job's, where no rank has told of a failure: that of an mpiexec that failed itself."""
        if not self.failure:
            return 0
        code = self._code or 1
        return 128 - code if code < 0 else code

    def pid(self, rank: int) -> int:
        """The process number of `rank` on its host; 0 if it has not begun."""
        return self._pids.get(rank, 0)

    def watch_descriptor(self, descriptor: int) -> None:
        """Makes `events` return when `descriptor` is readable (who owns it, reads it)."""
        self._inner.watch_descriptor(descriptor)

    def events(self, timeout: float | None) -> list[Output | Ended]:
        """Waits until something happens, at most `timeout` seconds, and says what."""
        happened = self._told(self._inner.events(self._patience(timeout)))
        now = time.monotonic()
        if self._kill_by is not None and now >= self._kill_by:
            self._kill_by = None
            self._inner.send_signal(signal.SIGKILL)
        if self._late and now >= self._begin_by:
            missing = listed(set(self._left) - self._pids.keys())
            self._fail(f"{missing} did not begin within {self._beginning:g} s{self._hint}")
            self._end_mpiexec()
        return happened

    def send_signal(self, number: int) -> None:
        """Asks every rank that is running to stop; SIGKILL has the mpiexec end them.

        So has SIGTERM, once one has failed: the others have said by then what they miss.
        """
        if number == signal.SIGKILL or (number == signal.SIGTERM and self._failed):
            self._end_mpiexec()
        else:
            self._signal_mpiexec(signal.SIGUSR1)

    def sweep(self) -> list[Output | Ended]:
        """Lets the mpiexec end, now that its ranks have; returns the last that was written."""
        happened: list[Output | Ended] = []
        if self._failed:
            self._signal_mpiexec(signal.SIGUSR1)
        for patient in (True, False):
            if not patient:
                self._end_mpiexec()
            until = time.monotonic() + CLEANING
            while self._inner.running and (left := until - time.monotonic()) > 0:
                happened += self._told(self._inner.events(left))
        happened += self._told(self._inner.sweep())
        for cutter in self._cutters.values():
            self._say(cutter.finish())
        return happened

    def close(self) -> None:
        """Ends the mpiexec at once, if it runs, and frees everything."""
        self._inner.close()

    @property
    def _late(self) -> bool:
        return bool(self._left - self._pids.keys()) and not self._asked_to_end

    def _patience(self, timeout: float | None) -> float | None:
        times = [self._kill_by] if self._kill_by is not None else []
        times += [self._begin_by] if self._late else []
        if not times:
            return timeout
        own = max(0.0, min(times) - time.monotonic())
        return own if timeout is None else min(own, timeout)

    def _signal_mpiexec(self, number: int) -> None:
        # The mpiexec alone, not its group, in which there may be remote shells.
        if self._inner.running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._inner.pid(0), number)

    def _end_mpiexec(self) -> None:
        self._signal_mpiexec(signal.SIGTERM)
        if not self._asked_to_end:
            self._asked_to_end = True
            self._kill_by = time.monotonic() + CLEANING

    def _told(self, events: Sequence[Output | Ended]) -> list[Output | Ended]:
        happened: list[Output | Ended] = []
        for event in events:
            if isinstance(event, Ended):
                happened += self._mpiexec_ended(event.code)
            elif event.stream is Stream.ERR:
                for piece in self._reader.feed(event.data):
                    happened += self._read(piece)
            else:
                self._pass_on(Stream.OUT, event.data)
        return happened

    def _read(self, piece: Block | bytes) -> list[Output | Ended]:
        if isinstance(piece, bytes):
            self._pass_on(Stream.ERR, piece)
            return []
        rank = piece.rank
        if piece.kind is Kind.BEGUN:
            self._pids[rank] = int(piece.payload)
            return []
        if piece.kind is Kind.ENDED:
            self._left.discard(rank)
            code = int(piece.payload)
            self._failed = self._failed or code != 0
            return [Ended(rank, code)]
        return [Output(rank, _STREAMS[piece.kind], piece.payload)]

    def _pass_on(self, stream: Stream, text: bytes) -> None:
        self._say(self._cutters[stream].feed(text))

    def _mpiexec_ended(self, code: int) -> list[Output | Ended]:
        """Nothing more will be told: whoever has not ended by now was ended by the mpiexec."""
        self._code = code
        self._pass_on(Stream.ERR, self._reader.finish())
        if not self._asked_to_end and (self._left or code):
            absent = self._left - self._pids.keys()
            if absent:
                what = f" before {listed(absent)} had begun{self._hint}"
            else:
                what = f" before {listed(self._left)} had ended" if self._left else ""
            how = f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
            self._fail(f"mpiexec ended ({how}){what}")
        gone, self._left = sorted(self._left), set()
        # How is not known; what a rank has told itself, a traceback say, is shown all the same.
        return [Ended(rank, 0) for rank in gone]

    def _fail(self, why: str) -> None:
        self.failure = self.failure or f"{why}. The command: {self._shown}"
