"""Signals without stream memory operations: the host waits and sets in the stream's place.

It blocks the caller, in every message of every call. What holds it up is what would hold up the
stream: the watch releases the flags when the call has failed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from transports.cuda_ipc.device import Signal, State

_LOOK_EVERY = 0.00002


class Word(Protocol):
    """A word in host memory."""

    value: int


def signal_by_host(
    signals: tuple[Signal, ...], synchronize: Callable[[], None], word_at: Callable[[int], Word]
) -> None:
    """Once all before it on the stream is done; `word_at` gives the word at a stream's address."""
    synchronize()
    for flag, state, waits in signals:
        word = word_at(flag)
        if waits:
            while not word.value & state:
                time.sleep(_LOOK_EVERY)
        elif word.value != State.RELEASED:  # a failed call's flag stays so, for whoever waits
            word.value = int(state)
