"""What two processes of one job say to each other over a socket, and how each shows who it is."""

from __future__ import annotations

import hashlib
import hmac
import json
import socket
import struct
from typing import Any

from transports.errors import AbortedError, CollectiveTimeout, MismatchError, PeerLostError

LONGEST_NOTE = 1 << 24
_UCRED = struct.Struct("3i")
_DESCRIPTOR = struct.Struct("i")
_LENGTH = struct.Struct("!I")
_KINDS = {
    kind.__name__: kind for kind in (AbortedError, CollectiveTimeout, MismatchError, PeerLostError)
}


def user_of(connection: socket.socket) -> int:
    """The user id of the process at the other end, as the kernel knows it."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return int(_UCRED.unpack(raw)[1])


def proof_of(secret: str, role: str, challenge: str) -> str:
    """What only someone who knows the secret can answer to a challenge.

    The role keeps an answer of one side from being passed off as one of the other.
    """
    return hmac.new(secret.encode(), f"{role} {challenge}".encode(), hashlib.sha256).hexdigest()


def is_proof(shown: object, secret: str, role: str, challenge: str) -> bool:
    """Whether `shown` is that answer."""
    wanted = proof_of(secret, role, challenge)
    return hmac.compare_digest(str(shown).encode(), wanted.encode())


def say(connection: socket.socket, note: dict[str, Any]) -> None:
    """Send one note."""
    data = json.dumps(note).encode()
    connection.sendall(_LENGTH.pack(len(data)) + data)


class Arriving:
    """A note as it comes, piece by piece."""

    def __init__(self, wanted: str, longest: int = LONGEST_NOTE) -> None:
        """It must hold `wanted` ("": anything), and be no longer than `longest`."""
        self._wanted = wanted
        self._longest = longest
        self._data = bytearray()

    def read_from(self, connection: socket.socket) -> dict[str, Any] | None:
        """The note; None if the connection does not block and has no more of it for now.

        Raises:
            EOFError: the connection ended.
            ValueError: it is something else.
        """
        while missing := self._missing():
            try:
                part = connection.recv(missing)
            except BlockingIOError:
                return None
            if not part:
                raise EOFError("the connection ended")
            self._data += part
        return self._whole()

    def _missing(self) -> int:
        if len(self._data) < _LENGTH.size:
            return _LENGTH.size - len(self._data)
        (length,) = _LENGTH.unpack(self._data[: _LENGTH.size])
        if length > self._longest:
            raise ValueError(f"a note of {length} bytes")
        return int(length) + _LENGTH.size - len(self._data)

    def _whole(self) -> dict[str, Any]:
        try:
            note: dict[str, Any] = json.loads(self._data[_LENGTH.size :])
        except RecursionError:
            raise ValueError("a note without end") from None
        if not isinstance(note, dict):
            raise ValueError(f"expected {self._wanted}, found a note of another kind")
        if self._wanted and self._wanted not in note:
            raise ValueError(f"expected {self._wanted}, found {sorted(note)}")
        return note


def hear(connection: socket.socket, wanted: str) -> dict[str, Any]:
    """The next note, which must hold `wanted`.

    Raises:
        EOFError: the connection ended.
        ValueError: it is something else.
    """
    note = Arriving(wanted).read_from(connection)
    assert note is not None, "it blocks"
    return note


def refusal_of(error: BaseException) -> dict[str, Any]:
    """What rank 0 says to those who are there when this ends the meeting."""
    kind = type(error).__name__
    if kind in _KINDS:
        return {"refusal": str(error), "kind": kind}
    said = f"rank 0 raised {kind} in the rendezvous" + (f": {error}" if str(error) else "")
    return {"refusal": said, "kind": AbortedError.__name__}


def hear_rank_zero(connection: socket.socket, wanted: str) -> dict[str, Any]:
    """The next note of rank 0, which must hold `wanted`; a refusal is raised as what it is.

    Raises:
        CollectiveError: rank 0 refuses this rank, or the whole meeting.
        PermissionError: rank 0 has another secret.
        ValueError: it is something else.
    """
    note = hear(connection, "")
    if "refusal" in note:
        text = str(note["refusal"])
        if note.get("secret") is False:
            raise PermissionError(f"rank 0 refuses this rank: {text}")
        raise _KINDS.get(str(note.get("kind")), MismatchError)(text)
    if wanted not in note:
        raise ValueError(f"expected {wanted}, found {sorted(note)}")
    return note


def hear_descriptor(connection: socket.socket) -> int:
    """The file descriptor that comes with the next byte; the caller's to close.

    Raises:
        ConnectionError: none comes.
    """
    # Closed in any program that another thread starts at this moment, which would keep the memory.
    # `socket.recv_fds` does not hand that wish on.
    room = socket.CMSG_LEN(_DESCRIPTOR.size)
    _, parts, _, _ = connection.recvmsg(1, room, socket.MSG_CMSG_CLOEXEC)
    for level, kind, data in parts:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS) and data:
            return int(_DESCRIPTOR.unpack(data)[0])
    raise ConnectionError("no descriptor came")
