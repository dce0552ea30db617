"""What the decorator and the steps refuse, and how they say so."""

from __future__ import annotations

import pytest

import collectives
from collectives.schedule import (
    Copy,
    Notify,
    Read,
    ReadReduce,
    Recv,
    RecvReduce,
    ScheduleError,
    Send,
    Wait,
    Write,
    algorithm,
    copy,
    notify,
    read,
    read_reduce,
    recv,
    recv_reduce,
    send,
    wait,
    write,
)


def yielding(*steps, collective="allreduce", **keywords):
    """An algorithm of which rank 0 yields just these steps."""

    @algorithm(collective, **keywords)
    def odd(rank, size):
        if rank == 0:
            yield from steps

    return odd


def test_steps_are_normalised():
    algo = yielding(
        send([2, 1], chunk=range(2)), recv(1, 0), recv_reduce(2, [1]), copy(0, 1), chunks=2
    )
    assert algo.schedule(0, 3) == (
        Send((2, 1), (0, 1)),
        Recv(1, (0,)),
        RecvReduce((2,), (1,)),
        Copy(0, 1),
    )
    assert algo.schedule(1, 3) == ()


def test_one_sided_steps_are_normalised():
    algo = yielding(
        notify(1),
        wait([2, 1]),
        read(1, 0),
        read_reduce([2, 1], range(2)),
        copy(0, 1),
        write(2, [1]),
        chunks=2,
        one_sided=True,
    )
    assert algo.one_sided and not yielding().one_sided
    assert algo.schedule(0, 3) == (
        Notify((1,)),
        Wait((2, 1)),
        Read(1, (0,)),
        ReadReduce((2, 1), (0, 1)),
        Copy(0, 1),
        Write((2,), (1,)),
    )
    assert Notify((1,)).chunks == Wait((1,)).chunks == ()
    assert algo.widest_message(3) == 1


MIXED = {
    "both, said to be messages": ([send(1, 0), copy(0, 0), notify(1)], False),
    "both, said to be one-sided": ([send(1, 0), copy(0, 0), notify(1)], True),
}


@pytest.mark.parametrize("steps, one_sided", MIXED.values(), ids=MIXED)
def test_messages_beside_one_sided_steps_are_refused(steps, one_sided):
    with pytest.raises(ScheduleError) as caught:
        yielding(*steps, one_sided=one_sided).schedule(0, 2)
    assert str(caught.value) == (
        "allreduce odd, rank 0 of 2: expected messages only or one-sided steps only, found "
        "send (step 0) beside notify (step 2)"
    )


def test_steps_of_the_other_family_than_was_said_are_refused():
    with pytest.raises(ScheduleError, match=r"messages in an .*=False, found read \(step 1"):
        yielding(copy(0, 0), read(1, 0)).schedule(0, 2)
    with pytest.raises(ScheduleError, match=r"one-sided steps in .*=True, found recv \(step 0"):
        yielding(recv(1, 0), one_sided=True).schedule(0, 2)
    assert yielding(copy(0, 0), one_sided=True).schedule(0, 2) == (Copy(0, 0),)


def test_a_collective_without_memory_has_no_one_sided_algorithm():
    with pytest.raises(ValueError, match="barrier has no memory to reach into; one_sided= must be"):
        algorithm("barrier", one_sided=True)


def test_a_pair_is_one_chunk_of_alltoall():
    algo = yielding(send(1, (0, 1)), send(2, [(0, 2), (0, 0)]), collective="alltoall")
    assert algo.schedule(0, 3) == (Send((1,), (1,)), Send((2,), (2, 0)))


REFUSED = {
    "no step": ("send", "expected send, recv, .*wait or copy, found 'send'"),
    "no peer": (send([], 0), "expected at least one peer, found none"),
    "peer too high": (send(3, 0), r"peer must be in 0\.\.2, found 3"),
    "peer negative": (recv(-1, 0), r"peer must be in 0\.\.2, found -1"),
    "peer itself": (send(0, 0), "a rank cannot be its own peer"),
    "peer twice": (send([1, 1], 0), "a peer is named twice"),
    "peer no int": (send("a", 0), "peers must be ints, found 'a'"),
    "two peers": (recv((1, 2), 0), "recv takes one peer, found"),
    "reading of two": (read((1, 2), 0), "read takes one peer, found"),
    "notify of none": (notify([]), "expected at least one peer, found none"),
    "wait for itself": (wait([1, 0]), "a rank cannot be its own peer"),
    "write of none": (write(1, []), "expected at least one chunk, found none"),
    "no chunk": (send(1, []), "expected at least one chunk, found none"),
    "chunk too high": (send(1, 2), r"chunk must be in 0\.\.1, found 2"),
    "chunk negative": (send(1, [0, -1]), r"chunk must be in 0\.\.1, found -1"),
    "chunk no int": (send(1, 0.5), "chunks must be ints, found 0.5"),
    "chunk twice": (recv(1, [0, 0]), "a chunk is named twice in one message"),
    "copy outside": (copy(2, 0), r"chunk must be in 0\.\.1, found 2"),
}


@pytest.mark.parametrize("step, text", REFUSED.values(), ids=REFUSED)
def test_a_wrong_step_is_refused(step, text):
    with pytest.raises(ScheduleError, match=text) as caught:
        yielding(step, chunks=2).schedule(0, 3)
    assert "allreduce odd, rank 0 of 3, step 0" in str(caught.value)


