"""What ranks do in test_point_to_point.py: a function a program."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from point_to_point_rank import ANY, FOREVER, LANE_BYTES, LENGTHS, LONG, Rank, content, main, room


def tags_out_of_order(me: Rank) -> None:
    tags = range(len(LENGTHS))
    if me.rank == 0:
        me.wait(*[me.isend(content(LENGTHS[tag], tag), 1, tag) for tag in tags])
    else:
        for tag in reversed(tags):
            x = room(LENGTHS[tag])
            done = me.recv(x, 0, tag)
            assert (done.source, done.tag, done.bytes) == (0, tag, x.nbytes)
            np.testing.assert_array_equal(x, content(LENGTHS[tag], tag))


def order_within_a_tag(me: Rank) -> None:
    lengths = LENGTHS * 5
    if me.rank == 0:
        me.wait(*[me.isend(content(length, at), 1, 5) for at, length in enumerate(lengths)])
    else:
        rooms = [room(length) for length in lengths]
        me.wait(*reversed([me.irecv(x, 0, ANY) for x in rooms]))
        for at, x in enumerate(rooms):
            np.testing.assert_array_equal(x, content(len(x), at))


def any_source(me: Rank) -> None:
    each = 50
    if me.rank != 0:
        for at in range(each):
            me.send(np.array([me.rank, at]), 0, me.rank)
        return
    seen = [0] * me.size
    for _ in range(each * (me.size - 1)):
        x = np.zeros(2, dtype=np.int64)
        done = me.recv(x, ANY, ANY)
        assert (done.source, done.tag) == (x[0], x[0])
        assert x[1] == seen[x[0]], "messages of one source stay in order"
        seen[x[0]] += 1


def many_pending(me: Rank) -> None:
    peer, shuffled = 1 - me.rank, random.Random(me.rank)
    lengths = [LENGTHS[tag % len(LENGTHS)] for tag in range(600)]
    rooms = [room(length) for length in lengths]
    operations = [me.irecv(x, peer, tag) for tag, x in enumerate(rooms)]
    sends = [(tag, content(length, peer, tag)) for tag, length in enumerate(lengths)]
    shuffled.shuffle(sends)
    operations += [me.isend(x, peer, tag) for tag, x in sends]
    shuffled.shuffle(operations)
    me.wait(*operations)
    for tag, x in enumerate(rooms):
        np.testing.assert_array_equal(x, content(len(x), me.rank, tag))


def long_both_ways(me: Rank) -> None:
    peer, length = 1 - me.rank, 5_000_001
    x = room(length)
    receive, send = me.irecv(x, peer), me.isend(content(length, peer), peer)
    me.wait(send, receive)
    np.testing.assert_array_equal(x, content(length, me.rank))


def long_unreceived_delays_nothing(me: Rank) -> None:
    if me.rank == 0:
        long = [me.isend(content(LONG, tag), 1, tag) for tag in range(20)]
        short = me.isend(content(8), 1, 99)
        me.wait(short)
        me.recv(room(0), 1, 100)  # it has come, while no long one has been asked for
        assert not any(operation.done for operation in long)
        me.wait(*long)
    else:
        me.irecv(room(9), 0, 12345)  # never comes
        x = room(8)
        me.recv(x, 0, 99)
        np.testing.assert_array_equal(x, content(8))
        me.send(room(0), 0, 100)
        for tag in range(20):
            x = room(LONG)
            me.recv(x, 0, tag)
            np.testing.assert_array_equal(x, content(LONG, tag))


def to_oneself(me: Rank) -> None:
    for length in (*LENGTHS, LONG):
        x = room(length)
        me.send(content(length), me.rank, 3)  # returns before it is received
        done = me.recv(x, ANY, ANY)
        assert (done.source, done.tag) == (me.rank, 3)
        np.testing.assert_array_equal(x, content(length))
        x = room(length)
        receive = me.irecv(x, me.rank, 4)
        me.send(content(length), me.rank, 4)
        assert receive.done
        np.testing.assert_array_equal(x, content(length))


def mismatch(me: Rank, sent: str, received: str) -> None:
    """`sent` and `received` are each written as dtype*length."""
    mine = sent if me.rank == 0 else received
    dtype, length = mine.split("*")
    x = np.zeros(int(length), dtype=dtype)
    if me.rank == 0:
        me.isend(x, 1, 7)
        me.recv(room(1), 1, 8)  # never comes: the mismatch must end it
    else:
        me.recv(x, 0, 7)


def mismatch_with_oneself(me: Rank) -> None:
    receive = me.irecv(np.zeros(4, dtype=np.int16), me.rank)
    send = me.isend(np.zeros(5, dtype=np.int16), me.rank)
    assert receive.done and send.done
    me.wait(send)


def lost(me: Rank, role: str) -> None:
    if me.rank == 1:
        if role == "posted":
            me.send(content(8), 0, 1)
            me.isend(content(LANE_BYTES), 0, 2)
        os.kill(os.getpid(), signal.SIGKILL)
    if role == "posted":  # first what was posted before the end
        x = room(LANE_BYTES)
        me.recv(x, 1, 2)
        np.testing.assert_array_equal(x, content(LANE_BYTES))
        x = room(8)
        me.recv(x, ANY, ANY)
        np.testing.assert_array_equal(x, content(8))
    if role == "sender":
        me.recv(room(8), 1, 3)
    elif role == "receiver":
        me.send(room(LONG), 1, 3)
    elif role == "tested":
        receive = me.irecv(room(8), 1, 3)
        while not me.messages.test(receive):
            pass
    else:
        me.recv(room(8), ANY, 3)


def closed_peer(me: Rank) -> None:
    if me.rank == 0:
        me.recv(room(8), 1, 3)


def late(me: Rank) -> None:
    """Rank 1 waits in vain; rank 0 hears of it, though it waits longer."""
    me.recv(room(8), 1 - me.rank, 3 + me.rank, timeout=0.1 if me.rank == 1 else FOREVER)


def close_with_pending(me: Rank) -> None:
    x = room(LONG)
    alive = weakref.ref(x)
    operations = [me.irecv(x, 1 - me.rank, 3), me.isend(x, 1 - me.rank, 4)]
    del x
    gc.collect()
    assert alive() is not None, "pending operations keep their memory"
    me.messages.close()
    gc.collect()
    assert alive() is None
    for operation in operations:
        with contextlib.suppress(Exception):
            me.wait(operation)
            raise SystemExit("a closed operation must fail")
    me.messages.close()
    me.send(room(1), 1 - me.rank)


def memory_of_dropped_operations(me: Rank) -> None:
    peer = 1 - me.rank
    dropped = []
    for tag in range(100):
        x = room(LONG if tag % 2 else 8)
        me.irecv(x, peer, tag)
        dropped.append(weakref.ref(x))
    del x
    assert all(alive() is not None for alive in dropped)
    start = me.irecv(room(0), peer, 1000)  # the peer sends nothing of it before it hears from us
    me.send(room(0), peer, 1000)
    me.wait(start)
    me.wait(*[me.isend(content(LONG if tag % 2 else 8), peer, tag) for tag in range(100)])
    end = me.irecv(room(0), peer, 1000)
    me.send(room(0), peer, 1000)
    me.wait(end)


def moves_while_the_user_computes(me: Rank) -> None:
    if me.rank == 0:
        me.send(content(LONG), 1)
        me.isend(content(LONG), 1, 1)
    else:
        rooms = [room(LONG), room(LONG)]
        receives = [me.irecv(x, 0, tag) for tag, x in enumerate(rooms)]
        until = time.monotonic() + FOREVER
        while not all(receive.done for receive in receives):  # `done` moves nothing
            assert time.monotonic() < until
            time.sleep(0.001)
        for x in rooms:
            np.testing.assert_array_equal(x, content(LONG))
        me.send(room(0), 0, 2)
    if me.rank == 0:
        me.recv(room(0), 1, 2)


class Rang(Exception):
    """The alarm of a test."""


def interrupted(me: Rank) -> None:
    if me.rank == 0:
        me.recv(room(0), 1, 9)
        me.send(content(LONG), 1, 3)
        return

    def ring(*_: object) -> None:
        raise Rang

    signal.signal(signal.SIGALRM, ring)
    x = room(LONG)
    receive = me.irecv(x, 0, 3)
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    try:
        me.wait(receive)
    except Rang:
        assert not receive.done
    else:
        raise SystemExit("the alarm did not end the wait")
    me.send(room(0), 0, 9)
    me.wait(receive)  # the operation was still under way
    np.testing.assert_array_equal(x, content(LONG))


def forked(me: Rank) -> None:
    """A child that a rank forks can let go of what it inherited."""
    peer = 1 - me.rank
    x = room(LONG)
    operations = [me.irecv(x, peer), me.isend(content(LONG, peer), peer)]
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        me.messages.close()
        me.messages = None
        gc.collect()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    me.wait(*operations)
    np.testing.assert_array_equal(x, content(LONG, me.rank))


def ping_pong(me: Rank, count: int) -> None:
    x, peer = np.zeros(1, dtype=np.int64), 1 - me.rank
    for at in range(count):
        if me.rank == 0:
            x[0] = at
            me.send(x, peer)
        me.recv(x, peer)
        assert x[0] == at
        if me.rank == 1:
            me.send(x, peer)


def several_threads(me: Rank) -> None:
    """Each thread of a rank talks with the thread of the same tag on the other."""
    failed: list[BaseException] = []

    def talk(tag: int) -> None:
        try:
            for at in range(100):
                length = LENGTHS[at % len(LENGTHS)]
                x = room(length)
                receive = me.irecv(x, 1 - me.rank, tag)
                me.wait(me.isend(content(length, tag, at), 1 - me.rank, tag), receive)
                np.testing.assert_array_equal(x, content(length, tag, at))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=talk, args=(tag,)) for tag in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


def random_program(me: Rank, seed: int, messages: int) -> None:
    """Every rank knows all messages; each does its part in an order of its own."""
    everyone, own = random.Random(seed), random.Random(seed * 1000 + me.rank)
    plan = []
    for _ in range(messages):
        source, dest, tag = (everyone.randrange(below) for below in (me.size, me.size, 4))
        plan.append((source, dest, tag, everyone.choice((*LENGTHS, LONG)), everyone.random() < 0.2))
    streams: dict[tuple[int, ...], list[Callable[[], Any]]] = {}
    expected: list[tuple[np.ndarray, int]] = []
    for at, (source, dest, tag, length, to_any) in enumerate(plan):
        # With a tag that only this source uses for this rank, any source is the source.
        tag = 10 + source if to_any else tag
        if source == me.rank:

            def post_send(length: int = length, at: int = at, dest: int = dest, tag: int = tag):
                return me.isend(content(length, at), dest, tag)

            streams.setdefault((0, dest, tag), []).append(post_send)
        if dest == me.rank:
            x = room(length)
            expected.append((x, at))
            asked = ANY if to_any else source

            def post_receive(x: np.ndarray = x, asked: int = asked, tag: int = tag):
                return me.irecv(x, asked, tag)

            streams.setdefault((1, source, tag), []).append(post_receive)
    pending = []
    while streams:
        key = own.choice(list(streams))
        pending.append(streams[key].pop(0)())
        if not streams[key]:
            del streams[key]
        if own.random() < 0.3:
            me.messages.test(own.choice(pending))
    own.shuffle(pending)
    me.wait(*pending)
    for x, at in expected:
        np.testing.assert_array_equal(x, content(len(x), at))


if __name__ == "__main__":
    main(globals())
