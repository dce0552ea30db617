"""How ranks find each other: everyone once, of one size, version, user and secret, or no one."""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from harness.processes import Ranks, open_descriptors, say, told

from transports.errors import (
    AbortedError,
    CollectiveError,
    CollectiveTimeout,
    MismatchError,
    PeerLostError,
)
from transports.rendezvous import local, notes
from transports.rendezvous.awaiting import Waiting, address
from transports.rendezvous.identity import host_identity
from transports.rendezvous.local import Introduction, meet
from transports.shm.memory import allocate

SECRET = "0123456789abcdef" * 2


def introduction(rank, size, **more):
    return Introduction(
        rank=rank, size=size, pid=os.getpid(), host="here", host_id="one", version="1", **more
    )


def offer(ranks):
    return allocate(4096 * len(ranks), "test-meeting")


@pytest.fixture
def job(request):
    return f"test {os.getpid()} {request.node.name}"


@pytest.fixture(autouse=True)
def no_descriptor_stays_open():
    before = open_descriptors()
    yield
    left = open_descriptors()
    assert not {number: what for number, what in left.items() if number not in before}


def arrive(who, job, secret=SECRET, settings=None, make=offer, timeout=20.0, **more):
    return meet(
        who, job=job, secret=secret, settings=settings or {}, offer=make, timeout=timeout, **more
    )


def connected(job):
    """A connection to rank 0, as soon as that listens; its end is the caller's."""
    return local._connect(job, 1, Waiting(job, 20, lambda: None, 0))


def gather(*calls):
    """What each call returns or raises, run at once; descriptors are closed."""

    def run(call):
        try:
            meeting = call()
        except Exception as error:
            return error
        meeting.close()
        return meeting

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


@pytest.mark.parametrize("size", [1, 2, 5])
def test_everyone_learns_of_everyone(job, size):
    people = [introduction(rank, size, cores=(rank, 7)) for rank in range(size)]
    found = gather(
        *(lambda p=p: arrive(p, job, settings={"told by": p.rank}) for p in reversed(people))
    )
    for meeting in found:
        assert meeting.ranks == tuple(people)
        assert meeting.settings == {"told by": 0}
        assert meeting.pidfds == [-1] * size  # threads of this very process


def test_no_descriptor_is_for_programs_that_are_started(job):
    def come(rank):
        meeting = arrive(replace(introduction(rank, 2), pid=os.getpid() if rank else 1), job)
        assert not os.get_inheritable(meeting.descriptor)
        assert not any(os.get_inheritable(each) for each in meeting.pidfds if each >= 0)
        return meeting

    found = gather(lambda: come(0), lambda: come(1))
    assert not any(isinstance(each, BaseException) for each in found), found
    assert found[1].pidfds[0] >= 0 and found[0].pidfds[1] >= 0


def test_a_meeting_that_nobody_wants_leaves_nothing_open(job):
    """As where an exception of a signal handler comes before it has a name."""

    def come(rank):
        return arrive(replace(introduction(rank, 2), pid=os.getpid() if rank else 1), job)

    def how_many():
        return len(list(Path("/proc/self/fd").iterdir()))

    before = how_many()
    with ThreadPoolExecutor(2) as pool:
        meetings = list(pool.map(come, (0, 1)))
    assert all(os.fstat(meeting.descriptor) for meeting in meetings)
    meetings[0].take_pidfds()
    taken = [pidfd for pidfd in meetings[0].pidfds if pidfd >= 0]
    assert len(taken) == 1
    del meetings
    assert os.fstat(taken[0])
    os.close(taken[0])
    assert how_many() == before


def test_two_jobs_at_once(job):
    pairs = [(name, rank) for name in ("a", "b", "c") for rank in (0, 1)]
    found = gather(
        *(lambda n=n, r=r: arrive(introduction(r, 2), job + n, settings={"job": n})
          for n, r in pairs)
    )  # fmt: skip
    assert [meeting.settings["job"] for meeting in found] == [name for name, _ in pairs]


