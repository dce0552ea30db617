"""Looks after calls that are on a device, from threads of its own.

A stream that waits for a peer waits for ever. So while calls are under way a thread looks, every
few milliseconds, whether the oldest is done; if not, whether a rank it needs has ended, another has
reported trouble, or its time is up. A second thread asks the device how it is. Once a call has
failed every flag is released, the stream runs to its end, and what went wrong is raised by the next
call, a `wait` or `close`. Until then the results are undefined.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from transports.cuda_ipc.device import DeviceError
from transports.cuda_ipc.engine import DeviceEngine
from transports.errors import CollectiveError, CollectiveTimeout, MismatchError

_LOOK_EVERY = (0.0005, 0.02)  # seconds; at first, and at most
_LOOK_AT_GRAPHS_EVERY = 0.05
_ASK_EVERY = 0.25
_MOST_OPERATIONS = 400  # on the stream: a driver takes about a thousand, then its calls block
_OF_A_CALL = 5  # besides its program's: to follow the caller's stream, to count, to be followed


class Host(Protocol):
    """What is asked of the engine of host memory, which knows how the others are."""

    def check(self, ranks: Sequence[int], heard: bool) -> None:
        """Raise the trouble some rank has reported, or that one of `ranks` has ended.

        `heard`: the program hears of it.
        """
        ...

    def has_gone(self, peer: int) -> bool:
        """Whether a rank has ended or left."""
        ...

    def abort(self, text: str) -> None:
        """Tell the other ranks that this one gives up."""
        ...

    def tell_of_trouble(self) -> None:
        """The program has heard of what was reported."""
        ...


class _Call(NamedTuple):
    number: int
    text: str
    deadline: float
    seconds: float
    operations: int
    kept: Any  # alive until the device has done with it


class Watch:
    """Of the calls of one communicator.

    Attributes:
        failure: why calls have failed, once they have.
        told: whether the program has heard of it.
    """

    def __init__(
        self,
        engine: DeviceEngine,
        host: Host,
        size: int,
        name: str,
        has_left: Callable[[int], bool] = lambda peer: False,
    ) -> None:
        """The thread starts with the first call and has that `name`.

        `has_left`: whether a rank has closed its side, having done all of its calls.
        """
        self._engine = engine
        self._host = host
        self._size = size
        self._name = name
        self._has_left = has_left
        self._calls: deque[_Call] = deque()
        self._graphs = False
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._thread: threading.Thread | None = None
        self._asking = threading.Thread(target=self._ask, name=f"{name}-asking", daemon=True)
        self._over = threading.Event()
        self._closed = False
        self.failure: BaseException | None = None
        self.told = False
        self._seen_done = 0  # the last call of which that is known

    def add(self, number: int, text: str, seconds: float, operations: int, kept: Any) -> None:
        """A call that has been put on the stream and may take so many seconds."""
        deadline = time.monotonic() + seconds
        with self._lock:
            self._calls.append(_Call(number, text, deadline, seconds, operations, kept))
            self._wake()

    @property
    def has_graphs(self) -> bool:
        """Whether calls were captured, which may run at any time."""
        return self._graphs

    def look_after_graphs(self) -> None:
        """From now on also while no call is under way: graphs run whenever the program says.

        They have no deadlines, as nobody knows when they begin; a rank that is lost ends them.
        """
        with self._lock:
            self._graphs = True
            self._wake()

    def raise_failure(self) -> None:
        """Raise what has gone wrong, if anything has."""
        if self.failure is not None:
            self.told = True
            self._host.tell_of_trouble()  # else it would be raised once more by close()
            raise self.failure

    def until_room(self, operations: int) -> None:
        """Wait until so many more operations fit on the stream.

        Raises:
            CollectiveError: what ended the waiting.
        """
        while True:
            self.raise_failure()
            with self._lock:
                waiting = sum(call.operations + _OF_A_CALL for call in self._calls)
            if not waiting or waiting + operations <= _MOST_OPERATIONS:
                return
            time.sleep(_LOOK_EVERY[0])
            self._drop_done()

    def until_done(self, number: int, timeout: float | None = None) -> bool:
        """Wait until a call is done on this rank's stream; False: it is not after `timeout`.

        Raises:
            CollectiveError: it has failed.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = _LOOK_EVERY[0]
        while not self.is_done(number):
            self.raise_failure()
            if deadline is not None and time.monotonic() > deadline:
                return False
            time.sleep(pause)
            pause = min(2 * pause, _LOOK_EVERY[1])
        self.raise_failure()
        return True

    def fail(self, error: BaseException, told: bool = False) -> None:
        """The calls that are under way have failed, and all later ones do.

        `told`: the program hears of it by other ways.
        """
        with self._lock:
            self.told |= told
            if self.failure is None:
                self.failure = error
            self._changed.notify()
        self._engine.release()

    def fail_between_hosts(self, error: BaseException) -> None:
        """What moves messages between hosts has failed."""
        with self._lock:
            whose = f"{self._calls[0].text}: " if self._calls else ""
        text = f"{whose}messages of devices between hosts: {error}"
        self._host.abort(f"rank {self._engine.rank}: {text}")
        self.fail(CollectiveError(text))

    def is_done(self, number: int) -> bool:
        """Whether a call is done and no rubbish: seen to be done before flags were released."""
        if number <= self._seen_done:
            return True
        if not self._engine.done(self._engine.rank, number) or self._engine.is_released():
            return False
        self._seen_done = number
        return True

    def close(self) -> None:
        """End the thread; nothing may be under way."""
        with self._lock:
            self._closed = True
            self._changed.notify()
        self._over.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
            self._asking.join(_ASK_EVERY)

    def _wake(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
            self._asking.start()
        self._changed.notify()

    def _drop_done(self) -> None:
        with self._lock:
            while self._calls and self.is_done(self._calls[0].number):
                self._calls.popleft()

    def _run(self) -> None:
        pause = _LOOK_EVERY[0]
        while True:
            with self._lock:
                if not self._calls and not self._closed:
                    self._changed.wait(_LOOK_AT_GRAPHS_EVERY if self._graphs else None)
                    pause = _LOOK_EVERY[0]
                if self._closed:
                    return
                call = self._calls[0] if self._calls else None
            if call is None:
                if self._graphs:
                    self._look_at_graphs()
                continue
            if self.is_done(call.number):
                self._drop_done()
                pause = _LOOK_EVERY[0]
                continue
            if self.failure is None:
                try:
                    self._look_at(call)
                except BaseException as error:
                    # The host's engine keeps a mismatch for whoever has not heard of it.
                    self.fail(error, told=isinstance(error, MismatchError))
            else:
                self._engine.release()  # peers' streams may have turned flags since
            with self._lock:
                if not self._closed:
                    self._changed.wait(pause)
            pause = min(2 * pause, _LOOK_EVERY[1])

    def _ask(self) -> None:
        """In a thread of its own: a driver may not answer before what fills its queues is let go.

        Which a lost peer may leave to the other thread to do.
        """
        device = self._engine.device
        device.prepare_thread()
        while not self._over.wait(_ASK_EVERY):
            if not self._calls and not self._graphs:
                continue
            try:
                device.raise_failure()
            except DeviceError as error:
                with self._lock:
                    text = self._calls[0].text if self._calls else "a graph"
                self._host.abort(f"rank {self._engine.rank}: {text}: {error}")
                self.fail(CollectiveError(f"{text}: {error}"))
                return

    def _look_at_graphs(self) -> None:
        """Fail if what a graph waits for never comes."""
        if self.failure is not None:
            self._engine.release()  # a graph may have been launched since
            return
        self.is_done(self._engine.put)  # what is done now stays so, whatever is released
        gone = [
            peer
            for peer in range(self._size)
            if self._host.has_gone(peer) and not self._has_left(peer)
        ]
        try:
            self._host.check(gone, heard=False)
        except BaseException as error:
            self.fail(error)
            return
        others = (peer for peer in range(self._size) if peer != self._engine.rank)
        if self._size > 1 and all(self._host.has_gone(peer) for peer in others):
            self._engine.release()  # nobody turns flags any more: what waits would wait for ever

    def _look_at(self, call: _Call) -> None:
        """Raise why a call that is not done never will be."""
        self._host.check((), heard=False)
        rank = self._engine.rank
        # A rank that has ended after it had done its part of the call is none that is lost: so
        # first who has ended, then who has not done it.
        gone = [peer for peer in range(self._size) if self._host.has_gone(peer)]
        missing = [peer for peer in range(self._size) if not self._engine.done(peer, call.number)]
        if self._engine.is_released():  # by a rank that has told why, or ended before it could
            missing = list(range(self._size))
        self._host.check([peer for peer in gone if peer in missing], heard=False)
        if time.monotonic() > call.deadline:
            others = ", ".join(str(peer) for peer in missing if peer != rank)
            whom = f"rank {others}" if others else "its own device"
            text = f"{call.text}: not done on the device after {call.seconds:g} s; waits for {whom}"
            self._host.abort(f"rank {rank}: {text}")
            raise CollectiveTimeout(text)
