"""The language of schedules: the steps a rank takes, and the decorator that makes an algorithm.

An algorithm is a generator that yields the steps of one rank, SPMD as MPI users think::

    @algorithm("allreduce", chunks=lambda size: size)
    def my_ring(rank, size):
        left, right = (rank - 1) % size, (rank + 1) % size
        for hop in range(size - 1):
            yield send(right, chunk=(rank - hop) % size)
            yield recv_reduce(left, chunk=(rank - hop - 1) % size)
        ...

What the chunks mean, and what each collective must achieve, is said in `collectives.specs`; that a
schedule achieves it is shown by `collectives.proof`. Nothing here moves a byte.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Container, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeAlias

from collectives.specs import SPECS, Spec, spec_named

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


Step: TypeAlias = Send | Recv | RecvReduce | Copy


@dataclass(frozen=True, slots=True)
class _Written:
    """A step as its author wrote it: not yet checked against size and collective."""

    kind: type[Send] | type[Recv] | type[RecvReduce] | type[Copy]
    peers: Any
    chunk: Any
    source: Any = None


def send(peers: int | Iterable[int], chunk: Chunk) -> _Written:
    """Send `chunk` (one, or a sequence that travels as one message) to one or several peers."""
    return _Written(Send, peers, chunk)


def recv(peer: int, chunk: Chunk) -> _Written:
    """Receive `chunk` (one, or the sequence that the peer sent) from `peer`."""
    return _Written(Recv, peer, chunk)


def recv_reduce(peers: int | Iterable[int], chunk: Chunk) -> _Written:
    """Receive `chunk` from each of `peers` and add them and the own value, in rank order."""
    return _Written(RecvReduce, peers, chunk)


def copy(to: Chunk, source: Chunk) -> _Written:
    """Copy chunk `source` over chunk `to`, both of this rank; they must be of one length."""
    return _Written(Copy, (), to, source)


class ScheduleError(ValueError):
    """An algorithm yielded something that is no step of its collective."""


Steps: TypeAlias = Generator[_Written, None, None]
"""What an algorithm's generator is."""

Body: TypeAlias = Callable[..., Steps]
_WANTED = ("rank", "size", "root", "hosts")


@dataclass(frozen=True, eq=False)
class Algorithm:
    """A named way to do a collective: data that is proved, drawn, costed and run.

    Attributes:
        collective: what it achieves; one of `collectives.specs.SPECS`.
        name: unique within the collective.
        body: the author's generator; takes any of rank, size, root, hosts.
        chunks: k of the spec, as a function of size (where the spec leaves k open).
        sizes: the sizes it is written for; None is every size >= 1.
        widest: number of chunks in the longest message any rank sends, as a function of size;
            None derives it from the schedules of all ranks, which costs time at large sizes.
        cost: closed form of the time of the critical path, in alpha, beta, gamma.
        messages: closed form of the messages sent by the busiest rank.
        volume: closed form of the bytes sent by the busiest rank; s is the size in bytes of
            all chunks together.
        source: where the algorithm is described.
    """

    collective: str
    name: str
    body: Body
    chunks: Callable[[int], int]
    sizes: Container[int] | Callable[[int], bool] | None = None
    widest: Callable[[int], int] | None = None
    cost: str = ""
    messages: str = ""
    volume: str = ""
    source: str = ""
    wants: tuple[str, ...] = field(default=("rank", "size"))

    @property
    def spec(self) -> Spec:
        """What the collective demands."""
        return SPECS[self.collective]

    def __call__(self, *args: Any, **kwargs: Any) -> Steps:
        """The author's generator itself, so that algorithms compose with `yield from`."""
        return self.body(*args, **kwargs)

    def allows(self, size: int) -> bool:
        """Whether it is written for `size` ranks."""
        if size < 1:
            return False
        if self.sizes is None:
            return True
        if callable(self.sizes):
            return bool(self.sizes(size))
        return size in self.sizes

    def chunk_count(self, size: int) -> int:
        """Number of chunks in the working array at `size` ranks."""
        return self.spec.chunk_count(size, self.chunks(size))

    def schedule(
        self, rank: int, size: int, root: int = 0, hosts: Sequence[int] | None = None
    ) -> tuple[Step, ...]:
        """All steps of `rank`, checked and normalised.

        Args:
            rank: whose steps.
            size: number of ranks.
            root: the root, for collectives that have one.
            hosts: `hosts[r]` is the index of rank r's host; None is one host.

        Raises:
            ValueError: size, rank or root is out of range, or not one the algorithm allows.
            ScheduleError: a step names a peer or chunk that does not exist.
        """
        if not self.allows(size):
            raise ValueError(f"{self.collective} {self.name} is not written for size {size}")
        if not 0 <= rank < size:
            raise ValueError(f"rank must be in 0..{size - 1}, found {rank}")
        if not 0 <= root < size:
            raise ValueError(f"root must be in 0..{size - 1}, found {root}")
        placed = tuple(hosts) if hosts is not None else (0,) * size
        if len(placed) != size:
            raise ValueError(f"hosts must have {size} entries, found {len(placed)}")
        return _schedule(self, rank, size, root, placed)

    def widest_message(self, size: int, root: int = 0, hosts: Sequence[int] | None = None) -> int:
        """Number of chunks in the longest message that any rank sends; at least 1."""
        if self.widest is not None:
            return max(1, self.widest(size))
        return _widest(self, size, root, tuple(hosts) if hosts is not None else (0,) * size)