def test_who_is_missing_is_named(job):
    found = gather(*(lambda r=r: arrive(introduction(r, 4), job, timeout=0.5) for r in (0, 2)))
    for error in found:
        assert isinstance(error, CollectiveTimeout), error
        assert "ranks 1, 3 of 4 did not come to the rendezvous in 0.5 s" in str(error)
    (error,) = gather(lambda: arrive(introduction(1, 2), job, timeout=0.2))
    assert isinstance(error, CollectiveTimeout)
    assert "rank 0 did not come to the rendezvous in 0.2 s" in str(error)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"size": 4}, ["rank 1", "expects 4 ranks", "rank 0 expects 3"]),
        ({"version": "0.9"}, ["rank 1", "version 0.9", "rank 0 runs 1"]),
        ({"host_id": "two"}, ["rank 1", "another host"]),
        ({"rank": 3}, ["rank 3", "expected a rank in 1..2", "found 3"]),
    ],
)
def test_ranks_that_do_not_fit_are_refused_everywhere(job, change, words):
    other = replace(introduction(1, 3), **change)
    found = gather(
        lambda: arrive(introduction(0, 3), job),
        lambda: arrive(introduction(2, 3), job, timeout=5),
        lambda: arrive(other, job, timeout=5),
    )
    assert isinstance(found[0], MismatchError) and isinstance(found[2], MismatchError), found
    for error in (found[0], found[2]):
        assert all(word in str(error) for word in words), error
    # Rank 2 was there already, or comes too late to find anyone.
    assert isinstance(found[1], CollectiveError), found


def test_a_rank_that_is_there_twice_is_refused(job):
    found = gather(
        lambda: arrive(introduction(0, 3), job),
        *(lambda: arrive(introduction(1, 3), job, timeout=5) for _ in range(2)),
    )
    for error in found:
        assert isinstance(error, MismatchError) and "both say that they are that rank" in str(error)


def test_a_second_rank_0_is_refused(job):
    def come_second():
        with connected(job):
            pass  # the first one listens
        with pytest.raises(MismatchError, match=f"another rank 0 of job {job!r}"):
            arrive(introduction(0, 2), job)
        return arrive(introduction(1, 2), job)

    found = gather(lambda: arrive(introduction(0, 2), job), come_second)
    assert not any(isinstance(each, Exception) for each in found), found


def test_without_the_secret_nobody_joins(job):
    def intrude():
        with pytest.raises(PermissionError, match="secret is another one"):
            arrive(introduction(1, 2), job, secret="guessed")
        return arrive(introduction(1, 2), job)

    found = gather(lambda: arrive(introduction(0, 2), job), intrude)
    assert not any(isinstance(each, Exception) for each in found), found


