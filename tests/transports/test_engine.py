"""The native engine by itself: two ranks as threads over one region, and everything it refuses."""

from __future__ import annotations

import mmap
import os
import struct
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from soak.bad_bytes import areas

from transports import _native
from transports.errors import (
    AbortedError,
    CollectiveError,
    CollectiveTimeout,
    MismatchError,
    PeerLostError,
)
from transports.plan import Space
from transports.shm.connection import Geometry
from transports.shm.memory import allocate

GEOMETRY = {
    "ranks": 2, "depth": 2, "slots": 2, "slot_bytes": 128, "lane_slots": 2, "lane_bytes": 64,
}  # fmt: skip
INPUT, OUTPUT, SCRATCH = Space.INPUT, Space.OUTPUT, Space.SCRATCH
FLOAT64_SUM = (3, 0, False)


class Region:
    """A formatted region with both ranks in this process."""

    def __init__(self, watched=False):
        self.descriptor = allocate(_native.region_bytes(**GEOMETRY), "test-region")
        _native.format_region(self.descriptor, **GEOMETRY)
        watch = (lambda: os.pidfd_open(os.getpid())) if watched else lambda: -1
        self.engines = [
            _native.Engine(
                self.descriptor, rank, [("here", os.getpid(), watch()) for _ in range(2)], True
            )
            for rank in (0, 1)
        ]

    def bytes(self):
        return mmap.mmap(self.descriptor, 0)

    def close(self):
        for engine in self.engines:
            engine.close()
        os.close(self.descriptor)


@pytest.fixture
def region():
    made = Region()
    yield made
    made.close()


def exchange(rank, count, text="exchange", size=2, slot_bytes=128, item=8, op=FLOAT64_SUM):
    """A call in which two ranks send each other all they have, and add it up."""
    peer = 1 - rank
    plan = _native.Plan(
        rank, size, 1, [0], [0], [], 1,
        [
            ([0], [], [peer], [(INPUT, 0)], [], 0, [], []),
            ([0], [peer], [], [(INPUT, 0)], [(OUTPUT, 0)], int(peer < rank), [], []),
        ],
    )  # fmt: skip
    return _native.Call(plan, [count], item, op, slot_bytes, text)


def both(work):
    """What `work(rank)` returns or raises on both ranks at once."""

    def run(rank):
        try:
            return work(rank)
        except Exception as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(run, (0, 1)))


def run(region, rank, call, x, out, timeout=20.0):
    region.engines[rank].execute(call, x, out, timeout, False)
    return out


