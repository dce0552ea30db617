"""The steps of a schedule: what a rank can do, and the words in which authors say it.

There are two families. Messages: what is sent arrives at whoever receives it. One-sided steps: a
rank reads and writes the memory of its peers, which stand still; who may do so when is said by
`notify` and `wait`. Everything a rank did before it notified, and whatever that rank had waited
for, is visible to the peer once it has waited.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

Chunk: TypeAlias = Any
"""A chunk as an author writes it: an int, or for alltoall a (source, destination) pair."""


@dataclass(frozen=True, slots=True)
class Send:
    """Post `chunks` as one message, written once and read by each of `peers`."""

    peers: tuple[int, ...]
    chunks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Recv:
    """Take the next message of `peer`; its chunks replace this rank's."""

    peer: int
    chunks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RecvReduce:
    """Take one message of each of `peers`; add them and the own value, in rank order."""

    peers: tuple[int, ...]
    chunks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Copy:
    """Copy chunk `source` to chunk `to` within this rank."""

    to: int
    source: int


@dataclass(frozen=True, slots=True)
class Read:
    """Read `chunks` in the memory of `peer`; they replace this rank's."""

    peer: int
    chunks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ReadReduce:
    """Read `chunks` in the memory of `peers`; add them and the own value, in rank order."""

    peers: tuple[int, ...]
    chunks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Write:
    """Store this rank's `chunks` over those of each of `peers`."""

    peers: tuple[int, ...]
    chunks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Notify:
    """Tell each of `peers` that all up to here is done; moves no chunk."""

    peers: tuple[int, ...]
    chunks: ClassVar[tuple[int, ...]] = ()


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait for one notify of each of `peers`; moves no chunk."""

    peers: tuple[int, ...]
    chunks: ClassVar[tuple[int, ...]] = ()


Message: TypeAlias = Send | Recv | RecvReduce
OneSided: TypeAlias = Read | ReadReduce | Write | Notify | Wait
Step: TypeAlias = Message | OneSided | Copy

WORDS: dict[type[Step], str] = {
    Send: "send",
    Recv: "recv",
    RecvReduce: "recv_reduce",
    Read: "read",
    ReadReduce: "read_reduce",
    Write: "write",
    Notify: "notify",
    Wait: "wait",
    Copy: "copy",
}
"""What an author calls each kind of step."""


@dataclass(frozen=True, slots=True)
class Written:
    """A step as its author wrote it: not yet checked against size and collective."""

    kind: type[Step]
    peers: Any
    chunk: Any = None
    source: Any = None


def send(peers: int | Iterable[int], chunk: Chunk) -> Written:
    """Send `chunk` (one, or a sequence that travels as one message) to one or several peers."""
    return Written(Send, peers, chunk)


def recv(peer: int, chunk: Chunk) -> Written:
    """Receive `chunk` (one, or the sequence that the peer sent) from `peer`."""
    return Written(Recv, peer, chunk)


def recv_reduce(peers: int | Iterable[int], chunk: Chunk) -> Written:
    """Receive `chunk` from each of `peers` and add them and the own value, in rank order."""
    return Written(RecvReduce, peers, chunk)


def copy(to: Chunk, source: Chunk) -> Written:
    """Copy chunk `source` over chunk `to`, both of this rank; they must be of one length."""
    return Written(Copy, (), to, source)


def read(peer: int, chunk: Chunk) -> Written:
    """Replace the own `chunk` (one, or a sequence) by what lies in the memory of `peer`."""
    return Written(Read, peer, chunk)


def read_reduce(peers: int | Iterable[int], chunk: Chunk) -> Written:
    """Add `chunk` of each of `peers`, read in their memory, and the own value, in rank order."""
    return Written(ReadReduce, peers, chunk)


def write(peers: int | Iterable[int], chunk: Chunk) -> Written:
    """Store the own `chunk` into the memory of each of `peers`, over the same chunk there."""
    return Written(Write, peers, chunk)


def notify(peers: int | Iterable[int]) -> Written:
    """Tell each of `peers` that all steps of this rank up to here are done."""
    return Written(Notify, peers)


def wait(peers: int | Iterable[int]) -> Written:
    """Wait until each of `peers` has notified this rank once more."""
    return Written(Wait, peers)
