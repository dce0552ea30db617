"""One rank of test_point_to_point.py: a process of its own, or a thread of one process."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from transports import _native

ANY = -1
LANE_BYTES = 1024
LENGTHS = (0, 1, 8, 16, 17, LANE_BYTES - 1, LANE_BYTES, LANE_BYTES + 1, 10 * LANE_BYTES + 3)
LONG = 100 * LANE_BYTES + 7
FOREVER = 60.0
Program = Callable[..., None]


@dataclass
class Rank:
    """One rank's end: numpy arrays in, numpy arrays out."""

    rank: int
    size: int
    messages: Any
    engine: Any

    def isend(self, x: np.ndarray, dest: int, tag: int = 0) -> Any:
        return self.messages.post_send(x, x.nbytes, dest, tag, f"{x.dtype}[{x.size}]")

    def irecv(self, x: np.ndarray, source: int, tag: int = 0) -> Any:
        return self.messages.post_recv(x, x.nbytes, source, tag, f"{x.dtype}[{x.size}]")

    def send(self, x: np.ndarray, dest: int, tag: int = 0, timeout: float = FOREVER) -> None:
        self.messages.send(x, x.nbytes, dest, tag, f"{x.dtype}[{x.size}]", timeout)

    def recv(self, x: np.ndarray, source: int, tag: int = 0, timeout: float = FOREVER) -> Any:
        return self.messages.recv(x, x.nbytes, source, tag, f"{x.dtype}[{x.size}]", timeout)

    def wait(self, *operations: Any) -> None:
        for operation in operations:
            self.messages.wait(operation, FOREVER)


def content(length: int, *key: int) -> np.ndarray:
    """The bytes of the message with this key, alike on every rank."""
    return np.random.default_rng([length, *key]).integers(0, 256, length, dtype=np.uint8)


def room(length: int) -> np.ndarray:
    return np.full(length, 77, dtype=np.uint8)


def run_rank(
    program: Program, settings: dict[str, Any], rank: int, fd: int, pids: list[int]
) -> str:
    """Runs one rank; the outcome is what it raised, or nothing."""
    inside = len(set(pids)) == 1
    peers = [
        ("here", pid, -1 if inside or pid == os.getpid() else os.pidfd_open(pid)) for pid in pids
    ]
    crowded = len(pids) > len(os.sched_getaffinity(0))
    engine = _native.Engine(fd, rank, peers, crowded)
    me = Rank(rank, len(pids), _native.PointToPoint(engine), engine)
    try:
        program(me, **settings)
    except Exception as error:
        outcome = f"{type(error).__name__}: {error}"
    else:
        outcome = ""
    if me.messages is not None:
        me.messages.close()
    engine.close()
    return outcome


def main(programs: dict[str, Program]) -> None:
    """Runs the program and with the settings named on the command line.

    A line of JSON on standard input says which ranks this process is: one, or all of them as its
    threads. It prints what each raised.
    """
    program, settings = programs[sys.argv[1]], json.loads(sys.argv[2])
    order = json.loads(sys.stdin.readline())
    outcomes: dict[int, str] = {}

    def run(rank: int) -> None:
        outcomes[rank] = run_rank(program, settings, rank, order["fd"], order["pids"])

    if len(order["ranks"]) == 1:
        run(order["ranks"][0])
    else:
        threads = [threading.Thread(target=run, args=(rank,)) for rank in order["ranks"]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    print(json.dumps(outcomes))
