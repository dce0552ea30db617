"""From a proved schedule to a plan: chunks get a place, steps are fused, needless stores vanish.

The working array of the schedule exists nowhere as such. A chunk is read from the call's input
until it is first written; from then on it lives in the output if this rank must hold it at the
end, else in scratch. So the input is never clobbered and there is no pass that copies it first.
One-sided steps are placed by `collectives.reaching`, which knows where peers have their chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from collectives.overlapping import Overlap, find_overlap
from collectives.reaching import reach
from collectives.schedule import Algorithm, Copy, Recv, RecvReduce, ScheduleError, Send, Step
from transports.plan import Instruction, Plan, Space


def lower(
    algo: Algorithm, rank: int, size: int, root: int = 0, hosts: Sequence[int] | None = None
) -> Plan:
    """The plan of `rank`.

    Raises:
        ScheduleError: a step reads a chunk this rank does not hold, or reduces in a collective
            that does not, or a one-sided step needs a chunk in the scratch of a peer.
        ProofError: one-sided steps are not ordered; only those that are have a plan.
    """
    if algo.one_sided:
        return _lower_one_sided(algo, rank, size, root, hosts)
    inputs, outputs = _spaces(algo, rank, size, root)
    overlapped = _overlap(algo, size, root, tuple(hosts) if hosts is not None else None)
    instructions = _instructions(algo, rank, size, root, hosts)
    return Plan(
        rank=rank,
        size=size,
        chunk_count=algo.chunk_count(size),
        inputs=inputs,
        outputs=outputs,
        scratch=_scratch(instructions),
        widest=algo.widest_message(size, root, hosts),
        instructions=instructions,
        delays=overlapped.delays[rank] if overlapped else (),
        in_flight=overlapped.in_flight if overlapped else 0,
    )


@lru_cache(maxsize=512)
def lower_all(
    algo: Algorithm, size: int, root: int = 0, hosts: tuple[int, ...] | None = None
) -> tuple[Plan, ...]:
    """The plans of all ranks, where one has to know what the others do; raises as `lower`."""
    return tuple(lower(algo, rank, size, root, hosts) for rank in range(size))


def _spaces(
    algo: Algorithm, rank: int, size: int, root: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The chunks that lie in the input and in the output."""
    if algo.spec.chunking == "empty":
        return (0,), (0,)
    count = algo.chunk_count(size)
    return algo.spec.inputs(rank, size, root, count), algo.spec.outputs(rank, size, root, count)


def _instructions(
    algo: Algorithm, rank: int, size: int, root: int, hosts: Sequence[int] | None
) -> tuple[Instruction, ...]:
    """Of a schedule whose steps are messages."""
    inputs, outputs = _spaces(algo, rank, size, root)
    placer = _Placer(algo, rank, inputs, outputs)
    instructions = _fuse([placer.place(step) for step in algo.schedule(rank, size, root, hosts)])
    instructions = placer.deliver(instructions)
    return tuple(_drop_dead_stores(instructions, outputs))


@lru_cache(maxsize=512)
def _overlap(
    algo: Algorithm, size: int, root: int, hosts: tuple[int, ...] | None
) -> Overlap | None:
    """The same on every rank, as it looks at all of them."""
    if algo.spec.chunking == "empty":
        return None  # one pass
    return find_overlap(_instructions(algo, rank, size, root, hosts) for rank in range(size))


def _lower_one_sided(
    algo: Algorithm, rank: int, size: int, root: int, hosts: Sequence[int] | None
) -> Plan:
    reached = reach(algo, size, root, tuple(hosts) if hosts is not None else (0,) * size)
    outputs = reached.outputs[rank]
    instructions = _drop_dead_stores(
        reached.instructions(rank), outputs, shared=Space.OUTPUT in reached.remote
    )
    return Plan(
        rank=rank,
        size=size,
        chunk_count=algo.chunk_count(size),
        inputs=reached.inputs[rank],
        outputs=outputs,
        scratch=_scratch(instructions),
        widest=algo.widest_message(size, root, hosts),
        instructions=tuple(instructions),
        peer_inputs=reached.inputs,
        peer_outputs=reached.outputs,
        remote=reached.remote,
    )


def _scratch(instructions: Sequence[Instruction]) -> tuple[int, ...]:
    """The chunks that instructions keep in scratch."""
    used = {
        chunk
        for each in instructions
        for space, chunk in (*each.reads, *each.writes)
        if space is Space.SCRATCH
    }
    return tuple(sorted(used))