@pytest.mark.parametrize("chunk", [1, (0, 1, 2), [(0, "a")]])
def test_a_chunk_of_alltoall_must_be_pairs(chunk):
    with pytest.raises(ScheduleError, match=r"\(source, destination\) pairs"):
        yielding(send(1, chunk), collective="alltoall").schedule(0, 3)


def test_a_pair_outside_is_refused():
    with pytest.raises(ScheduleError, match=r"chunk must be pairs of 0\.\.2, found \(0, 3\)"):
        yielding(send(1, (0, 3)), collective="alltoall").schedule(0, 3)


def test_an_unknown_collective_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"unknown collective 'alreduce'.*did you mean allreduce"):
        algorithm("alreduce")


def test_chunks_are_refused_where_the_collective_fixes_them():
    with pytest.raises(ValueError, match="allgather fixes its chunks"):
        algorithm("allgather", chunks=3)


def test_a_chunk_count_must_be_positive():
    with pytest.raises(ValueError, match="allreduce needs at least one chunk, found 0"):
        yielding(chunks=lambda size: size - 3).schedule(0, 3)


def test_a_decorator_without_its_collective_is_refused():
    with pytest.raises(TypeError, match=r'as in @algorithm\("allreduce"\), found <function'):

        @algorithm
        def bare(rank, size):
            yield send(0, chunk=0)


def test_a_body_that_yields_nothing_is_refused():
    @algorithm("allreduce")
    def empty(rank, size):
        return None

    def unwell(rank, size):
        yield send((rank + 1) % size, chunk=0)
        [][rank]

    with pytest.raises(ScheduleError, match=r"allreduce unwell, rank 1 of 2: .* IndexError: "):
        algorithm("allreduce")(unwell).schedule(1, 2)
    with pytest.raises(ScheduleError, match="allreduce empty, rank 0 of 2: expected a generator"):
        empty.schedule(0, 2)


def test_an_unknown_argument_is_refused():
    with pytest.raises(TypeError, match="odd asks for world; an algorithm may ask for rank, size"):

        @algorithm("allreduce")
        def odd(rank, world):
            yield send(1, 0)


def test_sizes_restrict():
    for sizes in (range(2, 5), lambda size: 2 <= size < 5):
        algo = yielding(sizes=sizes)
        assert [size for size in range(-1, 8) if algo.allows(size)] == [2, 3, 4]
        with pytest.raises(ValueError, match="allreduce odd is not written for size 5"):
            algo.schedule(0, 5)
    with pytest.raises(ValueError, match="not written for size 0"):
        yielding().schedule(0, 0)


def test_rank_root_and_hosts_must_exist():
    algo = yielding()
    with pytest.raises(ValueError, match=r"rank must be in 0\.\.2, found 3"):
        algo.schedule(3, 3)
    with pytest.raises(ValueError, match=r"root must be in 0\.\.2, found -1"):
        algo.schedule(0, 3, root=-1)
    with pytest.raises(ValueError, match="hosts must have 3 entries, found 2"):
        algo.schedule(0, 3, hosts=[0, 1])


def test_an_algorithm_gets_what_it_asks_for():
    seen = []

    @algorithm("broadcast")
    def nosy(root, hosts, size, rank):
        seen.append((rank, size, root, hosts))
        yield from ()

    nosy.schedule(1, 3, 2, [0, 0, 1])
    assert seen == [(1, 3, 2, (0, 0, 1))]


def test_algorithms_compose():
    inner = yielding(send(1, 0))

    @algorithm("allreduce", name="twice")
    def outer(rank, size):
        yield from inner(rank, size)
        yield from inner(rank, size)

    assert outer.name == "twice"
    assert outer.schedule(0, 2) == (Send((1,), (0,)),) * 2


def test_the_widest_message_is_found_where_it_is_not_given():
    algo = yielding(send(1, [0, 1, 2]), send(1, 0), chunks=3)
    assert algo.widest_message(2) == 3
    assert yielding(send(1, 0), widest=lambda size: 7).widest_message(2) == 7
    assert yielding(widest=lambda size: 0).widest_message(2) == 1


def test_an_algorithm_that_never_ends_is_refused():
    @algorithm("alltoall")
    def endless(rank, size):
        while rank == 1:
            yield send(0, chunk=(1, 0))
            yield recv(0, chunk=(0, 1))

    assert endless.schedule(0, 2) == ()
    text = "alltoall endless, rank 1 of 2: expected at most 1032 steps, found more"
    with pytest.raises(ScheduleError, match=text):
        endless.schedule(1, 2)
    with pytest.raises(ScheduleError, match=text):
        collectives.verify(endless, size=2)


def test_the_most_steps_that_are_allowed():
    for extra in (0, 1):
        steps = [copy(to=0, source=1)] * (1000 + 8 * 2 * 2 + extra)
        wordy = yielding(*steps, chunks=2)
        if extra:
            with pytest.raises(ScheduleError, match="at most 1032 steps"):
                wordy.schedule(0, 2)
        else:
            assert len(wordy.schedule(0, 2)) == 1032


def test_an_algorithm_is_shown_by_its_name():
    assert str(yielding()) == repr(yielding()) == "<allreduce odd>"
