"""One-sided steps as instructions: which memory of which rank each of them reaches into.

A chunk lies in its rank's input until it is first written, by whomever; from then on in the output
if the rank must hold it at the end, else in scratch, which nobody else can reach. Who has written
it by the time of a step is known from the proof, which shows that it is certain.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import groupby

from collectives.proof.verification import run_one_sided
from collectives.schedule import Algorithm, ScheduleError
from collectives.steps import WORDS, Copy, Notify, Read, ReadReduce, Step, Wait, Write
from transports.plan import Instruction, Space

Places = tuple[tuple[Space, int], ...]


class Reach:
    """Where all ranks of a one-sided algorithm find and leave their chunks.

    Attributes:
        inputs: for every rank the chunks in its input, in order.
        outputs: for every rank the chunks in its output, in order.
        remote: the spaces that any rank reaches into at a peer.
    """

    def __init__(self, algo: Algorithm, size: int, root: int, hosts: tuple[int, ...]) -> None:
        """Run all ranks symbolically.

        Raises:
            ProofError: some access is not ordered, or the ranks do not come to their end.
            ScheduleError: a step needs a chunk that lies in the scratch of a peer.
        """
        spec, count = algo.spec, algo.chunk_count(size)
        self._algo = algo
        self._schedules = [algo.schedule(rank, size, root, hosts) for rank in range(size)]
        self._machine = run_one_sided(algo, self._schedules, root)
        self.inputs = tuple(spec.inputs(rank, size, root, count) for rank in range(size))
        self.outputs = tuple(spec.outputs(rank, size, root, count) for rank in range(size))
        self._kept = [frozenset(chunks) for chunks in self.outputs]
        self.remote = tuple(sorted(set(self._all_remote())))

    def instructions(self, rank: int) -> list[Instruction]:
        """The steps of `rank`, each write joined to what made the value, in one pass over memory.

        A rank's own chunks that stay as they are go to its output while it last waits.
        """
        found: list[Instruction] = []
        before: Step | None = None
        for index, step in enumerate(self._schedules[rank]):
            if isinstance(step, Write) and self._makes(before, step, found):
                found = _joined(found, len(step.chunks), self._pokes(step.peers))
            else:
                found += self._placed(rank, index, step)
            before = step
        waits = [place for place, each in enumerate(found) if each.sources]
        last_wait = waits[-1] if waits else len(found)
        found[last_wait:last_wait] = self._delivery(rank)
        return found

    def _makes(self, before: Step | None, step: Write, found: Sequence[Instruction]) -> bool:
        """Whether the step before has made, or written to others, just what `step` writes."""
        if before is None or isinstance(before, Notify | Wait):
            return False
        chunks = (before.to,) if isinstance(before, Copy) else before.chunks
        poked = {peer for peer, _ in found[-1].pokes}
        return chunks == step.chunks and not poked & set(step.peers)

    def _placed(self, rank: int, index: int, step: Step) -> list[Instruction]:
        """A step as instructions: one for each run of chunks that lie alike at the peers."""
        if isinstance(step, Notify):
            return [Instruction((), targets=step.peers)]
        if isinstance(step, Wait):
            return [Instruction((), sources=tuple(sorted(step.peers)))]
        if isinstance(step, Copy):
            reads = self._own(rank, index, (step.source,))
            return [Instruction((step.to,), reads=reads, writes=self._stored(rank, (step.to,)))]
        assert isinstance(step, Read | ReadReduce | Write)
        if isinstance(step, Write):
            reads = self._own(rank, index, step.chunks)
            return [Instruction(step.chunks, reads=reads, pokes=self._pokes(step.peers))]
        peers = (step.peer,) if isinstance(step, Read) else tuple(sorted(step.peers))
        own_at = sum(peer < rank for peer in peers)

        def peeks(chunk: int) -> tuple[tuple[int, Space], ...]:
            return tuple((peer, self._found(rank, index, peer, chunk)) for peer in peers)

        placed = []
        for peeked, run in groupby(step.chunks, peeks):
            chunks = tuple(run)
            each = Instruction(chunks, writes=self._stored(rank, chunks), peeks=peeked)
            if isinstance(step, ReadReduce):
                each = replace(each, reads=self._own(rank, index, chunks), own_at=own_at)
            placed.append(each)
        return placed

    def _delivery(self, rank: int) -> list[Instruction]:
        """The copy of chunks that end in the output but were never written by anyone."""
        left = tuple(c for c in self.outputs[rank] if c not in self._machine.written[rank])
        if not left:
            return []
        reads = tuple((Space.INPUT, chunk) for chunk in left)
        return [Instruction(left, reads=reads, writes=self._stored(rank, left))]

    def _found(self, rank: int, index: int, owner: int, chunk: int) -> Space:
        """Where the memory of `owner` has a chunk that step `index` of `rank` reads."""
        if (rank, index, owner, chunk) not in self._machine.rewritten:
            return Space.INPUT
        return Space.OUTPUT if chunk in self._kept[owner] else Space.SCRATCH

    def _own(self, rank: int, index: int, chunks: Iterable[int]) -> Places:
        return tuple((self._found(rank, index, rank, chunk), chunk) for chunk in chunks)

    def _stored(self, rank: int, chunks: Iterable[int]) -> Places:
        kept = self._kept[rank]
        return tuple((Space.OUTPUT if c in kept else Space.SCRATCH, c) for c in chunks)

    def _pokes(self, peers: Iterable[int]) -> tuple[tuple[int, Space], ...]:
        return tuple((peer, Space.OUTPUT) for peer in sorted(peers))

    def _all_remote(self) -> Iterable[Space]:
        """The space of every access to a peer's memory."""
        for rank, steps in enumerate(self._schedules):
            for index, step in enumerate(steps):
                if not isinstance(step, Read | ReadReduce | Write):
                    continue
                for peer in (step.peer,) if isinstance(step, Read) else step.peers:
                    for chunk in step.chunks:
                        yield self._reached(rank, index, step, peer, chunk)

    def _reached(
        self, rank: int, index: int, step: Read | ReadReduce | Write, peer: int, chunk: int
    ) -> Space:
        if isinstance(step, Write):
            space = Space.OUTPUT if chunk in self._kept[peer] else Space.SCRATCH
        else:
            space = self._found(rank, index, peer, chunk)
        if space is Space.SCRATCH:
            raise ScheduleError(
                f"{self._algo.collective} {self._algo.name}, rank {rank}, step {index}: "
                f"{WORDS[type(step)]} of chunk {chunk} at rank {peer}, which has it in scratch; "
                "expected a chunk in its input or output, the only memory that peers can reach"
            )
        return space


def _joined(
    found: list[Instruction], chunks: int, pokes: tuple[tuple[int, Space], ...]
) -> list[Instruction]:
    """The last instructions, those of one step of so many chunks, with more pokes."""
    first = len(found)
    while chunks > 0:
        first -= 1
        chunks -= len(found[first].chunks)
    added = [replace(each, pokes=tuple(sorted((*each.pokes, *pokes)))) for each in found[first:]]
    return [*found[:first], *added]


@lru_cache(maxsize=16)
def reach(algo: Algorithm, size: int, root: int, hosts: tuple[int, ...]) -> Reach:
    """The reach of all ranks, worked out once.

    Raises:
        ProofError: as `Reach`.
        ScheduleError: as `Reach`.
    """
    return Reach(algo, size, root, hosts)
