"""Point-to-point as a call that can be timed: ping-pong, and a stream of messages one way.

A call of `pingpong` is a message from rank 0 to rank 1 and one back, hence two of what is reported.
A call of `stream` is a window of messages from rank 0 to rank 1, then one back, much as in the
bandwidth tests of the OSU benchmarks. Other ranks take no part.
"""

from __future__ import annotations

from collections.abc import Callable

WINDOW = 16
"""Messages of a stream's call that go the one way."""

Message = Callable[..., object]


def ping_pong(rank: int, send: Message, recv: Message) -> Message:
    """There and back."""
    if rank == 0:

        def there() -> None:
            send(1)
            recv(1)

        return there
    if rank == 1:

        def back() -> None:
            recv(0)
            send(0)

        return back
    return _nothing


def stream(rank: int, send: Message, recv: Message) -> Message:
    """A window of messages one way, and one back."""
    if rank == 0:

        def source() -> None:
            for _ in range(WINDOW):
                send(1)
            recv(1)

        return source
    if rank == 1:

        def sink() -> None:
            for _ in range(WINDOW):
                recv(0)
            send(0)

        return sink
    return _nothing


def messages_of(collective: str) -> float:
    """How many messages, one after the other, a call is; 1 for a collective."""
    return {"pingpong": 2.0, "stream": WINDOW + 1.0}.get(collective, 1.0)


def _nothing() -> None:
    """What the ranks beyond the first two do."""
