"""The language of schedules: the steps a rank takes, and the decorator that makes an algorithm.

An algorithm is a generator that yields the steps of one rank, SPMD as MPI users think::

    @algorithm("allreduce", chunks=lambda size: size)
    def my_ring(rank, size):
        left, right = (rank - 1) % size, (rank + 1) % size
        for hop in range(size - 1):
            yield send(right, chunk=(rank - hop) % size)
            yield recv_reduce(left, chunk=(rank - hop - 1) % size)
        ...

The words are those of `collectives.steps`. What the chunks mean, and what each collective must
achieve, is said in `collectives.specs`; that a schedule achieves it is shown by
`collectives.proof`. Nothing here moves a byte.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Container, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import Any, TypeAlias, cast

from collectives.specs import SPECS, Spec, spec_named
from collectives.steps import (
    WORDS,
    Copy,
    Notify,
    OneSided,
    Read,
    ReadReduce,
    Recv,
    RecvReduce,
    Send,
    Step,
    Wait,
    Write,
    Written,
    copy,
    notify,
    read,
    read_reduce,
    recv,
    recv_reduce,
    send,
    wait,
    write,
)

__all__ = [
    "Algorithm", "Copy", "Notify", "Read", "ReadReduce", "Recv", "RecvReduce", "ScheduleError",
    "Send", "Step", "Steps", "Wait", "Write", "algorithm", "copy", "notify", "read", "read_reduce",
    "recv", "recv_reduce", "send", "wait", "write",
]  # fmt: skip


class ScheduleError(ValueError):
    """An algorithm yielded something that is no step of its collective."""


Steps: TypeAlias = Generator[Written, None, None]
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
        widest: number of chunks in the longest message any rank sends, as a function of size, or
            of size and hosts; None derives it from the schedules of all ranks, which costs time at
            large sizes.
        cost: closed form of the time of the critical path, in alpha, beta, gamma.
        messages: closed form of the messages sent by the busiest rank; each peer notified counts.
        volume: closed form of the bytes sent by the busiest rank, or read from and written to
            peers; s is the size in bytes of all chunks together.
        wire: closed form of the bytes that the busiest of h equal hosts sends to others; empty for
            algorithms that do not ask for hosts.
        source: where the algorithm is described.
        one_sided: whether ranks reach into each other's memory (which must be symmetric) instead
            of sending messages; checked against the steps.
    """

    collective: str
    name: str
    body: Body
    chunks: Callable[[int], int]
    sizes: Container[int] | Callable[[int], bool] | None = None
    widest: Callable[..., int] | None = None
    cost: str = ""
    messages: str = ""
    volume: str = ""
    wire: str = ""
    source: str = ""
    one_sided: bool = False
    wants: tuple[str, ...] = field(default=("rank", "size"))

    def __repr__(self) -> str:
        return f"<{self.collective} {self.name}>"

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
            ScheduleError: a step names a peer or chunk that does not exist, or is of the other
                family than `one_sided` says; or the steps do not end.
        """
        if not self.allows(size):
            raise ValueError(f"{self.collective} {self.name} is not written for size {size}")
        if not 0 <= rank < size:
            raise ValueError(f"rank must be in 0..{size - 1}, found {rank}")
        if not 0 <= root < size:
            raise ValueError(f"root must be in 0..{size - 1}, found {root}")
        placed = _placed(hosts, size)
        if len(placed) != size:
            raise ValueError(f"hosts must have {size} entries, found {len(placed)}")
        return _schedule(self, rank, size, root, placed)

    def widest_message(self, size: int, root: int = 0, hosts: Sequence[int] | None = None) -> int:
        """Number of chunks in the longest message that any rank sends; at least 1."""
        if self.widest is None:
            return _widest(self, size, root, _placed(hosts, size))
        of_hosts = len(inspect.signature(self.widest).parameters) > 1
        return max(1, self.widest(size, _placed(hosts, size)) if of_hosts else self.widest(size))


def _placed(hosts: Sequence[int] | None, size: int) -> tuple[int, ...]:
    return tuple(hosts) if hosts is not None else (0,) * size


@lru_cache(maxsize=256)
def _schedule(
    algo: Algorithm, rank: int, size: int, root: int, hosts: tuple[int, ...]
) -> tuple[Step, ...]:
    given = {"rank": rank, "size": size, "root": root, "hosts": hosts}
    where = f"{algo.collective} {algo.name}, rank {rank} of {size}"
    with _own_errors(where):
        written = algo.body(**{name: given[name] for name in algo.wants})
    if not isinstance(written, Iterable):
        raise ScheduleError(
            f"{where}: expected a generator of steps, found a function that returns {written!r}"
        )
    chunk_count = algo.chunk_count(size)
    most = _most_steps(algo, size, chunk_count)
    with _own_errors(where):
        listed = list(islice(written, most + 1))
    if len(listed) > most:
        raise ScheduleError(
            f"{where}: expected at most {most} steps, found more: does a loop in it never end?"
        )
    steps = tuple(
        _checked(algo, step, rank, size, chunk_count, index) for index, step in enumerate(listed)
    )
    _check_family(algo, steps, where)
    return steps


def _most_steps(algo: Algorithm, size: int, chunk_count: int) -> int:
    """How many steps a rank may take, far beyond what any algorithm needs.

    Exchanging every chunk with every peer, one a message, takes 2 steps each; over symmetric memory
    4: move it, notify, wait. Eight leave room for copies and detours, 1000 for demonstrations.
    A chunk of alltoall belongs to one pair of ranks: to meet each once, on its way, is enough.
    """
    return 1000 + 8 * chunk_count * (1 if algo.spec.chunking == "pairs" else size)


@contextmanager
def _own_errors(where: str) -> Iterator[None]:
    """What an algorithm's own lines raise names the algorithm and the rank."""
    try:
        yield
    except ScheduleError:
        raise
    except Exception as error:
        raise ScheduleError(f"{where}: its body raised {type(error).__name__}: {error}") from error


