"""Faults on purpose: what a job does when a rank is killed, freezes, raises or is slow.

    kill rank=1 op=57                  SIGKILL as its call #57 begins
    kill rank=1 op=57 signal=SEGV at=middle
    exit rank=1 op=57 code=3           at once, as os._exit does
    raise rank=0 op=5                  an exception from the call
    freeze rank=2 op=10 for=3s         the whole process stands still
    slow rank=1 by=2ms                 before every call; or op=10 for one

`op` counts the calls of the communicator of all ranks, as errors number them. `at` is begin, middle
or end. Several are parted by semicolons.
"""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

from collectives.cost.links import parse_seconds
from collectives.specs import nearest
from transports import _native
from transports.telling import tell

_KEYS = {
    "kill": {"rank", "op", "at", "signal"},
    "exit": {"rank", "op", "at", "code"},
    "raise": {"rank", "op", "at"},
    "freeze": {"rank", "op", "at", "for"},
    "slow": {"rank", "op", "by"},
}
_NEEDED = {"kill": {"op"}, "exit": {"op"}, "raise": {"op"}, "freeze": {"op", "for"}, "slow": {"by"}}
_MOMENTS = ("begin", "middle", "end")
# Wakes a process that stands still: from outside, since nothing in it runs. Its clock starts when
# the process has stopped: the middle of a call comes when its peers do.
_WAKER = """
import os, select, signal, sys

pid, seconds = sys.argv[1:]
pidfd = os.pidfd_open(int(pid))

def ends_within(seconds):
    return bool(select.select([pidfd], [], [], seconds)[0])

def is_stopped():
    with open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()[0] == b"T"

os.write(1, b".")
try:
    while not is_stopped():
        if ends_within(0.005):
            sys.exit()
    if not ends_within(float(seconds)):
        signal.pidfd_send_signal(pidfd, signal.SIGCONT)
except OSError:
    pass  # it has ended just now
"""


class InjectedError(RuntimeError):
    """What `raise` raises."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault.

    Attributes:
        text: as it was written.
        action: kill, exit, raise, freeze or slow.
        rank: whose.
        op: in which call; None: in every.
        at: at its begin, in the middle or at its end.
        signal: of kill.
        code: of exit.
        seconds: how long, of freeze and slow.
    """

    text: str
    action: str
    rank: int
    op: int | None = None
    at: str = "begin"
    signal: int = signal.SIGKILL
    code: int = 1
    seconds: float = 0.0


def parse_faults(text: str) -> tuple[Fault, ...]:
    """The faults that a text names.

    Raises:
        ValueError: it is none; the message says what was expected and found.
    """
    return tuple(_parse(each.strip()) for each in text.split(";") if each.strip())


def _parse(text: str) -> Fault:
    action, *words = text.split()
    if action not in _KEYS:
        raise ValueError(
            f"fault {text!r}: expected one of {', '.join(_KEYS)}, found {action!r}"
            + nearest(action, _KEYS)
        )
    found: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not value or key not in _KEYS[action] or key in found:
            raise ValueError(
                f"fault {text!r}: expected {action} with each of "
                f"{', '.join(sorted(_KEYS[action]))} at most once, as key=value, found {word!r}"
                + nearest(key, _KEYS[action])
            )
        found[key] = value
    if missing := ({"rank"} | _NEEDED[action]) - found.keys():
        raise ValueError(f"fault {text!r}: {' and '.join(sorted(missing))} missing")
    at = found.get("at", "begin")
    if at not in _MOMENTS or (action == "raise" and at == "middle"):
        moments = [each for each in _MOMENTS if action != "raise" or each != "middle"]
        raise ValueError(f"fault {text!r}: at is one of {', '.join(moments)}, found {at!r}")
    return Fault(
        text=text,
        action=action,
        rank=_whole(text, "rank", found["rank"], 0),
        op=_whole(text, "op", found["op"], 1) if "op" in found else None,
        at=at,
        signal=_signal(text, found.get("signal", "KILL")),
        code=_whole(text, "code", found.get("code", "1"), 0),
        seconds=_seconds(text, found.get("for") or found.get("by") or "0s"),
    )


