"""What a rank under an mpiexec writes, on its way through that mpiexec to our launcher.

An mpiexec copies what its ranks write in whatever pieces it happens to read, those of several ranks
in between one another. So each piece travels as a block of one size, which divides every buffer
that an mpiexec reads into: a block is never cut. Whatever stands between blocks is text of the
mpiexec itself, or of the remote shell.

    mark   of the job   kind   rank   length   payload, filled up with spaces   line end
       1             16      1      7        3                             483          1
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

BLOCK = 512
_MARK = b"\x1e"
_HEADER = 28
LARGEST = BLOCK - _HEADER - 1


class Kind(Enum):
    """What a block tells of its rank."""

    OUT = b"o"  # it has written this to stdout
    ERR = b"e"  # and this to stderr
    BEGUN = b"b"  # it is being started; its process number
    ENDED = b"x"  # it has ended; exit code, or minus the signal


@dataclass(frozen=True)
class Block:
    """One of them."""

    kind: Kind
    rank: int
    payload: bytes


def write_blocks(token: str, kind: Kind, rank: int, data: bytes) -> bytes:
    """As many blocks as `data` takes.

    Args:
        token: of the job, 16 characters: nobody else's text looks like a block of it.
        kind: what they tell.
        rank: of whom.
        data: what goes into them.
    """
    pieces = [data[at : at + LARGEST] for at in range(0, len(data), LARGEST)]
    head = _MARK + token.encode() + kind.value
    return b"".join(
        b"%b%07d%03d%b\n" % (head, rank, len(piece), piece.ljust(LARGEST)) for piece in pieces
    )


class BlockReader:
    """Takes a stream apart into blocks and the text between them."""

    def __init__(self, token: str) -> None:
        self._rest = b""
        kinds = b"".join(kind.value for kind in Kind)
        self._head = re.compile(
            re.escape(_MARK + token.encode()) + rb"([%b])(\d{7})(\d{3})" % kinds, re.DOTALL
        )
        self._begin = _MARK + token.encode()

    def feed(self, data: bytes) -> list[Block | bytes]:
        """What has come whole, in order; text as it is, whole or in pieces."""
        data, self._rest = self._rest + data, b""
        found: list[Block | bytes] = []
        while data:
            at = _mark_in(data, self._begin)
            if at:
                found.append(data[:at])
                data = data[at:]
                continue
            if len(data) < BLOCK:
                self._rest = data
                break
            head = self._head.match(data)
            if head is None or data[BLOCK - 1 : BLOCK] != b"\n":  # another's words got into it
                found.append(data[:1])
                data = data[1:]
                continue
            payload = data[_HEADER : _HEADER + int(head[3])]
            found.append(Block(Kind(head[1]), int(head[2]), payload))
            data = data[BLOCK:]
        return found

    def finish(self) -> bytes:
        """What is left, which is no block."""
        rest, self._rest = self._rest, b""
        return rest


def _mark_in(data: bytes, begin: bytes) -> int:
    """Where a block begins, or may begin at the end of `data`; its length if nowhere."""
    at = data.find(begin)
    if at >= 0:
        return at
    near = data.rfind(_MARK, max(0, len(data) - len(begin) + 1))
    return near if near >= 0 and begin.startswith(data[near:]) else len(data)
