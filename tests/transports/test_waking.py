"""Who moves a counter wakes those who sleep on it, whether sleepers fence for all or not.

Ranks are threads here. A thread of the test sleeps on the very word on which a rank sleeps: it is
woken if, and only if, the other rank has seen that somebody sleeps. (A rank that is not woken looks
by itself after some milliseconds, so that nothing else would show it.)
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from transports import _native
from transports.plan import Space
from transports.shm.memory import allocate

GEOMETRY = {
    "ranks": 2, "depth": 2, "slots": 2, "slot_bytes": 128, "lane_slots": 2, "lane_bytes": 64,
}  # fmt: skip
FUTEX = {"x86_64": 202, "aarch64": 98}[platform.machine()]
LINE = 64
TURNS = 20


def call_of(rank, text="swap"):
    """Both ranks send each other 80 bytes, which need a slot."""
    plan = _native.Plan(
        rank, 2, 2, [rank], [0, 1], [], 1,
        [
            ([rank], [], [1 - rank], [(Space.INPUT, rank)], [(Space.OUTPUT, rank)], 0, [], []),
            ([1 - rank], [1 - rank], [], [], [(Space.OUTPUT, 1 - rank)], 0, [], []),
        ],
    )  # fmt: skip
    return _native.Call(plan, [10, 10], 8, None, 128, text)


class Region:
    """Two ranks, and the words of the region that tests look at."""

    def __init__(self, expedited):
        self.descriptor = allocate(_native.region_bytes(**GEOMETRY), "test-region")
        _native.format_region(self.descriptor, **GEOMETRY)
        people = [("here", os.getpid(), -1)] * 2
        self.engines = [_native.Engine(self.descriptor, rank, people, True) for rank in (0, 1)]
        self.calls = [call_of(0), call_of(1)]
        self.memory = mmap.mmap(self.descriptor, 0)
        here = struct.pack("=II", 1, os.getpid())
        self.parts = [
            at
            for at in range(0, len(self.memory), mmap.PAGESIZE)
            if self.memory[at : at + 8] == here
        ]
        assert len(self.parts) == 2
        if not expedited:
            for part in self.parts:
                assert self.word(part + 8) == 1, "this kernel has membarrier, but it is not used"
                self.memory[part + 8 : part + 12] = bytes(4)

    def word(self, at):
        return struct.unpack("=I", self.memory[at : at + 4])[0]

    def run(self, rank):
        out = np.zeros(20)
        x = np.full(10, float(rank))
        self.engines[rank].execute(self.calls[rank], x, out, 20.0, True)
        assert out.tolist() == [0.0] * 10 + [1.0] * 10

    def close(self):
        for engine in self.engines:
            engine.close()
        self.memory.close()
        os.close(self.descriptor)


def sleep_on(address, value, ready, ids):
    """0 if woken; the error otherwise. `ids` gets the thread's."""
    ids.append(threading.get_native_id())
    libc = ctypes.CDLL(None, use_errno=True)
    patience = ctypes.create_string_buffer(struct.pack("ll", 2, 0))
    ready.set()
    found = libc.syscall(FUTEX, ctypes.c_void_p(address), 0, value, patience, None, 0)
    return 0 if found == 0 else ctypes.get_errno()


def in_futex(thread):
    return "futex" in Path(f"/proc/self/task/{thread}/wchan").read_text()


@pytest.mark.parametrize("expedited", [True, False], ids=["expedited", "fences"])
def test_a_rank_that_sleeps_is_woken(expedited):
    region = Region(expedited)
    try:
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(region.run, (0, 1)))
            first = struct.pack("=II", 1, 80)  # sequence and length of the first message
            places = [
                at
                for at in range(0, len(region.memory), LINE)
                if region.memory[at : at + 8] == first and at > region.parts[1]
            ]
            assert len(places) == 1, "that of rank 1 to rank 0"
            holder = ctypes.c_char.from_buffer(region.memory)
            base = ctypes.addressof(holder)
            woken = 0
            for turn in range(2, TURNS + 2):  # the message's number
                at = places[0] + (LINE if turn % 2 == 0 else 0)
                word = region.word(at)
                assert word == (0 if turn == 2 else turn - 2)
                waiting = pool.submit(region.run, 0)
                ready, ids = threading.Event(), []

                sleeping = pool.submit(sleep_on, base + at, word, ready, ids)
                ready.wait()
                while not in_futex(ids[0]) or region.word(region.parts[0] + LINE) == 0:
                    pass
                region.run(1)
                woken += sleeping.result() == 0
                waiting.result()
            del holder
            # Now and then rank 0 has just looked by itself, and did not sleep.
            assert woken > TURNS * 0.7, woken
    finally:
        region.close()


def test_a_rank_without_membarrier_makes_all_use_fences():
    """The flag of any rank decides: all that a test can see of it is that calls go on."""
    region = Region(True)
    try:
        region.memory[region.parts[1] + 8 : region.parts[1] + 12] = bytes(4)
        with ThreadPoolExecutor(2) as pool:
            for _ in range(50):
                list(pool.map(region.run, (0, 1)))
    finally:
        region.close()
