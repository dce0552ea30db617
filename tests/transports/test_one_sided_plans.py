"""One-sided plans out of range, and symmetric blocks: what the native module refuses."""

from __future__ import annotations

import mmap
import os

import numpy as np
import pytest

from transports import _native
from transports.plan import Space
from transports.shm.memory import allocate

GEOMETRY = {
    "ranks": 2, "depth": 2, "slots": 2, "slot_bytes": 128, "lane_slots": 2, "lane_bytes": 64,
}  # fmt: skip
INPUT, OUTPUT, SCRATCH = Space.INPUT, Space.OUTPUT, Space.SCRATCH
FLOAT64_SUM = (3, 0, False)


@pytest.fixture
def engine():
    """Rank 1 of two."""
    descriptor = allocate(_native.region_bytes(**GEOMETRY), "test-region")
    try:
        _native.format_region(descriptor, **GEOMETRY)
        made = _native.Engine(descriptor, 1, [("here", os.getpid(), -1)] * 2, True)
        yield made
        made.close()
    finally:
        os.close(descriptor)


PEEK = ([0], [], [], [(INPUT, 0)], [(OUTPUT, 0)], 1, [(1, INPUT)], [])
TELL = ([], [], [1], [], [], 0, [], [])
WHOLE = {"peer_inputs": [[0], [0]], "peer_outputs": [[0], [0]], "remote": [INPUT]}


@pytest.mark.parametrize(
    "instruction, change, words",
    [
        (PEEK, {"peer_inputs": [[0]]}, "says of every rank what lies in its input and output"),
        (PEEK, {"peer_outputs": []}, "says of every rank what lies in its input and output"),
        (PEEK, {"peer_inputs": [[0], [4]]}, "chunk of a peer must be below 1, found 4"),
        (PEEK, {"remote": [0]}, "a remote space is 1 or 2"),
        (PEEK, {"remote": [SCRATCH]}, "a remote space is 1 or 2"),
        (PEEK, {"peer_inputs": [], "peer_outputs": []}, "one-sided plan reaches into"),
        ((*PEEK[:6], [(2, INPUT)], []), {}, "reaches into the input or output of other ranks"),
        ((*PEEK[:6], [(0, INPUT)], []), {}, "reaches into the input or output of other ranks"),
        ((*PEEK[:6], [(1, SCRATCH)], []), {}, "reaches into the input or output of other ranks"),
        ((*PEEK[:6], [], [(1, 0)]), {}, "reaches into the input or output of other ranks"),
        ((*PEEK[:5], 2, [(1, INPUT)], []), {}, "own_at is beyond the sources"),
        ((*PEEK[:3], [], [(OUTPUT, 0)], 0, [(1, INPUT), (1, OUTPUT)], []), {}, "several sources"),
        (([0], [], [], [], [(OUTPUT, 0)], 0, [], []), {}, "an instruction needs an operand"),
        (([0], [], [1], [(INPUT, 0)], [], 0, [], []), {}, "messages of a one-sided plan have no"),
        (([], [1], [1], [], [], 0, [], []), {}, "notifies or waits, and nothing else"),
        (([], [], [], [], [], 0, [], []), {}, "notifies or waits, and nothing else"),
        (([], [1], [], [], [], 0, [(1, INPUT)], []), {}, "notifies or waits, and nothing else"),
        (([], [1], [], [(INPUT, 0)], [], 0, [], []), {}, "notifies or waits, and nothing else"),
        (([0, 0], [], [], [(INPUT, 0)], [], 0, [(1, INPUT)], []), {}, "between 1 and `widest`"),
        (([0], [], [], [(INPUT, 0)] * 2, [], 0, [(1, INPUT)], []), {}, "reads all of its chunks"),
        (([0], [], [], [(INPUT, 0)], [(OUTPUT, 0)] * 2, 0, [], []), {}, "writes all of its chunks"),
    ],
)
def test_a_one_sided_plan_out_of_range_is_refused(instruction, change, words):
    with pytest.raises(ValueError, match=words):
        _native.Plan(0, 2, 1, [0], [0], [], 1, [TELL, instruction], **{**WHOLE, **change})


def test_a_one_sided_plan_reaches_chunks_that_the_peer_has():
    _native.Plan(0, 2, 1, [0], [0], [], 1, [TELL, PEEK], **WHOLE)
    plan = _native.Plan(
        0, 2, 1, [0], [0], [], 1, [TELL, PEEK], **{**WHOLE, "peer_inputs": [[0], []]}
    )
    with pytest.raises(ValueError, match="chunk"):
        _native.Call(plan, [4], 8, FLOAT64_SUM, 128, "peek")


