"""When something came to pass, on the host or on a GPU, in seconds of `time.perf_counter`.

What a program begins on a GPU is done later. So there a moment is an event on a stream, which has a
time only once the GPU has come by, and that of the host only by comparison: an event is waited for
and the host's clock read, which makes what is before it late by what waking up takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from collectives.work import Work


class TimedCall(Protocol):
    """A call that is under way.

    Attributes:
        began: the moment when it could begin.
        ended: when it was done; of the host's only after `wait`.
    """

    @property
    def began(self) -> Any:
        """See above."""

    @property
    def ended(self) -> Any:
        """See above."""

    def wait(self) -> object:
        """Lets what follows in this thread have its result."""


class Clock(Protocol):
    """Tells moments, and then their times."""

    def moment(self) -> Any:
        """This one: when all is done that has been begun here."""

    def settle(self) -> None:
        """Waits until all moments have a time."""

    def seconds(self, moment: Any) -> float:
        """The time of one that was before the last `settle`."""

    def timed(self, begin: Callable[[], Work]) -> TimedCall:
        """Begins a call and follows it."""


class HostClock:
    """Of a program whose work is done when it returns."""

    def moment(self) -> float:
        """Now."""
        return time.perf_counter()

    def settle(self) -> None:
        """Nothing: moments are times."""

    def seconds(self, moment: float) -> float:
        """The moment itself."""
        return moment

    def timed(self, begin: Callable[[], Work]) -> TimedCall:
        """The call itself, which knows its times."""
        return begin()


class StreamClock:
    """Of a program whose work is on the current stream of its GPU."""

    def __init__(self) -> None:
        # It follows calls and nothing else, so that what is on it tells when they were done.
        self._aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._settled = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._settled_at = 0.0

    def moment(self) -> torch.cuda.Event:
        """An event on the current stream."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def settle(self) -> None:
        """Waits for the current stream."""
        self._settled = self.moment()
        self._settled.synchronize()
        self._settled_at = time.perf_counter()

    def seconds(self, moment: torch.cuda.Event) -> float:
        """Reckoned back from the last `settle`."""
        return self._settled_at - float(moment.elapsed_time(self._settled)) / 1e3

    def timed(self, begin: Callable[[], Work]) -> TimedCall:
        """The call with an event behind it."""
        return _StreamCall(self, begin, self._aside)


class _StreamCall:
    """A call on a GPU, between two events."""

    def __init__(self, clock: StreamClock, begin: Callable[[], Work], aside: Any) -> None:
        self.began = clock.moment()
        self._work = begin()
        with torch.cuda.stream(aside):
            self._work.wait()
            self.ended = clock.moment()

    def wait(self) -> object:
        """Lets the current stream follow the call."""
        self.ended.wait()
        return self._work.wait()  # which raises what is known by now to have gone wrong


def clock_of(device: torch.device) -> Clock:
    """The clock of a model on that device."""
    return StreamClock() if device.type == "cuda" else HostClock()
