"""Stopping a run cleanly: SIGTERM or Ctrl-C lets the step end, and the checkpoint be written.

Whatever rank a signal reaches, all stop after the same step: they tell each other, in each step or,
where steps are short, in every so many.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collectives import Communicator

SIGNALS = (signal.SIGTERM, signal.SIGINT)
HEARD_WITHIN = 0.2
"""Seconds after which ranks tell each other again."""


class StopRequest:
    """Whether somebody has asked the run to stop; made on every rank."""

    def __init__(self, comm: Communicator) -> None:
        self._comm = comm
        self._asked = 0
        self._every = 1
        self._told = np.zeros(1, np.int32)
        self._agreed = np.zeros(1, np.int32)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Takes the signals while it lasts; the second one ends the program as it would without."""
        if threading.current_thread() is not threading.main_thread():
            yield  # only that has handlers
            return
        before = {number: signal.getsignal(number) for number in SIGNALS}

        def note(number: int, frame: FrameType | None) -> None:
            self._asked = number
            restore()

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        try:
            for number in SIGNALS:
                signal.signal(number, note)
            yield
        finally:
            restore()

    def expect(self, step_seconds: float) -> None:
        """Says how long a step is; the same on every rank."""
        self._every = max(1, int(HEARD_WITHIN / step_seconds))

    def agreed_after(self, step: int) -> int:
        """The signal by which any rank was asked, or 0; in some steps a collective call."""
        if step % self._every:
            return 0
        self._told[0] = self._asked  # which a handler may change in the middle of the call
        self._comm.allreduce(self._told, out=self._agreed, op="max")
        return int(self._agreed[0])
