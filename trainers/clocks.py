"""When something came to pass, on the host or on a GPU, in seconds of `time.perf_counter`.

What a program begins on a GPU is done later. So there a moment is an event on a stream, which has a
time only once the GPU has come by, and that of the host only by comparison: an event is waited for
and the host's clock read before and after.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

import torch

from collectives.work import Deferred

if TYPE_CHECKING:
    from collectives.work import Work

_COMPARISONS = 4
"""Of the two clocks, the closest of which counts: a thread may be late to wake up."""


class TimedCall(Protocol):
    """A call that is under way.

    Attributes:
        began: the moment when it could begin.
        ended: when it was done; known after `wait`.
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

    def reach(self, moment: Any) -> None:
        """Waits until it has come."""

    def settle(self, *moments: Any) -> None:
        """Waits until these moments, and all that were before them and this, have a time."""

    def seconds(self, moment: Any) -> float:
        """The time of one that was before the last `settle`."""

    def timed(self, begin: Callable[[], Work]) -> TimedCall:
        """Begins a call and follows it."""


class HostClock:
    """Of a program whose work is done when it returns."""

    def moment(self) -> float:
        """Now."""
        return time.perf_counter()

    def reach(self, moment: float) -> None:
        """Nothing: it has."""

    def settle(self, *moments: float) -> None:
        """Nothing: moments are times."""

    def seconds(self, moment: float) -> float:
        """The moment itself."""
        return moment

    def timed(self, begin: Callable[[], Work]) -> TimedCall:
        """The call itself, which knows its times."""
        return begin()


class StreamClock:
    """Of a program whose work is on the current stream of a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # It follows calls and nothing else, so that what is on it tells when they were done.
        self._aside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._settled: Any = None
        self._settled_at = 0.0

    def moment(self) -> torch.cuda.Event:
        """An event on the current stream."""
        return self._recorded(self._current())

    def reach(self, moment: torch.cuda.Event) -> None:
        """Waits for the event."""
        moment.synchronize()

    def settle(self, *moments: torch.cuda.Event) -> None:
        """Waits for those, and for the current stream."""
        for moment in moments:
            moment.synchronize()
        self.moment().synchronize()
        closest = float("inf")
        for _ in range(_COMPARISONS):
            before = time.perf_counter()
            event = self.moment()
            event.synchronize()
            passed = time.perf_counter() - before
            if passed < closest:
                closest = passed
                self._settled, self._settled_at = event, before + passed / 2

    def seconds(self, moment: torch.cuda.Event) -> float:
        """Reckoned back from the last `settle`."""
        return self._settled_at - float(moment.elapsed_time(self._settled)) / 1e3

    def timed(self, begin: Callable[[], Work]) -> TimedCall:
        """The call with an event behind it."""
        return _StreamCall(self, begin)

    def _current(self) -> torch.cuda.Stream:
        return torch.cuda.current_stream(self.device)

    def _recorded(self, stream: torch.cuda.Stream) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(stream)
        return event

    def follow(self, call: Any) -> torch.cuda.Event:
        """The end of a call on the GPU, which nothing else waits for."""
        with torch.cuda.device(self.device), torch.cuda.stream(self._aside):
            call.wait()
        return self._recorded(self._aside)

    def await_event(self, event: torch.cuda.Event) -> None:
        """Lets the current stream wait for an event."""
        event.wait(self._current())


class _StreamCall:
    """A call between two events."""

    def __init__(self, clock: StreamClock, begin: Callable[[], Work]) -> None:
        self._clock = clock
        self.began = clock.moment()
        self._work = begin()
        # One of the host's is waited for only where it must be: computing goes on beside it.
        self._follows = isinstance(self._work, Deferred)
        self.ended: Any = clock.follow(self._work) if self._follows else None

    def wait(self) -> object:
        """Lets the current stream follow the call."""
        if self._follows:
            self._clock.await_event(self.ended)
        found = self._work.wait()  # which raises what is known by now to have gone wrong
        if not self._follows:
            self.ended = self._clock.moment()
        return found


def passed(clock: Clock, begin: Any, end: Any) -> float:
    """Seconds from one moment to another, both before the last `settle`."""
    return clock.seconds(end) - clock.seconds(begin)


def clock_of(parameters: Iterable[torch.Tensor]) -> Clock:
    """The clock of a model: of the GPU of its first parameter that is on one, or of the host."""
    devices = (parameter.device for parameter in parameters)
    found = next((device for device in devices if device.type == "cuda"), None)
    return HostClock() if found is None else StreamClock(found)
