"""Tasks: arrays hot and cold, in place and out of place, timed and checked; what ranks answer."""

from __future__ import annotations

import json
import socket
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from collectives.bench.cases import Case, NotCarried
from collectives.bench.libraries import OrdinaryMemory
from collectives.bench.libraries.ours import Ours
from collectives.bench.overlap import OverlapTask, hidden_part
from collectives.bench.serving import dial, serve
from collectives.bench.streams import WINDOW, messages_of, ping_pong, stream
from collectives.bench.tasks import (
    Task,
    aligned_memory,
    memory_bytes,
    rotation,
)

CACHE = 1 << 16


class Alone(OrdinaryMemory):
    """A library of one rank that copies, or does what it is told to do wrong."""

    rank, size = 0, 1

    def __init__(self, spoil=lambda out: None):
        self.used = []
        self.spoil = spoil

    def describe(self):
        return {"library": "alone"}

    def barrier(self):
        pass

    def operation(self, case, variant, x, out):
        if variant == "refused":
            raise NotCarried("not here")

        def call():
            self.used.append(x.ctypes.data)
            out[...] = x
            self.spoil(out)

        return call


def case_of(**changes):
    usual = {"collective": "allreduce", "nbytes": 4096, "op": "sum"}
    return Case(**{**usual, **changes})


def test_hot_calls_work_on_the_same_arrays():
    library = Alone()
    task = Task(library, case_of(), "", CACHE)
    assert task.most_calls is None
    assert task.seconds(50) > 0
    assert len(library.used) == 1 + 50 and len(set(library.used)) == 1


def test_cold_calls_go_round_more_than_the_cache():
    library = Alone()
    task = Task(library, case_of(cold=True), "", CACHE)
    task.seconds(100)
    assert task.most_calls is None
    assert len(set(library.used)) == 2 * CACHE // (2 * 4096)
    inside = library.used[1:]
    assert len(set(inside[:16])) == 16  # one after the other, each in its turn


def test_short_cold_calls_have_each_their_own_array():
    library = Alone()
    task = Task(library, case_of(nbytes=8, cold=True), "", 32 << 20)
    assert task.most_calls == 1024
    task.seconds(1024)
    assert len(set(library.used[1:])) == 1024
    with pytest.raises(ValueError, match="at most 1024 cold calls, found 1025"):
        task.seconds(1025)


@pytest.mark.parametrize("place", ["out", "in"])
@pytest.mark.parametrize("cold", [False, True])
def test_results_are_checked_on_every_element(place, cold):
    assert Task(Alone(), case_of(place=place, cold=cold), "", CACHE).wrong() == 0

    def spoil(out):
        out[17] += 1

    assert Task(Alone(spoil), case_of(place=place, cold=cold), "", CACHE).wrong() == 1


def test_a_call_that_writes_nothing_is_wrong_everywhere():
    library = Alone()
    library.operation = lambda *_: lambda: None
    assert Task(library, case_of(), "", CACHE).wrong() == 1024


def test_planted_errors_are_counted():
    task = Task(Alone(), case_of(), "", CACHE)
    assert task.wrong(plant=3) == 3
    assert task.wrong() == 0


def test_sixteen_bits_too():
    for dtype in ("bfloat16", "float16"):
        task = Task(Alone(), case_of(dtype=dtype), "", CACHE)
        assert task.wrong() == 0 and task.wrong(plant=1) == 1


def test_memory_is_known_before_it_is_taken():
    assert rotation(case_of(nbytes=100), CACHE) == (1, 128)
    assert memory_bytes(case_of(nbytes=100), CACHE) == 256
    assert memory_bytes(case_of(nbytes=100, place="in"), CACHE) == 128
    sets, stride = rotation(case_of(cold=True), CACHE)
    assert memory_bytes(case_of(cold=True), CACHE) == 2 * sets * stride + 2 * CACHE
    assert aligned_memory(100).ctypes.data % 64 == 0


@pytest.mark.parametrize(
    "alone, compute, both, hidden",
    [(1, 1, 2, 0), (1, 1, 1, 1), (1, 1, 1.5, 0.5), (1, 3, 3.5, 0.5), (1, 1, 9, 0), (1, 1, 0.5, 1),
     (0, 1, 1, 0)],
)  # fmt: skip
def test_what_is_hidden_is_a_part_of_the_shorter(alone, compute, both, hidden):
    assert hidden_part(alone, compute, both) == hidden


def test_overlap_needs_an_asynchronous_allreduce():
    with pytest.raises(NotCarried, match="there is no asynchronous allreduce"):
        OverlapTask(Alone(), case_of(collective="overlap"), "", CACHE)