def _check_family(algo: Algorithm, steps: Sequence[Step], where: str) -> None:
    """All messages or all one-sided, as the algorithm says it is; copies may stand in both."""
    first: dict[bool, str] = {}
    for index, step in enumerate(steps):
        if not isinstance(step, Copy):
            first.setdefault(isinstance(step, OneSided), f"{WORDS[type(step)]} (step {index})")
    if len(first) == 2:
        raise ScheduleError(
            f"{where}: expected messages only or one-sided steps only, found {first[False]} "
            f"beside {first[True]}"
        )
    if (not algo.one_sided) in first:
        found = first[not algo.one_sided]
        expected = "one-sided steps" if algo.one_sided else "messages"
        raise ScheduleError(
            f"{where}: expected {expected} in an algorithm with one_sided={algo.one_sided}, "
            f"found {found}"
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
    if not isinstance(step, Written):
        *words, last = WORDS.values()
        raise ScheduleError(f"{where}: expected {', '.join(words)} or {last}, found {step!r}")
    if step.kind is Copy:
        return Copy(
            _one_chunk(algo, step.chunk, size, chunk_count, where),
            _one_chunk(algo, step.source, size, chunk_count, where),
        )
    peers = _peers(step.peers, rank, size, where)
    if step.kind is Notify or step.kind is Wait:
        return step.kind(peers)
    chunks = _chunks(algo, step.chunk, size, chunk_count, where)
    if step.kind is Recv or step.kind is Read:
        if len(peers) != 1:
            raise ScheduleError(f"{where}: {WORDS[step.kind]} takes one peer, found {peers}")
        return step.kind(peers[0], chunks)
    several = cast("type[Send | RecvReduce | ReadReduce | Write]", step.kind)
    return several(peers, chunks)


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
            raise ScheduleError(f"{where}: a rank cannot be its own peer ({peer})")
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
    widest: Callable[..., int] | None = None,
    cost: str = "",
    messages: str = "",
    volume: str = "",
    wire: str = "",
    source: str = "",
    one_sided: bool = False,
) -> Callable[[Body], Algorithm]:
    """Make an `Algorithm` of a generator of steps; the arguments are its attributes.

    Raises:
        ValueError: the collective does not exist, its chunk count is not the author's to choose,
            or it has no memory that peers could reach into.
        TypeError: no collective is named, or the generator asks for an argument that is none of
            rank, size, root, hosts.
    """
    if not isinstance(collective, str):
        raise TypeError(
            f'expected the collective, as in @algorithm("allreduce"), found {collective!r}'
        )
    spec = spec_named(collective)
    if chunks != 1 and spec.chunking != "open":
        raise ValueError(
            f"{collective} fixes its chunks ({spec.chunking}); chunks= must be left out"
        )
    if one_sided and spec.chunking == "empty":
        raise ValueError(f"{collective} has no memory to reach into; one_sided= must be left out")
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
            wire=wire,
            source=source,
            one_sided=one_sided,
            wants=wants,
        )

    return decorate
