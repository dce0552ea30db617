"""What a rank does in a program in which one of them fails, and what it then tells."""

from __future__ import annotations

import gc
import mmap
import os
import signal
import struct
import threading
import time
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np

import collectives
from collectives import settings
from soak.bad_bytes import areas, mapped_at, places, write
from soak.execution import Execution, WrongResult
from soak.fault_kinds import ENDS, Fault
from soak.leftovers import Held, held, left_over
from soak.operations import Wait
from transports import _native

PATIENCE = {"freezes for ever": 0.5, "bad bytes": 1.0}
"""Seconds a wait may take, where a deadline is what ends it."""

LONG = 30.0  # where something else must
_FROZEN = 5.0  # at most, until whoever has started us wakes or kills us


class Stumble(BaseException):
    """What a rank raises that is to raise; as with Ctrl-C, nobody turns it into another."""


class Clock:
    """When a rank failed and when each noticed, in memory that ranks and their parent share."""

    def __init__(self, size: int) -> None:
        self._memory = mmap.mmap(-1, 8 * (size + 1))

    def stamp(self, which: int) -> None:
        """Note the time: of the fault (0), or of rank r (r + 1); the first counts."""
        if not self.at(which):
            struct.pack_into("q", self._memory, 8 * which, time.monotonic_ns())

    def at(self, which: int) -> int:
        """Nanoseconds; 0: not yet."""
        return int(struct.unpack_from("q", self._memory, 8 * which)[0])


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a rank that was not killed says of itself.

    Attributes:
        error: class of what it raised; empty: nothing.
        text: of that.
        number: of the operation that it was in.
        left: what is left over of the communicators.
    """

    error: str
    text: str
    number: int
    left: str


def rank_program(rank: int, *, fault: Fault, job: dict[str, str], clock: Clock) -> Told:
    """On a rank: the program, in which this rank may be the faulty one."""
    os.environ.update({**job, **fault.program.environment, "RANK": str(rank)})
    before: Held = held()
    error: BaseException | None = None
    number = -1
    try:
        with collectives.init(timeout=LONG) as comm:
            comm.timeout = PATIENCE.get(fault.kind, LONG)
            execution = Execution(fault.program, comm)
            try:
                _run(execution, fault, clock)
            except BaseException:
                clock.stamp(rank + 1)
                raise
            finally:
                number = execution.number
    except BaseException as raised:
        clock.stamp(rank + 1)
        error = raised
    name = "" if error is None else type(error).__name__
    text = "" if error is None else str(error)
    if isinstance(error, WrongResult):
        name = "WrongResult"
    elif error is not None and not isinstance(error, collectives.CollectiveError):
        import traceback

        text = "".join(traceback.format_exception(error))
    error = comm = execution = None
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # its handler knew them, too
    gc.collect()
    return Told(error=name, text=text, number=number, left=left_over(before))


def _run(execution: Execution, fault: Fault, clock: Clock) -> None:
    if execution.rank != fault.rank:
        execution.run()
        return
    failing = _Failing(execution, fault, clock)
    execution.run(failing.before)
    failing.before(len(fault.program.operations))


class _Failing:
    """Fails at the moment: called before every operation."""

    def __init__(self, execution: Execution, fault: Fault, clock: Clock) -> None:
        self._execution, self._fault, self._clock = execution, fault, clock
        self._thread: threading.Thread | None = None
        self._again = False
        # The world's, as long as it is the only one.
        size = fault.program.size
        self._region = mapped_at(_native.region_bytes(**settings.geometry().for_ranks(size)))

    def before(self, number: int) -> None:
        fault = self._fault
        if number == fault.number and fault.moment == "before":
            self._fail()
        elif number == fault.number and fault.moment == "in the middle":
            self._fail_soon()
        elif number == fault.number + 1 and fault.moment == "in the middle":
            if self._thread is not None:
                self._thread.join()
            elif fault.kind in ("raises", "leaves early"):  # the alarm rang where nobody heard it
                signal.setitimer(signal.ITIMER_REAL, 0)
                self._fail()
        elif number == fault.number + 1 and fault.moment == "after":
            self._fail()
        elif self._again:  # what is a rank's own it may have written anew
            self._write_bad_bytes()

    def _fail_soon(self) -> None:
        if self._fault.kind == "raises":

            def ring(number: int, frame: FrameType | None) -> None:
                self._fail()

            signal.signal(signal.SIGALRM, ring)
            signal.setitimer(signal.ITIMER_REAL, self._fault.delay)
        elif self._fault.kind != "leaves early":

            def later() -> None:
                time.sleep(self._fault.delay)
                self._fail()

            self._thread = threading.Thread(target=later)
            self._thread.start()

    def _fail(self) -> None:
        fault, execution = self._fault, self._execution
        operations = fault.program.operations
        if fault.kind in ENDS or fault.kind.startswith("freezes"):
            self._clock.stamp(0)
            _end_or_freeze(fault.kind)
        elif fault.kind == "raises":
            self._clock.stamp(0)
            raise Stumble(f"of rank {fault.rank}")
        elif fault.kind == "bad bytes":
            self._write_bad_bytes()
        elif fault.kind == "does one twice":
            execution.number = fault.number
            execution.do(operations[fault.number])
            self._clock.stamp(0)
        else:
            nothing = fault.kind == "skips one" or fault.other is None
            operations[fault.number] = Wait(handles=()) if nothing else fault.other  # type: ignore
            self._clock.stamp(0)

    def _write_bad_bytes(self) -> None:
        dice = np.random.default_rng([self._fault.seed, 815])
        geometry, size = settings.geometry(), self._fault.program.size
        among = areas(geometry, size)
        # Kinds of areas alike, then one of them; a few bytes or many.
        name = dice.choice(sorted({area.name for area in among}))
        area = among[dice.choice([at for at, each in enumerate(among) if each.name == name])]
        count = (1, 4, 64, 1000, None, None)[dice.integers(6)]
        at = [self._region + place for place in places(area, dice, count)]
        content = dice.bytes(len(at))
        style = dice.integers(3)
        if style == 1:  # what counters and states may be
            small = bytes(dice.integers(0, 4, len(at), np.uint8))
            content = bytes(
                byte if place % 4 == 0 else 0 for place, byte in zip(at, small, strict=True)
            )
        elif style == 2:
            content = bytes([dice.choice([0, 1, 127, 255])]) * len(at)
        self._again = bool(dice.integers(2))
        self._clock.stamp(0)
        write(at, content)


def _end_or_freeze(kind: str) -> Any:
    me = os.getpid()
    if kind == "SIGKILL":
        os.kill(me, signal.SIGKILL)
    elif kind == "SIGSEGV":
        os.kill(me, signal.SIGSEGV)
    elif kind == "os._exit":
        os._exit(3)
    elif kind == "leaves early":
        raise SystemExit(0)
    else:
        os.kill(me, signal.SIGSTOP)
        return
    time.sleep(_FROZEN)  # a signal takes its time
