"""Point-to-point over shared memory: matching, order, progress, and what happens when it fails.

The ranks are processes, or threads of one process; what they do is in
point_to_point_programs.py.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from transports import _native
from transports.errors import CollectiveError, MismatchError

PROGRAMS = Path(__file__).with_name("point_to_point_programs.py")
LANE_BYTES = 1024
GEOMETRY = (4, 4, 1024, 4, LANE_BYTES)
PLACES = ("processes", "threads")


@contextlib.contextmanager
def region(ranks: int) -> Iterator[int]:
    fd = os.memfd_create("collectives-test")
    try:
        os.ftruncate(fd, _native.region_bytes(ranks, *GEOMETRY))
        _native.format_region(fd, ranks, *GEOMETRY)
        yield fd
    finally:
        os.close(fd)


def run(
    program: str,
    ranks: int,
    place: str = "processes",
    killed: tuple[int, ...] = (),
    **settings: object,
) -> list[str]:
    """Runs a program on all ranks and returns what each raised, "" for nothing."""
    shares = [[rank] for rank in range(ranks)] if place == "processes" else [list(range(ranks))]
    command = [sys.executable, str(PROGRAMS), program, json.dumps(settings)]
    outcomes = [""] * ranks
    with region(ranks) as fd, contextlib.ExitStack() as ending:
        processes = []
        for _ in shares:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=[fd]
            )
            ending.callback(process.wait)
            ending.callback(process.kill)
            processes.append(process)
        pids = [
            process.pid for process, share in zip(processes, shares, strict=True) for _ in share
        ]
        for process, share in zip(processes, shares, strict=True):
            assert process.stdin is not None
            print(
                json.dumps({"fd": fd, "ranks": share, "pids": pids}), file=process.stdin, flush=True
            )
        # Nobody is reaped before all have ended: a slow one may still open the others' pidfds.
        for process in processes:
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        for process, share in zip(processes, shares, strict=True):
            output, _ = process.communicate(timeout=90)
            if share[0] in killed:
                assert process.returncode == -9
                continue
            assert process.returncode == 0
            for rank, outcome in json.loads(output).items():
                outcomes[int(rank)] = outcome
    return outcomes


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "program",
    [
        "tags_out_of_order",
        "order_within_a_tag",
        "many_pending",
        "long_both_ways",
        "long_unreceived_delays_nothing",
        "memory_of_dropped_operations",
        "moves_while_the_user_computes",
        "several_threads",
    ],
)
def test_two_ranks(program, place):
    assert run(program, 2, place) == ["", ""]


@pytest.mark.parametrize("place", PLACES)
def test_any_source(place):
    assert run("any_source", 4, place) == [""] * 4


@pytest.mark.parametrize("ranks", [1, 2])
def test_to_oneself(ranks):
    assert run("to_oneself", ranks) == [""] * ranks


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("ranks", "messages"), [(1, 50), (2, 300), (3, 300), (8, 400)])
def test_random_program(ranks, messages, place):
    assert run("random_program", ranks, place, seed=ranks, messages=messages) == [""] * ranks


@pytest.mark.full
@pytest.mark.parametrize("seed", range(20))
def test_many_random_programs(seed):
    ranks = 2 + seed % 7
    assert run("random_program", ranks, seed=seed, messages=1000) == [""] * ranks


def test_ping_pong():
    assert run("ping_pong", 2, count=50_000) == ["", ""]


def test_an_interrupted_wait_leaves_the_operation_under_way():
    assert run("interrupted", 2) == ["", ""]


def test_a_forked_child_lets_go():
    assert run("forked", 2) == ["", ""]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("sent", "received"),
    [
        ("float32*4", "float32*3"),  # whole
        ("float32*4", "int32*4"),
        ("float32*4", "float32*4000"),
        ("uint8*5000", "uint8*5001"),  # announced
        ("uint8*5000", "int8*5000"),
        ("uint8*5000", "uint8*0"),
    ],
)
def test_a_mismatch_names_both_sides_on_both(sent, received, place):
    outcomes = run("mismatch", 2, place, sent=sent, received=received)
    assert outcomes[0] == outcomes[1]
    (dtype, length), (other, expected) = sent.split("*"), received.split("*")
    sent_bytes = int(length) * np.dtype(dtype).itemsize
    received_bytes = int(expected) * np.dtype(other).itemsize
    assert outcomes[0] == (
        f"MismatchError: point-to-point with tag 7: rank 0 sends {dtype}[{length}] "
        f"({sent_bytes} bytes), rank 1 receives {other}[{expected}] ({received_bytes} bytes)"
    )


def test_a_mismatch_with_oneself():
    (outcome,) = run("mismatch_with_oneself", 1)
    assert "rank 0 sends int16[5] (10 bytes), rank 0 receives int16[4] (8 bytes)" in outcome


@pytest.mark.parametrize(
    ("role", "text"),
    [
        ("sender", "before it sent uint8[8] with tag 3 to rank 0"),
        ("tested", "before it sent uint8[8] with tag 3 to rank 0"),
        ("receiver", "before it received uint8[102407] with tag 3 from rank 0"),
        ("any", "every other rank ended before one sent uint8[8] with tag 3 to rank 0"),
        ("posted", "every other rank ended before one sent uint8[8] with tag 3 to rank 0"),
    ],
)
def test_a_killed_peer(role, text):
    outcome = run("lost", 2, killed=(1,), role=role)[0]
    assert outcome.startswith("PeerLostError: ") and text in outcome
    if role != "any" and role != "posted":
        assert "rank 1 (pid " in outcome and " on here)" in outcome


@pytest.mark.parametrize("place", PLACES)
def test_a_peer_that_has_closed(place):
    outcome = run("closed_peer", 2, place)[0]
    assert outcome.startswith("PeerLostError: rank 1 (pid ")


@pytest.mark.parametrize("place", PLACES)
def test_a_deadline_names_peer_and_tag_to_all(place):
    outcomes = run("late", 2, place)
    assert outcomes[0] == outcomes[1]
    assert re.match(r"CollectiveTimeout: rank 1 has waited \d+\.\d+ s ", outcomes[0])
    assert "to receive uint8[8] with tag 4 from rank 0 (pid " in outcomes[0]


@pytest.mark.parametrize("place", PLACES)
def test_close_with_pending_operations(place):
    assert run("close_with_pending", 2, place) == [
        "CollectiveError: the communicator is closed",
        "CollectiveError: the communicator is closed",
    ]


@pytest.fixture
def pair():
    """Two ranks in this thread, and their memory: a list, emptied at last, as pytest keeps it."""
    with region(2) as fd:
        engines = [_native.Engine(fd, rank, [("here", 1, -1)] * 2, True) for rank in range(2)]
        ends = [_native.PointToPoint(engine) for engine in engines]
        with mmap.mmap(fd, 0) as memory:
            found = [*ends, memory]
            yield found
            found.clear()
        for end in ends:
            end.close()
        for engine in engines:
            engine.close()


def test_bad_arguments(pair):
    one, other, _ = pair
    x = bytearray(8)
    for dest in (-1, 2):
        with pytest.raises(ValueError, match=rf"dest: expected 0\.\.1, found {dest}"):
            one.post_send(x, 8, dest, 0, "")
    with pytest.raises(ValueError, match="tag: expected 0 or more, found -1"):
        one.post_send(x, 8, 1, -1, "")
    for source in (-2, 2):
        with pytest.raises(ValueError, match=rf"source: expected 0\.\.1 or -1 for any.*{source}"):
            one.post_recv(x, 8, source, 0, "")
    with pytest.raises(ValueError, match="tag: expected 0 or more, or -1 for any, found -2"):
        one.post_recv(x, 8, 0, -2, "")
    with pytest.raises(ValueError, match="buffer: expected at least 9 bytes, found 8"):
        one.post_recv(x, 9, 0, 0, "")
    with pytest.raises((TypeError, BufferError)):
        one.post_recv(b"constant", 8, 0, 0, "")
    receive = one.post_recv(x, 8, 1, 0, "")
    with pytest.raises(ValueError, match="posted on another communicator"):
        other.wait(receive, 1.0)
    with pytest.raises(ValueError, match="posted on another communicator"):
        other.test(receive)
    assert (receive.done, receive.source, receive.tag, receive.bytes) == (False, -1, -1, 8)


def test_an_address_is_a_buffer_too(pair):
    one, other, _ = pair
    x, y = np.arange(5000.0), np.zeros(5000)
    send = one.post_send(x.ctypes.data, x.nbytes, 1, 0, "float64[5000]", keep=x)
    receive = other.post_recv(y.ctypes.data, y.nbytes, 0, 0, "", keep=y)
    while not (one.test(send) and other.test(receive)):
        pass
    np.testing.assert_array_equal(x, y)


WHOLE, ANNOUNCEMENT, CLEAR, FRAGMENT = range(1, 5)


@pytest.mark.parametrize(
    "packets",
    [
        [(0, 0, 0, 0)],
        [(9, 0, 0, 0)],
        [(WHOLE, 0, 0, LANE_BYTES + 1)],
        [(WHOLE, 0, 0, 2**64 - 1)],
        [(WHOLE, 0, 2**32 - 1, 8)],
        [(ANNOUNCEMENT, 0, 0, LANE_BYTES)],
        [(ANNOUNCEMENT, 0, 2**31, 5000)],
        [(CLEAR, 0, 0, 0)],
        [(FRAGMENT, 0, 0, 0)],
        [(ANNOUNCEMENT, 3, 0, 5000), (ANNOUNCEMENT, 3, 0, 5000)],
        [(ANNOUNCEMENT, 3, 0, 5000), (FRAGMENT, 4, 0, 5000)],
    ],
)
def test_damaged_packets_touch_nothing_and_are_refused(pair, packets):
    """What another process writes is never trusted: here it is written into its memory."""
    victim, forger, memory = pair
    rooms = [np.zeros(5000, dtype=np.uint8) for _ in range(2)]
    for x in rooms:
        victim.post_recv(x, 5000, 1, 0, "")
    send = forger.post_send(bytes(1), 1, 0, 1, "find-me-by-this-text")
    assert send.done
    victim.recv(bytearray(1), 1, 1, 1, "", 5.0)
    # sequence, kind, message, tag: 32 bits each; bytes: 64 bits; then the text.
    place = memory.find(b"find-me-by-this-text") - 24
    for sequence, (kind, message, tag, length) in enumerate(packets, start=2):
        place += 64
        memory[place + 4 : place + 16] = np.array([kind, message, tag], dtype=np.uint32).tobytes()
        memory[place + 16 : place + 24] = np.array([length], dtype=np.uint64).tobytes()
        memory[place : place + 4] = np.array([sequence], dtype=np.uint32).tobytes()
    # The thread that looks after the pending receives may have found it before we post.
    with pytest.raises(MismatchError, match=r"rank 1 .* posted a damaged message"):
        victim.wait(victim.post_recv(bytearray(8), 8, 1, 7, ""), 5.0)
    with pytest.raises(MismatchError, match="damaged"):
        forger.send(bytes(1), 1, 0, 0, "", 5.0)
    assert not any(x.any() for x in rooms)


def test_text_of_a_peer_is_made_printable(pair):
    one, other, _ = pair
    one.send(bytes(3), 3, 1, 0, "\u00fc\n and far more text than is carried along", 5.0)
    with pytest.raises(
        MismatchError, match=r"rank 0 sends \?\?\? and far more text th \(3 bytes\)"
    ):
        other.recv(bytearray(2), 2, 0, 0, "two", 5.0)


def test_after_close(pair):
    one, _, _ = pair
    receive = one.post_recv(bytearray(8), 8, 1, 0, "")
    one.close()
    with pytest.raises(CollectiveError, match="closed before the message moved"):
        one.test(receive)
    with pytest.raises(CollectiveError, match="the communicator is closed"):
        one.post_recv(bytearray(8), 8, 1, 0, "")
