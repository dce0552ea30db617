"""Lines between which no signal handler runs: what they have opened is in hands that close it."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

_Handler = Callable[[int, FrameType | None], object]


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Let Python's signal handlers wait until the block has ended; for a few lines that never wait.

    Python's handlers run between any two steps, also between the call that opens a descriptor and
    the line that notes its number: what they raise there would leave it open. Blocking the signals
    would do only where there is one thread: the kernel gives what the main thread blocks to any
    other, and Python then runs the handler in the main thread all the same. So it is the handlers
    that wait. Outside the main thread none ever runs, and nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting = _Waiting()
    try:
        for number in signal.valid_signals():
            handler = signal.getsignal(number)
            if callable(handler):
                waiting.handlers[number] = handler
                signal.signal(number, waiting)
        yield
    finally:
        waiting.end()


class _Waiting:
    """The handler of every signal inside the block.

    Once the block has ended it hands on at once: should a handler that has been put back raise
    before all of them are, then those signals still reach theirs.
    """

    def __init__(self) -> None:
        self.handlers: dict[int, _Handler] = {}
        self._come: list[tuple[int, FrameType | None]] = []
        self._ended = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self._come.append((number, frame))
        if self._ended:
            self._hand_on()

    def end(self) -> None:
        self._ended = True
        try:
            for number, handler in self.handlers.items():
                if signal.getsignal(number) is self:
                    signal.signal(number, handler)
        finally:
            self._hand_on()

    def _hand_on(self) -> None:
        while self._come:
            number, frame = self._come.pop(0)
            try:
                self.handlers[number](number, frame)
            finally:  # the others that came are owed theirs, whatever this one raises
                self._hand_on()
