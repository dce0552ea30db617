"""Signal handlers wait for the end of an undisturbed block."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from transports.undisturbed import undisturbed


class Rang(Exception):
    """What a handler raises."""


@pytest.fixture
def ringing():
    def ring(number, frame):
        raise Rang

    before = signal.signal(signal.SIGUSR1, ring)
    yield ring
    signal.signal(signal.SIGUSR1, before)


@pytest.fixture(params=["alone", "beside a thread"])
def company(request):
    """With a thread that would take the signals which the main thread blocks, or without."""
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    if request.param != "alone":
        thread.start()
    yield
    done.set()
    if thread.ident is not None:
        thread.join()


@pytest.mark.usefixtures("company")
def test_a_handler_runs_after_the_block(ringing):
    opened = []
    with pytest.raises(Rang), undisturbed():
        os.kill(os.getpid(), signal.SIGUSR1)
        opened.append(1)
        with undisturbed():
            os.kill(os.getpid(), signal.SIGUSR1)
            opened.append(2)
        opened.append(3)  # the inner one's end is not the outer one's
    assert opened == [1, 2, 3]
    assert signal.getsignal(signal.SIGUSR1) is ringing
    with pytest.raises(Rang):
        os.kill(os.getpid(), signal.SIGUSR1)


def test_an_error_in_the_block_puts_the_handlers_back(ringing):
    with pytest.raises(ZeroDivisionError), undisturbed():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGUSR1) is ringing


def test_every_signal_that_came_is_handed_on(ringing):
    came = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: came.append(number))
    try:
        with pytest.raises(Rang), undisturbed():
            signal.raise_signal(signal.SIGUSR1)  # its handler raises, and the next one's runs
            signal.raise_signal(signal.SIGUSR2)
            signal.raise_signal(signal.SIGUSR2)
            assert came == []
        assert came == [signal.SIGUSR2] * 2
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_a_handler_set_in_the_block_stays(ringing):
    def other(number, frame):
        """Set by whoever the block called."""

    with undisturbed():
        signal.signal(signal.SIGUSR1, other)
    assert signal.getsignal(signal.SIGUSR1) is other


def test_handlers_put_back_in_part_reach_theirs_all_the_same(ringing, monkeypatch):
    came = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: came.append(number))
    put_back = signal.signal

    def disturbed(number, handler):
        if number == signal.SIGUSR1 and handler is ringing:
            raise Rang  # as if the handler of one put back before had raised here
        return put_back(number, handler)

    try:
        with monkeypatch.context() as patch, pytest.raises(Rang), undisturbed():
            patch.setattr(signal, "signal", disturbed)
        assert signal.getsignal(signal.SIGUSR1) is not ringing  # what was to be shown
        with pytest.raises(Rang):
            signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR2)
        assert came == [signal.SIGUSR2]
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_another_thread_leaves_the_handlers_alone(ringing):
    seen = []

    def look():
        with undisturbed():
            seen.append(signal.getsignal(signal.SIGUSR1))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [ringing]