def test_a_rank_0_that_does_not_know_the_secret_is_refused(job):
    """Somebody listens in its place, and accepts whatever it is told."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address(job))
        listener.listen()

        def pretend():
            connection, _ = listener.accept()
            with connection:
                notes.say(connection, {"challenge": "00"})
                hello = notes.hear(connection, "hello")
                ranks = [hello["hello"] | {"rank": 0}, hello["hello"]]
                notes.say(connection, {"ranks": ranks, "settings": {}, "proof": "invented"})

        thread = threading.Thread(target=pretend)
        thread.start()
        (error,) = gather(lambda: arrive(introduction(1, 2), job))
        thread.join()
    assert isinstance(error, PermissionError) and "does not know the job's secret" in str(error)


def test_a_rank_0_that_hands_out_no_memory_is_lost(job):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address(job))
        listener.listen()

        def hand_out_nothing():
            connection, _ = listener.accept()
            with connection:
                notes.say(connection, {"challenge": "00"})
                hello = notes.hear(connection, "hello")
                proof = notes.proof_of(SECRET, "rank 0", hello["challenge"])
                notes.say(connection, {"ranks": [hello["hello"]], "settings": {}, "proof": proof})
                connection.sendall(b"d")

        thread = threading.Thread(target=hand_out_nothing)
        thread.start()
        (error,) = gather(lambda: arrive(introduction(1, 2), job))
        thread.join()
    assert isinstance(error, PeerLostError) and "(no descriptor came)" in str(error)


GARBAGE = [
    b"",
    b"\0",
    b"GET / HTTP/1.1\r\n\r\n",
    struct.pack("!I", 1 << 31),
    struct.pack("!I", 1 << 20) + b"[" * (1 << 20),
    struct.pack("!I", 60_000) + b"[" * 60_000,
    struct.pack("!I", 4) + b"\xff\xfe\xfd\xfc",
    struct.pack("!I", 2) + b"[]",
    struct.pack("!I", 1) + b"7",
    struct.pack("!I", 4) + b"null",
    struct.pack("!I", 2) + b"{}",
    struct.pack("!I", 11) + b'{"hello":1}',
    json.dumps({"hello": {}, "proof": None}).encode(),
]


def test_garbage_on_the_socket_disturbs_nobody(job):
    def disturb():
        for garbage in GARBAGE:
            with connected(job) as connection:
                try:
                    connection.sendall(garbage)
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(1000):  # until rank 0 has had enough of it
                        pass
                except ConnectionError:
                    pass  # it did not even read on
        return arrive(introduction(1, 2), job)

    found = gather(lambda: arrive(introduction(0, 2), job), disturb)
    assert not any(isinstance(each, Exception) for each in found), found


def test_who_connects_and_says_nothing_holds_up_nobody(job):
    """A rank that stands still, or any process of the user; as long as all others take to come."""

    def disturb():
        with connected(job), connected(job):
            return arrive(introduction(1, 2), job)

    found = gather(lambda: arrive(introduction(0, 2), job), disturb)
    assert not any(isinstance(each, Exception) for each in found), found


@pytest.mark.parametrize(
    "error, kind, words",
    [
        (PeerLostError("rank 2 has ended"), PeerLostError, "rank 2 has ended"),
        (AbortedError("rank 2 raised"), AbortedError, "rank 2 raised"),
        (MismatchError("no such call"), MismatchError, "no such call"),
        (CollectiveTimeout("too late"), CollectiveTimeout, "too late"),
        (OSError("no"), AbortedError, "rank 0 raised OSError in the rendezvous: no"),
        (ZeroDivisionError(), AbortedError, "rank 0 raised ZeroDivisionError in the rendezvous"),
    ],
)
def test_what_ends_it_for_rank_0_is_told_to_who_is_there(job, error, kind, words):
    has_come = threading.Event()

    def look_and_raise():
        if has_come.is_set():
            raise error

    def look_once_there():
        if connections(job):
            has_come.set()

    found = gather(
        lambda: arrive(introduction(0, 3), job, look=look_and_raise),
        lambda: arrive(introduction(1, 3), job, look=look_once_there),
    )
    assert found[0] is error
    assert type(found[1]) is kind and str(found[1]) == words


def test_a_rank_that_is_there_looks_what_else_may_end_it(job):
    def look():
        if connections(job):
            raise PeerLostError("rank 2 has ended")

    found = gather(
        lambda: arrive(introduction(0, 3), job, timeout=1),
        lambda: arrive(introduction(1, 3), job, look=look),
    )
    assert isinstance(found[0], CollectiveTimeout) and "2 of 3 did not come" in str(found[0])
    assert isinstance(found[1], PeerLostError) and str(found[1]) == "rank 2 has ended"


def test_a_rank_0_that_stands_still_is_told_of_and_waited_for_until_the_deadline(
    job, monkeypatch, capsys
):
    monkeypatch.setattr(local, "GRACE_SECONDS", 0.1)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address(job))
        listener.listen()
        (error,) = gather(lambda: arrive(introduction(1, 2), job, timeout=1, silence=0.2))
    assert isinstance(error, CollectiveTimeout)
    assert "rank 0 did not answer in the rendezvous in 1 s" in str(error)
    assert "s in the rendezvous for rank 0, which is there and says" in capsys.readouterr().err


def test_memory_that_cannot_be_had_is_told_to_all(job):
    def fail(ranks):
        raise MemoryError(f"not for {len(ranks)}")

    first, second = gather(
        lambda: arrive(introduction(0, 2), job, make=fail),
        lambda: arrive(introduction(1, 2), job),
    )
    assert isinstance(first, MemoryError)
    assert isinstance(second, MismatchError) and "no shared memory: not for 2" in str(second)


def come(job, rank, size):
    """A rank that says when it is about to, and may be killed."""
    say("comes")
    meeting = arrive(replace(introduction(rank, size), pid=os.getpid()), job)
    return len([each for each in meeting.pidfds if each >= 0])


def come_in_order(job, size):
    rank = int(os.environ["RANK"])
    if rank:
        told()
    return come(job, rank, size)


def connections(job):
    """How many ends of the job's sockets are connected."""
    name = "@" + address(job)[1:]
    lines = Path("/proc/net/unix").read_text(encoding="utf-8", errors="replace").splitlines()
    return sum(line.split()[-1] == name and line.split()[5] == "03" for line in lines)


