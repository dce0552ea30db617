"""When a wait has lasted so long that it is to be told of."""

from __future__ import annotations

import time
from collections.abc import Callable


class Reminder:
    """Due after some seconds, then after twice as many, and so on."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Of a wait that begins now; 0 seconds: it is never due."""
        self._clock = clock
        self._began = clock()
        self._next = seconds

    def due(self) -> float | None:
        """How many seconds the wait has lasted, if it is time to say so."""
        waited = self._clock() - self._began
        if self._next <= 0 or waited < self._next:
            return None
        self._next = 2 * waited
        return waited
