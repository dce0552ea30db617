"""The handle of a call on a device."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from collectives.work import Deferred
from transports.cuda_ipc.watching import Watch
from transports.errors import CollectiveTimeout


class DeviceWork(Deferred):
    """A call that is on the communicator's stream.

    Attributes:
        began: when it was put there, in seconds of `time.perf_counter`.
        ended: when it was first seen to be done; 0.0 before.
    """

    def __init__(
        self,
        text: str,
        number: int,
        watch: Watch,
        deliver: Callable[[], Any],
    ) -> None:
        """Of call `number`; `deliver` gives its result to the caller's stream."""
        self._text = text
        self._number = number
        self._watch = watch
        self._deliver: Callable[[], Any] | None = deliver
        self._result: Any = None
        self.began = time.perf_counter()
        self.ended = 0.0

    def wait(self, timeout: float | None = None) -> Any:
        """Let the caller's current stream wait for the call, and return its result.

        The host does not wait, unless it is given a time: then until the call is done.

        Args:
            timeout: seconds for which the host waits, at most; None: not at all.

        Raises:
            CollectiveTimeout: the call is not done after `timeout`; it goes on.
            CollectiveError: what is known to have gone wrong; what is not yet is raised by a later
                call or by close.
        """
        if timeout is not None and not self._until_done(timeout):
            raise CollectiveTimeout(f"{self._text} has not ended within {timeout:g} s; it goes on")
        self._watch.raise_failure()
        if self._deliver is not None:
            self._result, self._deliver = self._deliver(), None
            self._until_done(0.0)  # where streams are late by the host's waiting it has ended
        return self._result

    def done(self) -> bool:
        """Whether it is done on the device, or has failed."""
        if self._watch.failure is not None:
            return True
        return self._until_done(0.0)

    def _until_done(self, timeout: float) -> bool:
        if not self._number:  # captured: it runs with its graph
            return True
        done = self._watch.until_done(self._number, timeout)
        if done and not self.ended:
            self.ended = time.perf_counter()
        return done
