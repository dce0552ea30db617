"""A process that was asked for its stack as it was ready no more, or had other files by then."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from harness.processes import Ranks, open_descriptors, say, told

from transports.stacks import Readiness, ask, be_ready, be_ready_for, be_ready_no_more

PROGRAM = """
import os, threading
from transports.stacks import be_ready, be_ready_no_more

def once():
    ready.append(be_ready())
    be_ready_no_more()

ready = []
once()
os.kill(os.getpid(), ready[0].signal)
thread = threading.Thread(target=once)
thread.start()
thread.join()
os.kill(os.getpid(), ready[1].signal)
print(ready[0].signal == ready[1].signal > 0)
"""


def test_a_signal_that_comes_too_late_ends_nobody():
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "True\n"), ended.stderr


OCCUPY = """
import ctypes, os, signal, threading
from transports.stacks import be_ready, be_ready_no_more

libc = ctypes.CDLL(None)
libc.signal.restype = ctypes.c_void_p
hits = 0

@ctypes.CFUNCTYPE(None, ctypes.c_int)
def handler(number):
    global hits
    hits += 1

def hit():
    os.kill(os.getpid(), signal.SIGRTMAX)

libc.signal(signal.SIGRTMAX, handler)  # in C: Python does not know of it
libc.signal(signal.SIGRTMAX - 1, ctypes.c_void_p(1))  # ignored
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMAX - 2])  # waited for, with sigwait
hit()
for _ in range(2):
    ready = be_ready()
    hit()
    be_ready_no_more()
    hit()
    print(hits, signal.SIGRTMAX - ready.signal)
"""


def test_a_signal_that_is_in_use_is_left_alone():
    ended = subprocess.run([sys.executable, "-c", OCCUPY], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "3 3\n5 3\n"), ended.stderr


FORK = """
import os, signal
from transports.stacks import ask, be_ready, be_ready_no_more

def sit():
    child = be_ready()
    os.write(writing, b"%d %d" % (child.signal, child.file == parent.file))
    signal.pause()

parent = be_ready()
reading, writing = os.pipe()
pid = os.fork()
if pid == 0:
    sit()
number, is_same_file = map(int, os.read(reading, 100).split())
print(number == parent.signal, is_same_file)
os.kill(pid, signal.SIGKILL)
os.waitpid(pid, 0)
"""


def test_a_forked_child_has_a_file_of_its_own():
    ended = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "True 0\n"), ended.stderr


def with_another_file(path):
    """Ready to be asked; then another file has the number of the one for stacks."""
    ready = be_ready()
    say(f"{ready.signal} {ready.descriptor} {ready.file}")
    told()
    other = os.open(path, os.O_RDWR)
    os.dup2(other, ready.descriptor)
    os.close(other)
    say("another")
    told()
    be_ready_no_more()
    return str(Path(f"/proc/self/fd/{ready.descriptor}").readlink())


@pytest.mark.parametrize("kind", ["file", "pipe"])
def test_no_file_but_the_one_for_stacks_is_touched(tmp_path, kind):
    path = tmp_path / "precious"
    if kind == "file":
        path.write_bytes(b"x" * 1000)
    else:
        os.mkfifo(path)
    before = len(open_descriptors())
    with Ranks(with_another_file, 1, str(path)) as job:
        number, descriptor, file = job.said(0).split()
        ready = Readiness(int(number), int(descriptor), file)
        assert any(
            "in with_another_file" in frame for frame in ask(job.processes[0].pid, ready).frames
        )
        job.tell(0)
        assert job.said(0) == "another"
        found = ask(job.processes[0].pid, ready)
        assert not found.frames and "cannot be asked" in found.state
        job.tell(0)
        assert job.outcome(0).value == str(path)  # and it has closed it no more than we emptied it
        if kind == "file":
            assert path.read_bytes() == b"x" * 1000
    assert len(open_descriptors()) == before


def test_ready_as_long_as_somebody_is():
    class Holder:
        pass

    first, second = Holder(), Holder()
    ready, give_back = be_ready_for(first)
    assert be_ready_for(second)[0] == ready and os.fstat(ready.descriptor)
    give_back()
    give_back()  # only the first time
    del first
    assert os.fstat(ready.descriptor)
    del second
    with pytest.raises(OSError):
        os.fstat(ready.descriptor)


def _sleeps():
    say(repr(be_ready()))
    told()


def test_several_who_ask_at_once_hear_the_same_each():
    with Ranks(_sleeps, 1) as ranks:
        ready = eval(ranks.said(0))
        pid = ranks.processes[0].pid
        while not (alone := ask(pid, ready)).frames[0].endswith(" in told"):
            pass
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: ask(pid, ready), range(60)))
        assert [each for each in found if each != alone] == []
        ranks.tell(0)


def test_an_answer_to_another_who_asks_is_none_of_ours(monkeypatch):
    """Whoever has waited long enough for others asks beside them."""
    send = signal.pidfd_send_signal

    def send_twice(pidfd, number):
        send(pidfd, number)
        send(pidfd, number)

    with Ranks(_sleeps, 1) as ranks:
        ready = eval(ranks.said(0))
        pid = ranks.processes[0].pid
        while not (alone := ask(pid, ready)).frames[0].endswith(" in told"):
            pass
        monkeypatch.setattr(signal, "pidfd_send_signal", send_twice)
        assert [found for found in (ask(pid, ready) for _ in range(20)) if found != alone] == []
        ranks.tell(0)


def test_descriptors_of_any_number_are_waited_for():
    """select() takes none from 1024 on, and programs have more open."""
    program = """
import fcntl, os, resource, sys, time
from transports.readable import becomes_readable
resource.setrlimit(resource.RLIMIT_NOFILE, (2000, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
end, other = os.pipe()
high = fcntl.fcntl(end, fcntl.F_DUPFD, 1500)
begun = time.monotonic()
assert not becomes_readable(high, 0.05) and time.monotonic() - begun >= 0.05
os.write(other, b"x")
assert becomes_readable(high, 60) and becomes_readable(high, None)
os.read(high, 1)
os.close(other)
assert becomes_readable(high, 60)
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
