"""How a rank waits for others to come to a rendezvous: until when, and what else may end it."""

from __future__ import annotations

import hashlib
import os
import socket
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from transports.errors import CollectiveError
from transports.readable import becomes_readable
from transports.reminder import Reminder
from transports.telling import tell

LOOK_SECONDS = 0.1  # between looks at what else may end the waiting
GRACE_SECONDS = 5.0  # longer than one's own deadline, for rank 0 to say who is missing

Look = Callable[[], None]
"""Raises if something else has ended the waiting."""


def address(job: str) -> str:
    """Where the ranks of a job meet, in the abstract name space of Unix sockets."""
    digest = hashlib.sha256(job.encode()).hexdigest()[:32]
    return f"\0collectives-{os.getuid()}-{digest}"


class Waiting:
    """One rank's wait, from its begin.

    Attributes:
        timeout: seconds it may take.
    """

    def __init__(self, job: str, timeout: float, look: Look, silence: float) -> None:
        """`look` raises if something else ends it; after `silence` seconds it is told of."""
        self.timeout = timeout
        self._job = job
        self._deadline = time.monotonic() + timeout
        self._look = look
        self._silence = silence
        self._reminder = Reminder(silence)
        self._speaker: socket.socket | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._fall_silent()

    @property
    def left(self) -> float:
        """Seconds until the deadline; negative beyond it."""
        return self._deadline - time.monotonic()

    def look(self, text: str) -> None:
        """Look at what else may end it; now and then say `text`, with the seconds for its {}."""
        self._look()
        if (waited := self._reminder.due()) and self._speaks_for_all():
            tell(text.format(f"{waited:.3g}"))

    def until_readable(self, connection: socket.socket, text: str, grace: float = 0) -> None:
        """Wait for something to hear, looking as `look` does.

        Raises:
            TimeoutError: `grace` seconds after the deadline.
        """
        descriptor = connection.fileno()
        while True:
            try:
                self.look(text)
            except CollectiveError:  # what has come meanwhile says more
                if becomes_readable(descriptor, 0):
                    return
                raise
            seconds = self.left + grace
            if becomes_readable(descriptor, max(0.0, min(seconds, LOOK_SECONDS))):
                return
            if seconds <= 0:
                raise TimeoutError

    def has_met_rank_zero(self) -> None:
        """From now on rank 0 says what all wait for; this one speaks again if that is silent."""
        self._fall_silent()
        self._reminder = Reminder(2 * self._silence)

    def _fall_silent(self) -> None:
        if self._speaker is not None:
            self._speaker.close()
            self._speaker = None

    def _speaks_for_all(self) -> bool:
        """Whether this rank says what all of the job wait for: the first that takes the name."""
        if self._speaker is not None:
            return True
        speaker = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            speaker.bind(address(f"{self._job}/speaker"))
        except OSError:
            speaker.close()
            return False
        self._speaker = speaker
        return True