@lru_cache(maxsize=256)
def _schedule(
    algo: Algorithm, rank: int, size: int, root: int, hosts: tuple[int, ...]
) -> tuple[Step, ...]:
    given = {"rank": rank, "size": size, "root": root, "hosts": hosts}
    written = algo.body(**{name: given[name] for name in algo.wants})
    chunk_count = algo.chunk_count(size)
    return tuple(
        _checked(algo, step, rank, size, chunk_count, index) for index, step in enumerate(written)
    )


@lru_cache(maxsize=256)
def _widest(algo: Algorithm, size: int, root: int, hosts: tuple[int, ...]) -> int:
    widths = [1]
    for rank in range(size):
        for step in algo.schedule(rank, size, root, hosts):
            if isinstance(step, Send):
                widths.append(len(step.chunks))
    return max(widths)


def _checked(
    algo: Algorithm, step: Any, rank: int, size: int, chunk_count: int, index: int
) -> Step:
    """The step with peers and chunks as tuples of ints, or a ScheduleError saying what is off."""
    where = f"{algo.collective} {algo.name}, rank {rank} of {size}, step {index}"
    if not isinstance(step, _Written):
        raise ScheduleError(f"{where}: expected send, recv, recv_reduce or copy, found {step!r}")
    if step.kind is Copy:
        return Copy(
            _one_chunk(algo, step.chunk, size, chunk_count, where),
            _one_chunk(algo, step.source, size, chunk_count, where),
        )
    peers = _peers(step.peers, rank, size, where)
    chunks = _chunks(algo, step.chunk, size, chunk_count, where)
    if step.kind is Recv:
        if len(peers) != 1:
            raise ScheduleError(f"{where}: recv takes one peer, found {peers}")
        return Recv(peers[0], chunks)
    if step.kind is RecvReduce:
        return RecvReduce(peers, chunks)
    return Send(peers, chunks)


def _peers(peers: Any, rank: int, size: int, where: str) -> tuple[int, ...]:
    found = tuple(peers) if isinstance(peers, Iterable) else (peers,)
    try:
        named = tuple(operator.index(peer) for peer in found)
    except TypeError:
        raise ScheduleError(f"{where}: peers must be ints, found {peers!r}") from None
    if not named:
        raise ScheduleError(f"{where}: expected at least one peer, found none")
    for peer in named:
        if not 0 <= peer < size:
            raise ScheduleError(f"{where}: peer must be in 0..{size - 1}, found {peer}")
        if peer == rank:
            raise ScheduleError(f"{where}: a rank cannot message itself (peer {peer})")
    if len(set(named)) != len(named):
        raise ScheduleError(f"{where}: a peer is named twice in {named}")
    return named


def _one_chunk(algo: Algorithm, chunk: Any, size: int, chunk_count: int, where: str) -> int:
    return _chunks(algo, [chunk], size, chunk_count, where)[0]


def _chunks(
    algo: Algorithm, chunk: Any, size: int, chunk_count: int, where: str
) -> tuple[int, ...]:
    pairs = algo.spec.chunking == "pairs"
    # A pair (source, destination) is one chunk of alltoall; a tuple elsewhere is a sequence.
    is_pair = pairs and isinstance(chunk, tuple) and not any(isinstance(c, tuple) for c in chunk)
    sequence = [chunk] if is_pair or not isinstance(chunk, Iterable) else list(chunk)
    if not sequence:
        raise ScheduleError(f"{where}: expected at least one chunk, found none")
    numbers = []
    for each in sequence:
        try:
            if pairs:
                source, destination = (operator.index(part) for part in each)
                inside = 0 <= source < size and 0 <= destination < size
                number = source * size + destination
            else:
                number = operator.index(each)
                inside = 0 <= number < chunk_count
        except (TypeError, ValueError):
            wanted = "(source, destination) pairs" if pairs else "ints"
            raise ScheduleError(f"{where}: chunks must be {wanted}, found {each!r}") from None
        if not inside:
            limit = f"pairs of 0..{size - 1}" if pairs else f"in 0..{chunk_count - 1}"
            raise ScheduleError(f"{where}: chunk must be {limit}, found {each!r}")
        numbers.append(number)
    if len(set(numbers)) != len(numbers):
        raise ScheduleError(f"{where}: a chunk is named twice in one message: {chunk!r}")
    return tuple(numbers)


def algorithm(
    collective: str,
    *,
    name: str | None = None,
    chunks: int | Callable[[int], int] = 1,
    sizes: Container[int] | Callable[[int], bool] | None = None,
    widest: Callable[[int], int] | None = None,
    cost: str = "",
    messages: str = "",
    volume: str = "",
    source: str = "",
) -> Callable[[Body], Algorithm]:
    """Make an `Algorithm` of a generator of steps; the arguments are its attributes.

    Raises:
        ValueError: the collective does not exist, or its chunk count is not the author's to choose.
        TypeError: the generator asks for an argument that is none of rank, size, root, hosts.
    """
    spec = spec_named(collective)
    if chunks != 1 and spec.chunking != "open":
        raise ValueError(
            f"{collective} fixes its chunks ({spec.chunking}); chunks= must be left out"
        )
    count = chunks if callable(chunks) else (lambda size, fixed=chunks: fixed)

    def decorate(body: Body) -> Algorithm:
        wants = tuple(inspect.signature(body).parameters)
        unknown = [want for want in wants if want not in _WANTED]
        if unknown:
            raise TypeError(
                f"{body.__name__} asks for {', '.join(unknown)}; an algorithm may ask for "
                f"{', '.join(_WANTED)}"
            )
        return Algorithm(
            collective=collective,
            name=name or body.__name__,
            body=body,
            chunks=count,
            sizes=sizes,
            widest=widest,
            cost=cost,
            messages=messages,
            volume=volume,
            source=source,
            wants=wants,
        )

    return decorate
