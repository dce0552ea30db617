"""What two processes of one job say to each other over a socket, and how each shows who it is."""

from __future__ import annotations

import hashlib
import hmac
import json
import socket
import struct
from typing import Any

from transports.errors import CollectiveTimeout, MismatchError, PeerLostError

LONGEST_NOTE = 1 << 24
_UCRED = struct.Struct("3i")


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
    connection.sendall(struct.pack("!I", len(data)) + data)


def hear(connection: socket.socket, wanted: str, longest: int = LONGEST_NOTE) -> dict[str, Any]:
    """The next note, which must hold `wanted`.

    Raises:
        ValueError: it is something else.
    """
    (length,) = struct.unpack("!I", _exactly(connection, 4))
    if length > longest:
        raise ValueError(f"a note of {length} bytes")
    try:
        note: dict[str, Any] = json.loads(_exactly(connection, length))
    except RecursionError:
        raise ValueError("a note without end") from None
    if not isinstance(note, dict):
        raise ValueError(f"expected {wanted}, found a note of another kind")
    if wanted and wanted not in note:
        raise ValueError(f"expected {wanted}, found {sorted(note)}")
    return note


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
        kinds = {"did not come": CollectiveTimeout, "ended during": PeerLostError}
        raise next((kind for words, kind in kinds.items() if words in text), MismatchError)(text)
    if wanted not in note:
        raise ValueError(f"expected {wanted}, found {sorted(note)}")
    return note


def _exactly(connection: socket.socket, length: int) -> bytes:
    parts = bytearray()
    while len(parts) < length:
        part = connection.recv(length - len(parts))
        if not part:
            raise EOFError("the connection ended")
        parts += part
    return bytes(parts)
