"""Where rank 0 lets the ranks of its job in.

Everyone who comes is spoken to at once, and heard piece by piece as it comes, so that whoever
connects and says nothing (a rank that stands still, a process that is none) holds up nobody. And
whatever ends the meeting on rank 0 is told to all who are there before they are left.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import selectors
import socket
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from transports.rendezvous.awaiting import LOOK_SECONDS, Waiting
from transports.rendezvous.notes import Arriving, is_proof, refusal_of, say, user_of

_LONGEST_HELLO = 1 << 16  # of somebody who has yet to show that he knows the secret


@dataclass(frozen=True)
class _Visitor:
    """Somebody who has yet to show that he knows the secret."""

    connection: socket.socket
    challenge: str
    hello: Arriving


class Door:
    """Closed, with all connections it has let in, at the end of its block."""

    def __init__(self, secret: str, waiting: Waiting) -> None:
        """Nobody can come before it is opened."""
        self._secret = secret
        self._waiting = waiting
        self._inside: list[socket.socket] = []
        self._visitors: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self._selector = selectors.DefaultSelector()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self.refuse(error)
        self.shut()
        for connection in self._inside:
            connection.close()

    def open(self, address: str, backlog: int) -> None:
        """Listen.

        Raises:
            OSError: somebody else listens there.
        """
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            listener.bind(address)
            listener.listen(backlog)
            listener.setblocking(False)
            self._selector.register(listener, selectors.EVENT_READ)
            stack.pop_all()
        self._listener = listener

    def shut(self) -> None:
        """Whoever comes from now on, or has not shown that he belongs here, does not."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for connection in self._visitors:
            connection.close()
        self._visitors.clear()
        self._selector.close()

    def next_hello(self, text: str) -> tuple[socket.socket, dict[str, Any]] | None:
        """What the next one says who knows the secret; None when the waiting has its deadline.

        Args:
            text: what to say of a long wait, with {} for the seconds.
        """
        while True:
            self._waiting.look(text)
            seconds = min(self._waiting.left, LOOK_SECONDS)
            for key, _ in self._selector.select(max(0, seconds)):
                if key.data is None:
                    self._receive_all()
                elif (note := self._hear(key.data)) is not None:
                    return key.data.connection, note
            if self._waiting.left <= 0:
                return None

    def turn_away(self, connection: socket.socket) -> None:
        """Somebody who is inside says what no rank says."""
        self._inside.remove(connection)
        connection.close()

    def refuse(self, error: BaseException) -> None:
        """Tell all who have come what has ended the meeting."""
        with contextlib.suppress(OSError):
            self._receive_all()
        for connection in (*self._inside, *self._visitors):
            with contextlib.suppress(OSError):
                connection.setblocking(False)  # nobody is waited for any more
                say(connection, refusal_of(error))

    def _receive_all(self) -> None:
        while self._listener is not None:
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            self._receive(connection)

    def _receive(self, connection: socket.socket) -> None:
        self._visitors.add(connection)
        connection.setblocking(False)
        visitor = _Visitor(connection, secrets.token_hex(16), Arriving("hello", _LONGEST_HELLO))
        self._selector.register(connection, selectors.EVENT_READ, visitor)
        if user_of(connection) != os.getuid():
            self._dismiss(visitor)
            return
        try:
            say(connection, {"challenge": visitor.challenge})
        except OSError:
            self._dismiss(visitor)

    def _hear(self, visitor: _Visitor) -> dict[str, Any] | None:
        """What a visitor has said, if that is a whole hello and he knows the secret."""
        try:
            note = visitor.hello.read_from(visitor.connection)
        except (OSError, EOFError, ValueError):
            self._dismiss(visitor)
            return None
        if note is None:
            return None
        if not is_proof(note.get("proof"), self._secret, "rank", visitor.challenge):
            refusal = {"refusal": "the job's secret is another one", "secret": False}
            with contextlib.suppress(OSError):
                say(visitor.connection, refusal)
            self._dismiss(visitor)
            return None
        self._selector.unregister(visitor.connection)
        self._visitors.discard(visitor.connection)
        self._inside.append(visitor.connection)
        visitor.connection.settimeout(max(0.001, self._waiting.left))
        return note

    def _dismiss(self, visitor: _Visitor) -> None:
        self._selector.unregister(visitor.connection)
        self._visitors.discard(visitor.connection)
        visitor.connection.close()
