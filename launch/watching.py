"""Watches a job until every rank has ended, and ends it when one fails or somebody asks.

Ending is a plan of signals in time. After a failure the other ranks get a short grace in which they
say themselves what they miss, unless they are to go on without it; Ctrl-C and SIGTERM are handed on
first, then enforced.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Protocol

from launch.processes import Ended, Output
from launch.report import Report
from transports.readable import becomes_readable
from transports.telling import listed

GRACE = 1.5  # seconds after the first failure until the others are asked to end
ASKED = 2.0  # seconds from that until they are killed
STOPPING = 5.0  # seconds that ranks get to end by themselves when the user stops a job

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Watched(Protocol):
    """A job, whoever has started its ranks: see `launch.processes.Job`."""

    @property
    def running(self) -> list[int]:
        """The ranks that have not ended."""

    def watch_descriptor(self, descriptor: int) -> None:
        """Makes `events` return when `descriptor` is readable."""

    def events(self, timeout: float | None) -> list[Output | Ended]:
        """Waits until something happens, at most `timeout` seconds, and says what."""

    def send_signal(self, number: int) -> None:
        """Sends a signal to every rank that is running."""

    def sweep(self) -> list[Output | Ended]:
        """Ends what ended ranks have left behind; returns the last that was written."""


class JobTimeout(Exception):
    """The ranks did not end in time; `running` are those that had not."""

    def __init__(self, running: list[int]) -> None:
        super().__init__(running)
        self.running = running


class StopRequest:
    """What signals ask of the launcher, noted by handlers and read by the watching loop."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.count = 0
        self.wakeup, self._write_end = socket.socketpair()
        for end in (self.wakeup, self._write_end):
            end.setblocking(False)

    @contextlib.contextmanager
    def listening(self, kill: Callable[[], None]) -> Iterator[StopRequest]:
        """Takes the stop signals while it lasts.

        Args:
            kill: called in the handler of the second signal, since the loop may be stuck in writing
            to
                a terminal that somebody has halted.
        """

        def note(number: int, frame: FrameType | None) -> None:
            self.count += 1
            self.signal = self.signal or number
            if self.count > 1:
                kill()

        previous_wakeup = signal.set_wakeup_fd(self._write_end.fileno(), warn_on_full_buffer=False)
        # A hang-up that is ignored (nohup) stays so. SIGINT is taken even where a shell has made a
        # background job ignore it: whoever sends it means it.
        wanted = [
            number
            for number in STOP_SIGNALS
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
        ]
        previous = {number: signal.signal(number, note) for number in wanted}
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(previous_wakeup)
            self.wakeup.close()
            self._write_end.close()

    def comes_within(self, seconds: float) -> bool:
        """Waits so long, or until somebody asks; whether somebody has, then or before."""
        if self.signal is None:
            self.drain()  # rings of other signals
            becomes_readable(self.wakeup.fileno(), seconds)
        return self.signal is not None

    def drain(self) -> None:
        """Empties the wake-up pipe."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self.wakeup.fileno(), 4096):
                pass


class Watch:
    """One job's way from its start to the end of its last rank."""

    def __init__(
        self,
        job: Watched,
        report: Report,
        stop: StopRequest | None = None,
        deadline: float | None = None,
        *,
        keep_going: bool = False,
        stopping: float = STOPPING,
    ) -> None:
        """With `keep_going`, the failure of a rank leaves the others running.

        `stopping`: seconds that ranks get to end by themselves when the user stops the job.
        """
        self._job = job
        self._report = report
        self._stop = stop
        self._deadline = deadline
        self._keep_going = keep_going
        self._stopping = stopping
        self._plan: list[tuple[float, int]] = []  # (when, signal), in order
        self._ending = False  # whether a signal of ours may be what ends a rank
        self._stopped = 0
        if stop is not None:
            job.watch_descriptor(stop.wakeup.fileno())

    def until_end(self) -> None:
        """Returns when every rank has ended and nothing is left of the job.

        Raises:
            JobTimeout: the deadline has passed; the ranks are still running.
        """
        while self._job.running:
            happened = self._job.events(self._patience())
            now = time.monotonic()
            for event in happened:
                self._take(event, now)
            self._report.release_overdue(now)
            self._heed_stop(now)
            self._follow_plan(now)
            if self._deadline is not None and now >= self._deadline and self._job.running:
                raise JobTimeout(self._job.running)
        for event in self._job.sweep():
            self._take(event, time.monotonic())

    def _patience(self) -> float | None:
        times = [when for when, _ in self._plan[:1]]
        times += [when for when in (self._report.due, self._deadline) if when is not None]
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _take(self, event: Output | Ended, now: float) -> None:
        if isinstance(event, Output):
            self._report.take_output(event, now)
            return
        failure = self._report.take_end(event, now, self._ending)
        if not failure or self._plan or self._ending:
            return
        if self._keep_going:
            if self._job.running:
                self._report.notice(f"{failure.brief()}; {listed(self._job.running)} may go on")
        else:
            self._plan = [(now + GRACE, signal.SIGTERM), (now + GRACE + ASKED, signal.SIGKILL)]

    def _heed_stop(self, now: float) -> None:
        if self._report.error is not None and not self._ending:
            self._end_with(signal.SIGTERM, now)
        if self._stop is None:
            return
        self._stop.drain()  # whatever signal it was: every one that has a handler rings
        if self._stop.count == self._stopped:
            return
        if self._stopped == 0 and self._stop.signal is not None:
            name = signal.Signals(self._stop.signal).name
            ranks = ", ".join(map(str, self._job.running))
            self._report.notice(f"{name}: ending rank {ranks} (once more kills at once)")
            self._end_with(self._stop.signal, now)
        if self._stop.count > 1:
            self._end_with(signal.SIGKILL, now)
        self._stopped = self._stop.count

    def _end_with(self, number: int, now: float) -> None:
        self._plan = [
            (now, number),
            (now + self._stopping, signal.SIGTERM),
            (now + self._stopping + ASKED, signal.SIGKILL),
        ]

    def _follow_plan(self, now: float) -> None:
        while self._plan and self._plan[0][0] <= now:
            _, number = self._plan.pop(0)
            self._ending = True
            self._job.send_signal(number)