def test_symmetric_blocks():
    size = _native.symmetric_file_bytes(3, 100)
    assert size >= 300 and size % mmap.PAGESIZE == 0
    descriptor = allocate(size, "test-region")
    try:
        block = _native.SymmetricBlock(descriptor, 3, 100)
        parts = [block.part(index, block) for index in range(3)]
        assert [each.nbytes for each in parts] == [100] * 3
        for value, each in enumerate(parts):
            each[:] = value + 1
        assert [set(each.tolist()) for each in parts] == [{1}, {2}, {3}]
        with pytest.raises(IndexError, match="no such part"):
            block.part(3, block)
        for parts_, nbytes in ((0, 10), (3, 1 << 20), (4000, 100), (3, 2**64 - 1)):
            with pytest.raises(ValueError, match=f"a block of {parts_} parts of {nbytes} bytes"):
                _native.SymmetricBlock(descriptor, parts_, nbytes)
        kept, view = block.keep(), parts[0]
        del block, parts, each
        assert view.tolist() == [1] * 100
        del view, kept
    finally:
        os.close(descriptor)


def test_an_engine_takes_only_parts_that_a_block_has(engine):
    descriptor = allocate(_native.symmetric_file_bytes(2, 100), "test-region")
    try:
        block = _native.SymmetricBlock(descriptor, 2, 100)
        assert not engine.has_symmetric
        with pytest.raises(ValueError, match="a block has no such part"):
            engine.add_symmetric(7, block, [0, 2])
        with pytest.raises(ValueError, match="a part is missing for the own rank"):
            engine.add_symmetric(7, block, [0])
        engine.add_symmetric(7, block, [0, 1])
        assert engine.has_symmetric
        own, other = block.part(1, block), block.part(0, block)
        assert engine.is_symmetric(own, 100) and engine.is_symmetric(own[40:], 60)
        assert not engine.is_symmetric(other, 100) and not engine.is_symmetric(np.zeros(9), 72)
        address = own.ctypes.data
        assert engine.is_symmetric(address + 99, 1) and not engine.is_symmetric(address + 99, 2)
        assert not engine.is_symmetric(address + 100, 0)
        engine.remove_symmetric(7)
        engine.remove_symmetric(7)
        assert not engine.has_symmetric and not engine.is_symmetric(own, 100)
    finally:
        os.close(descriptor)


def test_what_may_run_instead_is_the_same_call():
    message = ([0], [], [1], [(INPUT, 0)], [(OUTPUT, 0)], 0, [], [])
    hear = ([], [1], [], [], [], 0, [], [])
    told = _native.Plan(0, 2, 1, [0], [0], [], 1, [message])
    peeks = _native.Plan(0, 2, 1, [0], [0], [], 1, [TELL, hear, PEEK], **WHOLE)
    at_once = _native.Plan(0, 2, 1, [0], [0], [], 1, [PEEK, TELL, hear], **WHOLE)

    def call(plan, length=4):
        return _native.Call(plan, [length], 8, FLOAT64_SUM, 128, "one", 0)

    for root in (None, 1):
        call(told).set_reached(call(peeks), root, False)
        for one, other in ((told, told), (peeks, peeks), (peeks, told)):
            with pytest.raises(ValueError, match="expected the same call by a one-sided plan"):
                call(one).set_reached(call(other), root, False)
        with pytest.raises(ValueError, match="expected the same call by a one-sided plan"):
            call(told).set_reached(call(peeks, length=5), root, False)
        with pytest.raises(ValueError, match="begins with a meeting of all, or of all with"):
            call(told).set_reached(call(at_once), root, False)


def test_what_runs_around_a_root_is_between_it_and_each_other_rank():
    def planned(rank, *instructions):
        space = {"peer_inputs": [[0]] * 3, "peer_outputs": [[0]] * 3, "remote": [INPUT]}
        return _native.Plan(rank, 3, 1, [0], [0], [], 1, list(instructions), **space)

    def call(plan):
        return _native.Call(plan, [4], 8, FLOAT64_SUM, 128, "one", 0)

    def told(rank):
        message = ([0], [], [(rank + 1) % 3], [(INPUT, 0)], [(OUTPUT, 0)], 0, [], [])
        return call(_native.Plan(rank, 3, 1, [0], [0], [], 1, [message]))

    def tell(*peers):
        return ([], [], list(peers), [], [], 0, [], [])

    def hear(*peers):
        return ([], list(peers), [], [], [], 0, [], [])

    def peek(peer):
        return ([0], [], [], [], [(OUTPUT, 0)], 0, [(peer, INPUT)], [])

    own = ([0], [], [], [(INPUT, 0)], [(OUTPUT, 0)], 0, [], [])
    for rank, steps in {
        0: [[tell(1, 2), own, hear(1, 2)], [hear(1, 2), tell(1, 2), peek(1), hear(1, 2)]],
        1: [[hear(0), peek(0), tell(0)], [tell(0), hear(0), peek(0), tell(0)]],
    }.items():
        for each in steps:
            told(rank).set_reached(call(planned(rank, *each)), 0, True)
    for rank, steps in {
        # What the root would hear after telling might be what others told first.
        0: [[tell(1, 2), hear(1, 2)], [hear(1, 2), peek(1)], [tell(1), hear(1)], [hear(1, 2)], []],
        1: [[peek(0), hear(0)], [hear(0), peek(2)], [hear(0, 2)], [hear(0), tell(0)], [tell(0)]],
    }.items():
        for each in steps:
            with pytest.raises(ValueError, match="begins with a meeting of all, or of all with"):
                told(rank).set_reached(call(planned(rank, *each)), 0, True)