@pytest.mark.parametrize("count", [0, 1, 5, 6, 16, 17, 1000])
def test_two_ranks_exchange(region, count):
    calls = [exchange(rank, count) for rank in (0, 1)]
    for turn in range(20):
        xs = [np.arange(count) + rank + turn * 1.0 for rank in (0, 1)]
        found = both(lambda rank, xs=xs: run(region, rank, calls[rank], xs[rank], np.zeros(count)))
        for each in found:
            assert np.array_equal(each, xs[0] + xs[1])
    assert [engine.calls for engine in region.engines] == [20, 20]
    assert calls[0].passes == max(1, -(-count // 16))
    assert (calls[0].input_bytes, calls[0].output_bytes) == (8 * count, 8 * count)
    assert calls[0].text == "exchange" and calls[0].scratch_bytes == 0
    assert region.engines[0].slot_bytes == 128


def test_in_place(region):
    xs = [np.arange(100.0) * (rank + 1) for rank in (0, 1)]
    both(lambda rank: run(region, rank, exchange(rank, 100), xs[rank], xs[rank]))
    assert np.array_equal(xs[0], 3 * np.arange(100)) and np.array_equal(xs[0], xs[1])


def test_average(region):
    calls = [exchange(rank, 50, op=(3, 0, True)) for rank in (0, 1)]
    found = both(lambda r: run(region, r, calls[r], np.full(50, float(r)), np.zeros(50)))
    assert found[0].tolist() == [0.5] * 50


def test_memory_that_does_not_do_is_refused_before_anything_is_sent(region):
    call = exchange(0, 4)
    x, out = np.zeros(4), np.zeros(8)
    read_only = np.zeros(4)
    read_only.flags.writeable = False
    engine = region.engines[0]
    for given, taken, kind, words in (
        (x[:3].copy(), x, ValueError, "input: expected at least 32 bytes, found 24"),
        (x, out[:2].copy(), ValueError, "output: expected at least 32 bytes, found 16"),
        (None, out, ValueError, "input: expected at least 32 bytes, found 0"),
        (x, None, ValueError, "output: expected at least 32 bytes, found 0"),
        (x, read_only, (ValueError, BufferError), "read-only"),
        (out[:4], out[1:5], ValueError, "x and out overlap"),
        (out[1:5], out[:4], ValueError, "x and out overlap"),
        ([1.0] * 4, out, TypeError, "list"),
        (x, 1 << 80, (OverflowError, ValueError), "large"),
    ):
        with pytest.raises(kind, match=words):
            engine.execute(call, given, taken, 1.0, False)
    assert engine.calls == 0 and not engine.broken


def test_calls_of_another_communicator_are_refused(region):
    for call in (exchange(1, 4), exchange(0, 4, size=3), exchange(0, 4, slot_bytes=256)):
        with pytest.raises(CollectiveError, match="made for another communicator"):
            region.engines[0].execute(call, np.zeros(4), np.zeros(4), 1.0, False)
    assert region.engines[0].calls == 0


def test_calls_that_do_not_fit_name_both_sides(region):
    found = both(
        lambda rank: run(region, rank, exchange(rank, 4, f"call {rank}"), np.ones(4), np.ones(4))
    )
    for error in found:
        assert isinstance(error, MismatchError)
        assert "call 0 #1" in str(error) and "call 1 #1" in str(error)
    assert str(found[0]) == str(found[1])
    with pytest.raises(MismatchError, match="different calls"):
        region.engines[0].check([])


def test_lengths_that_do_not_fit_are_told(region):
    found = both(lambda rank: run(region, rank, exchange(rank, 4 + rank), np.ones(5), np.ones(5)))
    assert all(isinstance(error, MismatchError) for error in found)
    assert "bytes, expected" in str(found[0])


def test_a_damaged_message_is_not_followed(region):
    call = exchange(1, 10)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(both, lambda rank: rank and run(
            region, 1, call, np.ones(10), np.ones(10)))  # fmt: skip
        with region.bytes() as memory:
            head = struct.pack("=II", 1, 80)  # the first message, of 80 bytes
            while (at := next((i for i in range(0, len(memory), 64)
                               if memory[i : i + 8] == head), None)) is None:  # fmt: skip
                pass
            memory[at + 16 : at + 20] = struct.pack("=I", 99)  # in a slot that does not exist
        with pytest.raises(MismatchError, match=r"rank 1 .*damaged message"):
            region.engines[0].execute(exchange(0, 10), np.ones(10), np.ones(10), 20.0, False)
        assert other.result()[1].tolist() == [2.0] * 10  # what came to rank 1 was sound
    with pytest.raises(MismatchError, match="damaged message"):
        region.engines[1].check([])


@pytest.mark.parametrize("sent, acknowledged", [(0, 1000), (2, 1), (2, 2)])
def test_an_acknowledgement_that_the_reader_has_not_left_frees_no_slot(region, sent, acknowledged):
    """Neither of what was never sent, nor of what is there and has not been read."""
    plan = _native.Plan(0, 2, 1, [0], [], [], 1, [([0], [], [1], [(INPUT, 0)], [], 0, [], [])])
    one, many = (_native.Call(plan, [count], 8, None, 128, "one way") for count in (16, 100))
    for _ in range(sent):
        run(region, 0, one, np.ones(16), np.zeros(0))
    with region.bytes() as memory:
        shape = {name: value for name, value in GEOMETRY.items() if name != "ranks"}
        _, acks = [each.begin for each in areas(Geometry(**shape), 2) if each.name == "acks"]
        # What rank 1 has released of rank 0's, which then finds no room for its third message.
        memory[acks : acks + 4] = struct.pack("=I", acknowledged)
    with pytest.raises(MismatchError, match=r"rank 1 .* acknowledged messages that it never got"):
        run(region, 0, many, np.ones(100), np.zeros(0), timeout=5.0)


def test_where_nothing_is_known_of_slots_nobody_is_waited_for():
    """As of a call that is made without saying how many messages may be on their way."""
    made = Region(watched=True)
    made.engines[0].lend = 2
    plan = _native.Plan(0, 2, 1, [0], [], [], 1, [([0], [], [1], [(INPUT, 0)], [], 0, [], [])])
    call = _native.Call(plan, [16], 8, None, 128, "one way")
    run(made, 0, call, np.ones(16), np.zeros(0), timeout=5.0)
    assert made.engines[0].lent == 0


def test_a_lent_message_is_not_followed_where_nothing_is():
    """As between processes: with descriptors that watch them, here the only one."""
    made = Region(watched=True)
    for engine in made.engines:
        engine.lend = 2
    calls = [exchange(rank, 10) for rank in (0, 1)]
    found = both(lambda rank: run(made, rank, calls[rank], np.ones(10), np.zeros(10)))
    assert [each.tolist() for each in found] == [[2.0] * 10] * 2
    assert [engine.lent for engine in made.engines] == [1, 1]
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(both, lambda rank: rank and run(
            made, 1, calls[1], np.ones(10), np.ones(10)))  # fmt: skip
        with made.bytes() as memory:
            head = struct.pack("=II", 2, 80)  # the second message, of 80 bytes
            while (at := next((i for i in range(0, len(memory), 64)
                               if memory[i : i + 8] == head), None)) is None:  # fmt: skip
                pass
            assert struct.unpack("=I", memory[at + 16 : at + 20]) == (0xFFFFFFFE,)
            memory[at + 24 : at + 32] = struct.pack("=Q", 4096)
        with pytest.raises(MismatchError, match=r"rank 1 .*damaged message"):
            made.engines[0].execute(calls[0], np.ones(10), np.ones(10), 20.0, False)
        assert isinstance(other.result()[1], MismatchError)  # rank 0 never had its own copied
    made.close()


def test_closing(region):
    first, second = region.engines
    call = exchange(0, 4)
    second.close()
    second.close()
    assert second.closed and not first.closed
    with pytest.raises(CollectiveError, match="closed"):
        second.execute(exchange(1, 4), np.ones(4), np.ones(4), 1.0, False)
    gone = r"rank 1 \(pid \d+ on here\) closed its communicator.*exchange #1"
    with pytest.raises(PeerLostError, match=gone):
        first.execute(call, np.ones(4), np.ones(4), 20.0, False)
    assert first.broken
    with pytest.raises(PeerLostError, match="rank 1"):
        first.execute(call, np.ones(4), np.ones(4), 20.0, False)


def test_a_deadline(region):
    with pytest.raises(
        CollectiveTimeout, match=r"exchange #1: rank 0 has waited \d+\.\d+ s.* rank 1"
    ):
        region.engines[0].execute(exchange(0, 4), np.ones(4), np.ones(4), 0.05, True)
    with pytest.raises(CollectiveTimeout, match="exchange"):
        region.engines[1].execute(exchange(1, 4), np.ones(4), np.ones(4), 1.0, False)


def test_giving_up_is_told(region):
    region.engines[1].abort("rank 1 raised something")
    for engine in region.engines:
        with pytest.raises(AbortedError, match="rank 1 raised something"):
            engine.execute(exchange(0, 4), np.ones(4), np.ones(4), 1.0, False)
    with pytest.raises(AbortedError):  # the first trouble is what all raise
        region.engines[0].mismatch("too late")


def test_a_mismatch_may_be_declared(region):
    with pytest.raises(MismatchError, match="they do not fit"):
        region.engines[0].mismatch("they do not fit")
    with pytest.raises(MismatchError, match="they do not fit"):
        region.engines[1].check([])


def test_one_call_at_a_time(region):
    call = exchange(0, 4)
    thread = threading.Thread(target=lambda: run(region, 0, call, np.ones(4), np.ones(4)))
    thread.start()
    while region.engines[0].calls == 0:
        pass
    with pytest.raises(CollectiveError, match="two collectives at once"):
        region.engines[0].execute(exchange(0, 4), np.ones(4), np.ones(4), 1.0, False)
    assert run(region, 1, exchange(1, 4), np.ones(4), np.ones(4)).tolist() == [2] * 4
    thread.join()


GOOD = ([0], [1], [], [(INPUT, 0)], [(OUTPUT, 0)], 0, [], [])


@pytest.mark.parametrize(
    "change, words",
    [
        ({"rank": 2}, "rank must be below its size"),
        ({"size": 0}, "rank must be below its size"),
        ({"widest": 0}, "at least one chunk"),
        ({"inputs": [1]}, "input chunk must be below 1, found 1"),
        ({"outputs": [7]}, "output chunk must be below 1, found 7"),
        ({"scratch": [1]}, "scratch chunk must be below 1"),
        ({"instruction": ([3], [1], [], [], [], 0, [], [])}, "chunk must be below 1, found 3"),
        ({"instruction": ([0], [2], [], [], [], 0, [], [])}, "source must be below 2, found 2"),
        ({"instruction": ([0], [], [9], [], [], 0, [], [])}, "target must be below 2, found 9"),
        ({"instruction": ([0], [1], [], [(9, 0)], [], 0, [], [])}, "a space is 0..3, found 9"),
        (
            {"instruction": ([0], [1], [], [(INPUT, 0)], [], 5, [], [])},
            "own_at is beyond the sources",
        ),
        ({"instruction": ([0], [0], [], [], [], 0, [], [])}, "cannot message itself"),
        (
            {"size": 3, "instruction": ([0], [1, 2], [], [], [(OUTPUT, 0)], 0, [], [])},
            "several sources reads",
        ),
    ],
)
def test_a_plan_out_of_range_is_refused(change, words):
    given = {"rank": 0, "size": 2, "inputs": [0], "outputs": [0], "scratch": [], "widest": 1,
             "instruction": GOOD, **change}  # fmt: skip
    with pytest.raises(ValueError, match=words):
        _native.Plan(
            given["rank"], given["size"], 1, given["inputs"], given["outputs"], given["scratch"],
            given["widest"], [given["instruction"]],
        )  # fmt: skip


@pytest.mark.parametrize(
    "instruction, widest, arguments, words",
    [
        (GOOD, 1, ([1, 2, 3], 8, FLOAT64_SUM, 128), "expected 2 chunk lengths, found 3"),
        (GOOD, 1, ([1, 1], 0, None, 128), "at least one byte"),
        (GOOD, 1, ([1, 1], 4, FLOAT64_SUM, 128), "element size and dtype do not agree"),
        (GOOD, 1, ([1, 1], 8, (99, 0, False), 128), "no such dtype or operation"),
        (GOOD, 1, ([1, 1], 8, (3, 99, False), 128), "no such dtype or operation"),
        (GOOD, 1, ([1, 1], 8, (3, 4, False), 128), "no kernel for this dtype and operation"),
        (GOOD, 1, ([1, 1], 8, None, 128), "a plan that reduces needs an operation"),
        (GOOD, 9, ([1, 1], 8, FLOAT64_SUM, 64), "64 bytes cannot hold 9 elements of 8"),
        (
            ([0], [], [1], [(SCRATCH, 0)], [], 0, [], []), 1, ([1, 1], 8, None, 128),
            "a place names a chunk that its space does not hold",
        ),
        (
            ([1], [], [1], [(INPUT, 0)], [], 0, [], []), 1, ([1, 2], 8, None, 128),
            "a copy between chunks of different lengths",
        ),
    ],
)  # fmt: skip
def test_a_call_that_does_not_fit_its_plan_is_refused(instruction, widest, arguments, words):
    plan = _native.Plan(0, 2, 2, [0], [0], [], widest, [instruction])
    with pytest.raises(ValueError, match=words):
        _native.Call(plan, *arguments, "text")


@pytest.mark.parametrize(
    "change, words",
    [
        ({"ranks": 0}, "ranks >= 1"),
        ({"depth": 1}, "depth and slots a power of two from 2 on"),
        ({"depth": 3}, "depth and slots a power of two"),
        ({"slots": 1}, "slots a power of two from 2 on"),
        ({"slots": 6}, "slots a power of two"),
        ({"lane_slots": 1}, "lane slots >= 2"),
        ({"slot_bytes": 100}, "multiple of 64"),
        ({"slot_bytes": 0}, "multiple of 64"),
        ({"slot_bytes": 1 << 31}, "at most 1 GiB"),
        ({"lane_bytes": 65}, "multiple of 64"),
        ({"ranks": 2**32 - 1, "depth": 2**31}, r"more than 2\^60 bytes"),
    ],
)
def test_a_geometry_no_engine_can_use_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        _native.region_bytes(**{**GEOMETRY, **change})


def test_memory_that_is_no_region_is_refused(region):
    people = [("here", os.getpid(), -1)] * 2
    with pytest.raises(ValueError, match="no such rank"):
        _native.Engine(region.descriptor, 2, people, False)
    other = allocate(_native.region_bytes(**GEOMETRY), "test-region")
    small = allocate(4096, "test-region")
    try:
        for descriptor in (other, small):
            with pytest.raises(RuntimeError, match="was not formatted"):
                _native.Engine(descriptor, 0, people, False)
        with pytest.raises(ValueError, match="too small"):
            _native.format_region(small, **GEOMETRY)
        _native.format_region(other, **GEOMETRY)
        with mmap.mmap(other, 0) as memory:
            (version,) = struct.unpack("=I", memory[8:12])
            memory[8:12] = struct.pack("=I", version + 1)
            with pytest.raises(RuntimeError, match=f"layout version {version + 1}, expected"):
                _native.Engine(other, 0, people, False)
            memory[8:12] = struct.pack("=I", version)
            at = memory.find(struct.pack("=III", 2, 2, 2), 8, 64)
            memory[at : at + 4] = struct.pack("=I", 1 << 20)
            with pytest.raises(RuntimeError, match="header does not fit its size"):
                _native.Engine(other, 0, people, False)
    finally:
        os.close(other)
        os.close(small)
    with pytest.raises(OSError, match="Bad file descriptor"):
        _native.Engine(987_654, 0, people, False)


# Where things lie in a region: see Header and TroubleBoard in transports/native/region.hpp.
GEOMETRY_AT = 16
GEOMETRY_FIELDS = {
    "ranks": (0, "=I"), "depth": (4, "=I"), "slots": (8, "=I"), "slot_bytes": (16, "=Q"),
    "lane_slots": (24, "=I"), "lane_bytes": (32, "=Q"),
}  # fmt: skip
TROUBLE_AT = 64
SPOKEN_AT = TROUBLE_AT + 8256


@pytest.mark.parametrize(
    "changes",
    [
        {"slot_bytes": 2**64 - 64},  # a slot and the room for its shift: 0 bytes
        {"lane_bytes": 2**63},
        {"lane_bytes": 0},  # a long message would never end
        {"lane_bytes": 2**31 + 64},
        {"slot_bytes": 100},
        {"slots": 2**24},  # beyond what a descriptor can name
        {"depth": 2**31},
        {"lane_slots": 2**32 - 1},
        {"ranks": 2**32 - 1, "depth": 2**31, "lane_bytes": 2**63 + 64},
        {"ranks": 2**26, "depth": 2**31, "slots": 2**23, "lane_slots": 2**31},
    ],
)
def test_a_header_whose_sizes_pass_2_to_64_is_refused(region, changes):
    """Another process may write there what it likes; sums that wrap must not make it seem small."""
    with region.bytes() as memory:
        for name, value in changes.items():
            offset, form = GEOMETRY_FIELDS[name]
            struct.pack_into(form, memory, GEOMETRY_AT + offset, value)
    with pytest.raises(RuntimeError, match="header does not fit its size"):
        _native.Engine(region.descriptor, 0, [("here", os.getpid(), -1)] * 2, False)


@pytest.mark.parametrize("peers", [1, 3])
def test_a_region_of_other_ranks_is_refused(region, peers):
    with pytest.raises(ValueError, match=f"is one of 2 ranks, expected {peers}"):
        _native.Engine(region.descriptor, 0, [("here", os.getpid(), -1)] * peers, False)


def test_trouble_that_anybody_wrote_is_raised_and_printable(region):
    text = b"\x1b[2Jgone\x7f\x00"
    with region.bytes() as memory:
        memory[TROUBLE_AT + 16 : TROUBLE_AT + 16 + len(text)] = text
        struct.pack_into("=II", memory, TROUBLE_AT + 4, 77, 2**32 - 1)  # no such kind, no such rank
        struct.pack_into("=I", memory, TROUBLE_AT, 2)  # published
    with pytest.raises(CollectiveError) as caught:
        region.engines[0].execute(exchange(0, 4), np.ones(4), np.ones(4), 5.0, False)
    assert str(caught.value) == "?[2Jgone?"


@pytest.mark.parametrize("state", [1, 3, 2**32 - 1])
def test_trouble_that_is_never_written_down_holds_up_nobody(region, state):
    with region.bytes() as memory:
        struct.pack_into("=I", memory, TROUBLE_AT, state)
    with pytest.raises(CollectiveTimeout, match="exchange #1"):
        region.engines[0].execute(exchange(0, 4), np.ones(4), np.ones(4), 0.05, False)


@pytest.mark.parametrize("spoken", [-(2**63), 2**63 - 1, -1])
def test_a_wrong_time_of_the_last_word_silences_nobody(region, spoken):
    aloud = []

    def describe(text, sightings, is_aloud):
        aloud.append(is_aloud)
        return text

    region.engines[0].set_describe(0.02, describe, lambda rank: "", lambda: False)
    with region.bytes() as memory:
        struct.pack_into("=q", memory, SPOKEN_AT, spoken)
    with pytest.raises(CollectiveTimeout):
        region.engines[0].execute(exchange(0, 4), np.ones(4), np.ones(4), 2.0, False)
    assert True in aloud
