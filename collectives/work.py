"""Asynchronous calls: they run in the order in which they were made, on a thread of their own.

A blocking call runs on the caller's thread as long as nothing asynchronous is under way; else it
takes its place in the queue.
"""

from __future__ import annotations

import math
import os
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Any

from transports.errors import CollectiveError, CollectiveTimeout, MismatchError
from transports.silence import callers_place, runs_for

_LOOK_EVERY = 0.2  # seconds; how soon Ctrl-C ends a wait at the latest


Count = Callable[[int], None]


class Deferred(ABC):
    """What a job has begun and not ended, as a call on a device: waited for by whoever waits."""

    @abstractmethod
    def wait(self, timeout: float | None = None) -> Any:
        """Its result."""

    @abstractmethod
    def done(self) -> bool:
        """Whether it has ended."""


class Work:
    """The handle of an asynchronous call.

    Attributes:
        began: when the call began to run, in seconds of `time.perf_counter`; 0.0 before.
        ended: when it had ended, well or not; 0.0 before.
        place: where in its program the call was made, "train.py:91".
    """

    def __init__(
        self,
        text: str,
        awaited: Count = lambda more: None,
        heard: Callable[[], None] = lambda: None,
    ) -> None:
        """A call that has not run; `text` names it in errors.

        `awaited` is told of each wait that takes long and has no time-out of its own: of its begin
        (1), its end (-1), and each look between (0). `heard` is called when a wait raises that the
        call did not fit: then close() need not.
        """
        self._text = text
        self._heard = heard
        self._awaited = awaited
        self._process = os.getpid()
        # Held until the call has ended. Whoever ends it never waits, and takes no lock: an event
        # would have one, which an exception of a signal handler in a wait can leave taken.
        self._gate = threading.Lock()
        self._gate.acquire()
        self._has_ended = False
        self._result: Any = None
        self._error: BaseException | None = None
        self.place = ""
        self.began = 0.0
        self.ended = 0.0

    def wait(self, timeout: float | None = None) -> Any:
        """Wait for the call's end and return its result.

        Args:
            timeout: seconds to wait here; None waits as long as the call itself may take.

        Raises:
            CollectiveTimeout: the call is still running after `timeout`; it goes on.
            CollectiveError: what the call raised.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        # Not for longer: a signal that comes just before the wait does not end it.
        brief = _LOOK_EVERY if timeout is None else min(timeout, _LOOK_EVERY)
        if not self._is_over() and not self._ends_within(brief):
            waiting = int(timeout is None)  # else the program goes on by itself
            self._awaited(waiting)
            try:
                self._wait_on(timeout, deadline)
            finally:
                self._awaited(-waiting)
        if self._error is not None:
            if isinstance(self._error, MismatchError):
                self._heard()
            raise self._error
        if isinstance(self._result, Deferred):
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            self._result = self._result.wait(left)
        return self._result

    def until_run(self) -> None:
        """Wait until the call has run, and leave what came of it to `wait`."""
        if self._is_over():
            return
        self._awaited(1)
        try:
            self._wait_on(None, None)
        finally:
            self._awaited(-1)

    def _wait_on(self, timeout: float | None, deadline: float | None) -> None:
        while not self._is_over():
            left = math.inf if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise CollectiveTimeout(
                    f"{self._text} has not ended within {timeout:g} s; it goes on"
                )
            self._ends_within(min(left, _LOOK_EVERY))
            self._awaited(0)

    def _ends_within(self, seconds: float) -> bool:
        if self._gate.acquire(timeout=max(seconds, 0.0)):
            # For whoever waits next, who otherwise only sees a little later that it has ended.
            self._gate.release()
        return self._has_ended

    def done(self) -> bool:
        """Whether the call has ended, well or not.

        Raises:
            CollectiveError: it had not when this process was forked, in which nothing runs it.
        """
        if not self._is_over():
            return False
        return not isinstance(self._result, Deferred) or self._result.done()

    def _is_over(self) -> bool:
        if self._has_ended:
            return True
        if os.getpid() != self._process:
            raise CollectiveError(
                f"{self._text} had not ended when this process was forked from the rank that runs "
                "it: only that rank can wait for it"
            )
        return False

    def finish(self, result: Any = None, error: BaseException | None = None) -> None:
        """Called by whoever ran the call."""
        self._result = result
        self._error = error
        self._has_ended = True  # after what it came to
        self._gate.release()


class WorkQueue:
    """Runs the asynchronous calls of one communicator in order."""

    def __init__(
        self,
        name: str,
        count: Count = lambda more: None,
        awaited: Count = lambda more: None,
        heard: Callable[[], None] = lambda: None,
    ) -> None:
        """The thread starts with the first call; `count` is told of each begin (1) and end (-1).

        `awaited` is told the same of waits for calls, and `heard` what they raise, as `Work` says.
        """
        self._heard = heard
        self._name = name
        self._count = count
        self._awaited = awaited
        self._jobs: deque[tuple[Work, Callable[[], Any]]] = deque()
        # Taken by itself, never through the condition, which is written in Python: what a signal
        # handler raised there (Ctrl-C) would leave it locked, and the thread below would not end.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._thread: threading.Thread | None = None
        self._unfinished = 0
        self._closed = False
        self._refusal = "the communicator is closed"

    @property
    def idle(self) -> bool:
        """Whether no asynchronous call is under way."""
        return self._unfinished == 0

    @property
    def may_go(self) -> bool:
        """Whether a call need not wait for others: there are none, or it is a part of their job."""
        return self._unfinished == 0 or self.is_here

    @property
    def is_here(self) -> bool:
        """Whether this is its thread."""
        return self._thread is threading.current_thread()

    def submit(self, text: str, job: Callable[[], Any]) -> Work:
        """Run `job` after all that was submitted before.

        Raises:
            CollectiveError: the queue is closed.
        """
        work = Work(text, self._awaited, self._heard)
        work.place = callers_place()
        with self._lock:
            if self._closed:
                raise CollectiveError(self._refusal)
            self._jobs.append((work, job))
            self._unfinished += 1
            self._count(1)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
            self._changed.notify()
        return work

    def close(self) -> None:
        """Let the running call end as it may; those not begun fail. Does not wait for peers."""
        with self._lock:
            self._closed = True
            while self._jobs:
                work, _ = self._jobs.popleft()
                self._unfinished -= 1
                self._count(-1)
                work.finish(error=CollectiveError("the communicator was closed before this call"))
            self._changed.notify()
            ends_at_once = self._unfinished == 0
        if ends_at_once:  # else the interpreter may end first, with what the thread refers to
            self.join(_LOOK_EVERY)

    def forsake(self, refusal: str) -> None:
        """In a child of fork: nothing runs here any more; what is submitted is refused."""
        # The thread did not come along, and any thread of the parent may have held the lock.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._thread = None
        self._jobs.clear()  # their works know by themselves
        self._unfinished = 0
        self._closed = True
        self._refusal = refusal

    def join(self, timeout: float) -> None:
        """After `close`: wait for the running call's end, at most `timeout` seconds."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            with self._lock:
                while not self._jobs and not self._closed:
                    self._changed.wait()
                if not self._jobs:
                    return
                work, job = self._jobs.popleft()
            result, error = None, None
            runs_for(work.place)
            work.began = time.perf_counter()
            try:
                result = job()
            except BaseException as caught:
                error = caught
            work.ended = time.perf_counter()
            with self._lock:
                self._unfinished -= 1
                self._count(-1)
            work.finish(result, error)
            # While this thread waits for the next, it must not keep the arrays of the last alive.
            del work, job, result, error