def test_processes_watch_each_other(job):
    with Ranks(come_in_order, 3, job, 3) as ranks:
        for index in (1, 2):
            ranks.tell(index)
        assert [outcome.value for outcome in ranks.outcomes()] == [2, 2, 2]


def test_rank_0_dies_in_the_rendezvous(job):
    with Ranks(come_in_order, 3, job, 3) as ranks:
        assert ranks.said(0) == "comes"
        ranks.tell(1)
        assert ranks.said(1) == "comes"
        while connections(job) == 0:
            pass
        ranks.kill(0)
        outcome = ranks.outcome(1)
        assert outcome.error == "PeerLostError"
        assert "rank 0 ended during the rendezvous" in outcome.text


def test_another_rank_dies_in_the_rendezvous(job):
    """Rank 1 has introduced itself and is gone before the last one comes."""
    with Ranks(come_in_order, 3, job, 3, only=[0, 2]) as ranks:
        with connected(job) as connection:
            challenge = notes.hear(connection, "challenge")["challenge"]
            me = local.asdict(introduction(1, 3))
            proof = notes.proof_of(SECRET, "rank", challenge)
            notes.say(connection, {"hello": me, "proof": proof, "challenge": "0"})
        ranks.tell(1)
        for outcome in ranks.outcomes():
            assert outcome.error == "PeerLostError", outcome
            assert "rank 1 ended during the rendezvous" in outcome.text


def test_another_user_is_not_let_in(job):
    if os.getuid() != 0:
        pytest.skip("no privilege: needs a second user")
    place = address(job)

    def intrude():
        with connected(job):
            pass  # rank 0 listens
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.setgid(65534)
            os.setuid(65534)
            with socket.socket(socket.AF_UNIX) as stranger:
                stranger.connect(place)
                os.write(writing, b"heard: " + stranger.recv(100))
            os._exit(0)
        os.waitpid(child, 0)
        heard = os.read(reading, 1000)
        os.close(reading)
        os.close(writing)
        assert heard == b"heard: "  # not even a challenge
        return arrive(introduction(1, 2), job)

    found = gather(lambda: arrive(introduction(0, 2), job), intrude)
    assert not any(isinstance(each, Exception) for each in found), found


def test_a_rank_0_of_another_user_is_refused(job, monkeypatch):
    if os.getuid() != 0:
        pytest.skip("no privilege: needs a second user")
    place = address(job)
    monkeypatch.setattr(local, "address", lambda job: place)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.setgid(65534)
        os.setuid(65534)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(place)
            listener.listen()
            os.write(writing, b"listens")
            connection, _ = listener.accept()
            connection.recv(1)
        os._exit(0)
    os.read(reading, 10)
    (error,) = gather(lambda: arrive(introduction(1, 2), job))
    os.waitpid(child, 0)
    os.close(reading)
    os.close(writing)
    assert isinstance(error, PermissionError) and "under another user" in str(error)


def test_a_host_is_itself_unless_told_otherwise():
    assert host_identity() == host_identity() == host_identity("")
    assert len(host_identity()) > 30
    assert host_identity("pretended") == "pretended"


def test_a_process_that_is_gone_cannot_be_watched():
    gone = os.fork()
    if gone == 0:
        os._exit(0)
    os.waitpid(gone, 0)
    assert local._watch((replace(introduction(0, 1), pid=gone),), introduction(0, 1)) == [-1]


def test_errors_are_of_one_family():
    for kind in (CollectiveTimeout, MismatchError, PeerLostError):
        assert issubclass(kind, CollectiveError)
