"""Waits for descriptors, whatever their numbers: select() takes none from 1024 on."""

from __future__ import annotations

import math
import select


def becomes_readable(descriptor: int, seconds: float | None) -> bool:
    """Whether there is something to read, or an end, within so many seconds; None: for ever."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(None if seconds is None else math.ceil(seconds * 1000)))