def _whole(text: str, key: str, value: str, least: int) -> int:
    if not value.isdecimal() or int(value) < least:
        raise ValueError(f"fault {text!r}: {key} is an integer from {least} on, found {value!r}")
    return int(value)


def _signal(text: str, value: str) -> int:
    try:
        return (
            signal.Signals(int(value))
            if value.isdecimal()
            else signal.Signals[value if value.startswith("SIG") else f"SIG{value}"]
        )
    except (KeyError, ValueError):
        raise ValueError(f"fault {text!r}: expected a signal, as SEGV, found {value!r}") from None


def _seconds(text: str, value: str) -> float:
    try:
        return parse_seconds(value)
    except ValueError as error:
        raise ValueError(f"fault {text!r}: {error}") from None


class FaultyEngine:
    """An engine whose calls meet faults; in all else the engine it stands for."""

    def __init__(self, engine: _native.Engine, faults: Sequence[Fault]) -> None:
        """The faults are this rank's."""
        self._engine = engine
        self._faults = tuple(faults)
        self._unmet = [fault for fault in faults if fault.op is not None]
        atexit.register(self._tell_unmet)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def remember(self, *args: Any) -> None:
        """Nothing: a call that the engine repeats by itself would meet no fault."""

    def execute(self, *args: Any) -> None:
        """As the engine's, with the faults of its number."""
        number = self._engine.calls + 1
        mine = [fault for fault in self._faults if fault.op in (None, number)]
        self._unmet = [fault for fault in self._unmet if fault.op != number]
        with ExitStack() as afterwards:
            for fault in mine:
                if fault.at == "middle":
                    _tell(fault)
                    if fault.action == "freeze":
                        waker = afterwards.enter_context(_waking_after(fault.seconds))
                        afterwards.callback(self._spare, waker)
                    self._engine.signal_in_middle(*_signal_of(fault))
                elif fault.at == "begin":
                    _act(fault)
            self._engine.execute(*args)
        for fault in mine:
            if fault.at == "end":
                _act(fault)

    def _tell_unmet(self) -> None:
        """At the program's end: else who practises would think that it has gone well."""
        for fault in self._unmet:
            calls = self._engine.calls
            tell(f"not injected: {fault.text}: rank {fault.rank} made {calls} calls in all")

    def _spare(self, waker: subprocess.Popen[bytes]) -> None:
        """End the waker of a call that failed before its middle; what stands still needs it."""
        if self._engine.take_back_signal():
            waker.kill()


def _signal_of(fault: Fault) -> tuple[int, int]:
    """Which signal a rank sends itself in the middle of a call; 0 and a code: it exits."""
    if fault.action == "exit":
        return 0, fault.code
    return (signal.SIGSTOP if fault.action == "freeze" else fault.signal), 0


def _act(fault: Fault) -> None:
    if fault.action == "slow":
        time.sleep(fault.seconds)
        return
    _tell(fault)
    match fault.action:
        case "kill":
            os.kill(os.getpid(), fault.signal)
        case "exit":
            _leave(fault.code)
        case "raise":
            raise InjectedError(f"injected: {fault.text}")
        case "freeze":
            with _waking_after(fault.seconds):
                os.kill(os.getpid(), signal.SIGSTOP)


def _leave(code: int) -> NoReturn:
    os._exit(code)


@contextmanager
def _waking_after(seconds: float) -> Iterator[subprocess.Popen[bytes]]:
    """For a block in which this process stops: another one wakes it.

    Left once that has ended: a stop may come a moment after the call that sent it has returned.
    """
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _WAKER, str(os.getpid()), str(seconds)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    ) as waker:
        assert waker.stdout is not None
        waker.stdout.read(1)  # it is ready
        yield waker


def _tell(fault: Fault) -> None:
    tell(f"injected: {fault.text}")
