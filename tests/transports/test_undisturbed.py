"""Signals wait for the end of an undisturbed block."""

from __future__ import annotations

import os
import signal

import pytest

from transports.undisturbed import undisturbed


class Rang(Exception):
    """What a handler raises."""


@pytest.fixture
def ringing():
    def ring(number, frame):
        raise Rang

    before = signal.signal(signal.SIGUSR1, ring)
    yield
    signal.signal(signal.SIGUSR1, before)


def test_a_handler_runs_after_the_block(ringing):
    opened = []
    with pytest.raises(Rang), undisturbed():
        os.kill(os.getpid(), signal.SIGUSR1)
        opened.append(1)
        with undisturbed():
            opened.append(2)
        opened.append(3)  # the inner one's end is not the outer one's
    assert opened == [1, 2, 3]
    with pytest.raises(Rang):
        os.kill(os.getpid(), signal.SIGUSR1)


def test_an_error_in_the_block_unblocks_too(ringing):
    with pytest.raises(ZeroDivisionError), undisturbed():
        raise ZeroDivisionError
    assert signal.SIGUSR1 not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
