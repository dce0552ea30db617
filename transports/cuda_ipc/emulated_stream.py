"""A stream over host memory: a thread that keeps the stream's order and nothing else.

Nothing that is put on it has happened when the call returns. It runs late, and between any two
steps it may stop for a moment, by the seed: what another stream does meanwhile, a device could see
as well.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transports.cuda_ipc.emulated_graph import Graph

_LONGEST_STOP = 0.0004  # seconds
_LOOK_EVERY = 0.00005

Step = Callable[[], None]


class EmulatedStream:
    """Runs steps in order on a thread of its own, late."""

    def __init__(self, seed: int, name: str) -> None:
        """`seed` decides when it stops; its thread has that `name`."""
        self._random = random.Random(seed)
        # Some streams hurry and some dawdle, as work of different length would make them.
        self._often = self._random.choice((0.0, 0.05, 0.3))
        self._steps: deque[Step] = deque()
        self._changed = threading.Condition()
        self._unfinished = 0
        self._over = False
        self._forsaken = False
        self.failure: BaseException | None = None
        self.graph: Graph | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, step: Step) -> None:
        """Run `step` after all that was put before, or whenever the graph does that captures it."""
        if self.graph is not None:
            self.graph.record(self, step)
            return
        with self._changed:
            self._steps.append(step)
            self._unfinished += 1
            self._changed.notify_all()

    def idle(self) -> bool:
        """Whether every step has been run."""
        return self._unfinished == 0

    def mark(self) -> Callable[[], bool]:
        """Tells from now on whether what has been put until now is done."""
        done = threading.Event()
        self.put(done.set)
        return done.is_set

    def synchronize(self) -> None:
        """Wait until every step has been run."""
        with self._changed:
            while self._unfinished:
                self._changed.wait()

    def end(self) -> None:
        """Run what is left, then end the thread."""
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def forsake(self) -> None:
        """End the thread without running what is left."""
        with self._changed:
            self._steps.clear()
            self._unfinished = 0
            self._over = self._forsaken = True
            self._changed.notify_all()

    def pause(self) -> None:
        """Between two steps, or inside one that takes a while on a device."""
        if self._random.random() < self._often:
            time.sleep(self._random.random() * _LONGEST_STOP)

    def hold_until(self, done: Callable[[], bool]) -> None:
        """From inside a step: the stream stands still until `done`."""
        while not done() and not self._forsaken:
            time.sleep(_LOOK_EVERY)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._steps and not self._over:
                    self._changed.wait()
                if not self._steps:
                    return
                step = self._steps[0]
            self.pause()
            # As on a device, what comes after an error is not run, and whoever asks next hears.
            if self.failure is None:
                try:
                    step()
                except BaseException as error:
                    self.failure = error
            with self._changed:
                if self._steps:  # else it was forsaken meanwhile
                    self._steps.popleft()
                    self._unfinished -= 1
                self._changed.notify_all()
