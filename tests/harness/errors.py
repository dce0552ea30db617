"""Errors as tests inside ranks expect them: the type, and what the text must name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np


class Caught:
    """What a block raised.

    Attributes:
        error: the exception; set once the block has ended.
    """

    error: BaseException

    def __str__(self) -> str:
        return str(self.error)


@contextmanager
def raising(kind: type[BaseException], *words: str) -> Iterator[Caught]:
    """Passes if the block raises `kind` and the text holds all of `words`."""
    caught = Caught()
    try:
        yield caught
    except kind as error:
        caught.error = error
        missing = [word for word in words if word not in str(error)]
        assert not missing, f"expected {missing} in the text of {error!r}"
    else:
        raise AssertionError(f"expected {kind.__name__}, nothing was raised")


def still_works(comm: Any) -> None:
    """Passes if every rank takes part in another call."""
    found = comm.allreduce(np.arange(3) + comm.rank)
    wanted = comm.size * np.arange(3) + sum(range(comm.size))
    assert found.tolist() == wanted.tolist(), found


def refused(
    comm: Any, kind: type[BaseException], words: list[str], call: Callable[[], Any]
) -> None:
    """Passes if `call` raises before anything is sent, and the communicator works afterwards."""
    before = comm._engine.calls
    with raising(kind, *words):
        call()
    assert comm._engine.calls == before, "something was sent"
    still_works(comm)