class _Placer:
    """Gives each step's operands their spaces, following where every chunk is."""

    def __init__(
        self, algo: Algorithm, rank: int, inputs: tuple[int, ...], outputs: tuple[int, ...]
    ) -> None:
        self._algo = algo
        self._rank = rank
        self._outputs = outputs
        self._kept = frozenset(outputs)
        self._at: dict[int, Space] = dict.fromkeys(inputs, Space.INPUT)

    def place(self, step: Step) -> Instruction:
        """The step as an instruction."""
        if isinstance(step, Send):
            return Instruction(step.chunks, targets=step.peers, reads=self._read(step.chunks))
        if isinstance(step, Recv):
            return Instruction(step.chunks, (step.peer,), writes=self._write(step.chunks))
        if isinstance(step, Copy):
            reads = self._read((step.source,))
            return Instruction((step.to,), reads=reads, writes=self._write((step.to,)))
        assert isinstance(step, RecvReduce), "one-sided steps are placed elsewhere"
        return self._reduce(step)

    def deliver(self, instructions: list[Instruction]) -> list[Instruction]:
        """With the copies of chunks that end in the output but were never written there.

        What is read for a message anyway is written on the way; the rest while the first message
        from a peer is under way.
        """
        left = [chunk for chunk in self._outputs if self._at.get(chunk) is Space.INPUT]
        if self._algo.spec.chunking == "empty":
            return instructions
        delivered = list(instructions)
        for index, each in enumerate(instructions):
            if each.targets and not each.sources and set(each.chunks) <= set(left):
                left = [chunk for chunk in left if chunk not in each.chunks]
                delivered[index] = replace(each, writes=_all_in(Space.OUTPUT, each.chunks))
        if left:
            rest = Instruction(
                tuple(left), reads=_all_in(Space.INPUT, left), writes=_all_in(Space.OUTPUT, left)
            )
            first = next((i for i, each in enumerate(delivered) if each.sources), len(delivered))
            delivered.insert(first, rest)
        return delivered

    def _reduce(self, step: RecvReduce) -> Instruction:
        if not self._algo.spec.reduces:
            raise ScheduleError(
                f"{self._algo.collective} {self._algo.name}, rank {self._rank}: recv_reduce in a "
                "collective that does not reduce; expected recv"
            )
        sources = tuple(sorted(step.peers))
        own_at = sum(source < self._rank for source in sources)
        reads = self._read(step.chunks)
        return Instruction(
            step.chunks, sources, reads=reads, writes=self._write(step.chunks), own_at=own_at
        )

    def _read(self, chunks: tuple[int, ...]) -> tuple[tuple[Space, int], ...]:
        missing = [chunk for chunk in chunks if chunk not in self._at]
        if missing:
            raise ScheduleError(
                f"{self._algo.collective} {self._algo.name}, rank {self._rank}: reads chunk "
                f"{missing[0]}, which it does not hold"
            )
        return tuple((self._at[chunk], chunk) for chunk in chunks)

    def _write(self, chunks: tuple[int, ...]) -> tuple[tuple[Space, int], ...]:
        for chunk in chunks:
            self._at[chunk] = Space.OUTPUT if chunk in self._kept else Space.SCRATCH
        return tuple((self._at[chunk], chunk) for chunk in chunks)


def _all_in(space: Space, chunks: Sequence[int]) -> tuple[tuple[Space, int], ...]:
    return tuple((space, chunk) for chunk in chunks)


def _fuse(instructions: list[Instruction]) -> list[Instruction]:
    """Join each receive to the send of the same chunks that directly follows it.

    The joined instruction takes its slot before it takes the message. With two slots that keeps
    what was proved with one: when the receive could run in the proof, at most one earlier message
    of this rank was still untaken, so the second slot is free.
    """
    fused: list[Instruction] = []
    for each in instructions:
        before = fused[-1] if fused else None
        if (
            before is not None
            and before.sources
            and not before.targets
            and not each.sources
            and each.targets
            and each.chunks == before.chunks
        ):
            fused[-1] = replace(before, targets=each.targets)
        else:
            fused.append(each)
    return fused


def _drop_dead_stores(
    instructions: list[Instruction], outputs: tuple[int, ...], shared: bool = False
) -> list[Instruction]:
    """Mark as NOWHERE what is overwritten, or never read, before anyone looks at it.

    Where the output is `shared`, peers may look at it at any time.
    """
    live = {(Space.OUTPUT, chunk) for chunk in outputs}
    always = frozenset(live) if shared else frozenset()
    kept: list[Instruction] = []
    for each in reversed(instructions):
        writes = tuple(
            place if place in live else (Space.NOWHERE, place[1]) for place in each.writes
        )
        live.difference_update(set(each.writes) - always)
        live.update(place for place in each.reads if place[0] is not Space.INPUT)
        if all(space is Space.NOWHERE for space, _ in writes):
            writes = ()
        if writes or each.targets or each.sources or each.pokes:
            kept.append(replace(each, writes=writes))
    kept.reverse()
    return kept