def test_overlap_begins_computes_and_waits():
    library, order = Alone(), []

    def begin(case, variant, x, out):
        def start():
            order.append("begin")
            return SimpleNamespace(wait=lambda: order.append("wait"))

        return start

    library.begin = begin
    task = OverlapTask(library, case_of(collective="overlap"), "", CACHE)
    for part in ("alone", "both"):
        order.clear()
        task.part_seconds(2, part, 1)
        assert order == ["begin", "wait"] * 3  # once to warm up
    order.clear()
    assert task.part_seconds(2, "compute", 5) > 0
    assert order == []


def exchanged(make, rank):
    said = []
    call = make(rank, lambda peer: said.append(("send", peer)), lambda peer: said.append(peer))
    call()
    return said


def test_messages_go_there_and_back():
    assert exchanged(ping_pong, 0) == [("send", 1), 1]
    assert exchanged(ping_pong, 1) == [0, ("send", 0)]
    assert exchanged(stream, 0) == [("send", 1)] * WINDOW + [1]
    assert exchanged(stream, 1) == [0] * WINDOW + [("send", 0)]
    assert exchanged(ping_pong, 2) == exchanged(stream, 2) == []
    assert [messages_of(name) for name in ("pingpong", "stream", "reduce")] == [2, WINDOW + 1, 1]


@pytest.fixture
def asked():
    """Asks a rank that serves in a thread; ends it."""
    address = f"test-bench-{threading.get_ident()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("\0" + address)
        server.listen()
        line = dial(address)
        rank = threading.Thread(target=serve, args=(Alone(), line, CACHE))
        rank.start()
        connection, _ = server.accept()
        with connection, connection.makefile("rw") as stream:
            hello = json.loads(stream.readline())
            assert hello["rank"] == 0 and hello["description"] == {"library": "alone"}

            def ask(do, **words):
                stream.write(json.dumps({"do": do, "key": 1, **words}) + "\n")
                stream.flush()
                return json.loads(stream.readline())

            yield ask
            stream.write('{"do": "leave"}\n')
            stream.flush()
            rank.join(10)
        line.close()
    assert not rank.is_alive()


def test_a_rank_answers_what_it_is_asked(asked):
    case = case_of().as_json()
    assert asked("prepare", case=case, variant="") == {"most_calls": None, "expected": {}}
    assert asked("check", plant=2) == {"wrong": 2}
    assert asked("time", calls=3)["seconds"] > 0
    assert asked("release") == {}
    assert asked("time", calls=3) == {"failed": "KeyError: 1"}
    assert asked("prepare", case=case, variant="refused") == {"refused": "not here"}
    assert asked("dance")["failed"].startswith("ValueError: unknown request 'dance'")


def test_what_is_expected_is_what_the_communicator_explains():
    calls = []

    def explain(collective, x, **options):
        calls.append((collective, None if x is None else x.shape, options))
        other = SimpleNamespace(predicted=9.0, chosen=False)
        return SimpleNamespace(
            algorithm="ring", candidates=(other, SimpleNamespace(predicted=2.0, chosen=True))
        )

    ours = Ours(SimpleNamespace(rank=0, size=2, hosts=(0, 0), explain=explain))
    x = np.zeros(8, np.float32)
    hot, cold = (Case(collective="alltoall", nbytes=32, cold=cold) for cold in (False, True))
    assert ours.expected(hot, "auto", x) == {"chosen": "ring", "predicted": 2.0}
    assert ours.expected(cold, "auto", x) == {"chosen": "ring", "predicted": None}
    assert calls[0] == ("alltoall", (2, 4), {"root": 0, "op": None, "algorithm": None})
    assert ours.expected(Case(collective="barrier", nbytes=0), "tree", x)["chosen"] == "ring"
    assert calls[-1] == ("barrier", None, {"root": 0, "op": None, "algorithm": "tree"})
    assert ours.expected(Case(collective="pingpong", nbytes=32), "auto", x) == {}


def test_every_rank_asks_for_as_much_symmetric_memory():
    asked_for = []

    def empty(shape, dtype):
        asked_for.append(shape)
        return np.empty(shape, dtype)

    # As off the root of a gather, where only the root has a result.
    comm = SimpleNamespace(rank=1, size=2, empty=empty, allgather_object=lambda mine: [64, mine])
    assert Ours(comm).memory(0, "symmetric:one_sided").nbytes == 0
    assert asked_for == [(64,)]
    assert Ours(comm).memory(64, "ring").nbytes == 64
    assert asked_for == [(64,)]
