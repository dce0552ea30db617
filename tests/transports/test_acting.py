"""What may act while a program waits: threads of Python, other threads, handlers of signals."""

from __future__ import annotations

import _thread
import ctypes
import os
import signal
import threading
import time

import pytest
from harness.processes import Ranks

from transports.acting import is_alone

OURS = "of-ours"


def waits_for_a_thread():
    """A thread that Python does not know, until another of this process posts a semaphore."""
    semaphore = ctypes.create_string_buffer(64)
    ctypes.CDLL(None).sem_init(semaphore, 0, 0)
    run_native("sem_wait", semaphore)
    return semaphore


def run_native(function, argument):
    libc, thread = ctypes.CDLL(None), ctypes.c_ulong()
    assert not libc.pthread_create(ctypes.byref(thread), None, libc[function], argument)


def in_process(what):
    """Whether the process is found alone, and whether it is without what is tried."""
    import numpy  # noqa: F401 - has threads of its own

    kept = None
    before = settled()
    match what:
        case "nothing":
            pass
        case "ours":
            kept = threading.Event()
            threading.Thread(target=kept.wait, daemon=True, name=f"{OURS}-1").start()
        case "thread":
            kept = threading.Event()
            threading.Thread(target=kept.wait, daemon=True).start()
        case "unknown thread":
            _thread.start_new_thread(time.sleep, (60,))
        case "native thread asleep":
            run_native("sleep", 60)
        case "native thread waits":
            kept = waits_for_a_thread()
        case "handler":
            signal.signal(signal.SIGUSR1, lambda *_: None)
        case "forked":  # the child of a process whose threads are known by other numbers
            return before, in_child(settled)
        case "forked, and ours asks":  # while the main thread waits
            return before, in_child(lambda: in_one_of_ours(settled))
        case "asked by an unknown thread":  # while the one that is known may act
            return before, in_thread(settled)
        case "ignored":
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    return before, settled()


def in_thread(question):
    """What a thread answers that Python does not know."""
    answers, gate = [], _thread.allocate_lock()
    gate.acquire()
    _thread.start_new_thread(lambda: (answers.append(question()), gate.release()), ())
    gate.acquire()
    return answers[0]


def in_one_of_ours(question):
    """What a thread of ours answers."""
    answers = []
    asks = threading.Thread(target=lambda: answers.append(question()), name=f"{OURS}-2")
    asks.start()
    while asks.is_alive():  # the main thread waits as in a call, not for another thread's lock
        time.sleep(0.01)
    return answers[0]


def in_child(question):
    """What a forked child answers."""
    child = os.fork()
    if child == 0:
        os._exit(int(question()))
    return bool(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def settled():
    """What is found once threads that have just begun are where they wait."""
    time.sleep(0.2)
    return is_alone(OURS)


@pytest.mark.parametrize(
    "what, alone",
    [
        ("nothing", True),
        ("ours", True),
        ("thread", False),
        ("unknown thread", False),
        ("native thread asleep", False),
        ("native thread waits", True),
        ("handler", False),
        ("forked", True),
        ("forked, and ours asks", True),
        ("asked by an unknown thread", False),
        ("ignored", True),
    ],
)
def test_only_what_could_act_counts(what, alone):
    with Ranks(in_process, 1, what) as job:
        outcome = job.outcome(0)
    assert (outcome.text, outcome.value) == ("", (True, alone))
