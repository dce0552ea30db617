"""A plan: one rank's schedule, lowered to instructions that an engine executes in order.

Every instruction has one shape, and an engine is one loop over them::

    1. if there are targets, take a slot of the own outbox
    2. take one message from each of the sources, in place
    3. value = the own operand and the sources' payloads, folded in rank order
       (no sources: the own operand; one source and no operand: its payload)
    4. write the value to its locations, post it to the targets, release the sources

An operand is a chunk in a space: the call's input, its output, or scratch. Where in a space a
chunk lies is bound at each call from a table of chunk lengths (`Layout`). Long messages run as
passes: pass k carries segment k of every chunk through the whole plan, so a message never
exceeds a slot and scratch never exceeds a segment a chunk.

Passes overlap where the plan has *delays*, and the engine room for `in_flight` messages of a rank:
in wave w it runs, in their order, each instruction for the pass w - delay, if there is one.

A one-sided plan reaches into the memory of peers instead. Its messages are empty: a notify is an
instruction without chunks that has targets, a wait one that has sources, and what a rank did
before it notified is visible to whoever has waited for it. In between,

    value = the own operand and what is peeked at in the peers' memory, folded in rank order
    write the value to its locations, poke it into the peers' memory

The whole of every chunk goes in one pass, whatever its length: no slot bounds it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import accumulate


class Space(IntEnum):
    """Where an operand lives; NOWHERE marks a value that nobody reads again."""

    NOWHERE = 0
    INPUT = 1
    OUTPUT = 2
    SCRATCH = 3


@dataclass(frozen=True, slots=True)
class Instruction:
    """One action of an engine; see the module's docstring.

    Attributes:
        chunks: what it moves, in message order.
        sources: peers to take one message from each, ascending when there are several.
        targets: peers to post the value to, as one message written once.
        reads: for each chunk the own operand (space, chunk); () if the own value is not read.
        writes: for each chunk where the value is kept (space, chunk); () if nowhere.
        own_at: with reads and sources (or peeks): how many of these come before the own operand
            in the fold.
        peeks: (peer, space) pairs, ascending by peer: where every chunk is read in place, as
            further operands of the fold; a plan has either these or messages with chunks.
        pokes: (peer, space) pairs, ascending by peer: where the value of every chunk is written
            too, besides `writes`.
    """

    chunks: tuple[int, ...]
    sources: tuple[int, ...] = ()
    targets: tuple[int, ...] = ()
    reads: tuple[tuple[Space, int], ...] = ()
    writes: tuple[tuple[Space, int], ...] = ()
    own_at: int = 0
    peeks: tuple[tuple[int, Space], ...] = ()
    pokes: tuple[tuple[int, Space], ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """All instructions of one rank, with the chunks that live in each space.

    Attributes:
        rank: whose plan.
        size: number of ranks.
        chunk_count: number of chunks in the working array.
        inputs: chunks that lie in the input, in order, without gaps.
        outputs: chunks that lie in the output, in order, without gaps.
        scratch: chunks that need scratch room.
        widest: chunks in the longest message of any rank; bounds the segment length.
        instructions: what to do, in order.
        peer_inputs: of a one-sided plan, for every rank the chunks that lie in its input, in
            order; () where all steps are messages.
        peer_outputs: likewise for its output.
        remote: the spaces that any rank reaches into at a peer, the same on every rank: only
            these arrays must be symmetric memory.
        delays: of each instruction, never less than the one before; () where passes must run one
            after the other.
        in_flight: how many messages a rank has on their way at most when passes overlap.
    """

    rank: int
    size: int
    chunk_count: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    scratch: tuple[int, ...]
    widest: int
    instructions: tuple[Instruction, ...]
    peer_inputs: tuple[tuple[int, ...], ...] = ()
    peer_outputs: tuple[tuple[int, ...], ...] = ()
    remote: tuple[Space, ...] = ()
    delays: tuple[int, ...] = ()
    in_flight: int = 0

    @property
    def one_sided(self) -> bool:
        """Whether it reaches into the memory of peers; then it runs as one pass."""
        return bool(self.peer_inputs)


class Layout:
    """Where each chunk of a plan begins and ends, in elements, for one table of lengths."""

    def __init__(
        self, plan: Plan, lengths: Sequence[int], slot_elements: int, in_flight: int = 0
    ) -> None:
        """Bind `plan` to chunk `lengths`; a message carries at most `slot_elements` elements.

        Passes overlap if a rank may have as many messages on their way as that needs, by
        `in_flight`. A one-sided plan has no messages with elements: its segments are whole chunks.

        Raises:
            ValueError: the table has the wrong number of lengths, or a negative one, or a slot
                cannot hold one element of each chunk of the widest message.
        """
        if len(lengths) != plan.chunk_count:
            raise ValueError(f"expected {plan.chunk_count} chunk lengths, found {len(lengths)}")
        if min(lengths, default=0) < 0:
            raise ValueError(f"chunk lengths must not be negative, found {min(lengths)}")
        longest = max(lengths, default=0)
        self.segment = max(1, longest) if plan.one_sided else slot_elements // plan.widest
        if self.segment < 1:
            raise ValueError(
                f"a slot of {slot_elements} elements cannot hold a message of {plan.widest} chunks"
            )
        self.lengths = tuple(lengths)
        self.passes = max(1, -(-longest // self.segment))
        overlaps = bool(plan.delays) and self.passes > 1 and in_flight >= plan.in_flight
        self.delays = plan.delays if overlaps else (0,) * len(plan.instructions)
        self.begins = {
            Space.INPUT: self._begins(plan.inputs),
            Space.OUTPUT: self._begins(plan.outputs),
            Space.SCRATCH: {c: i * self.segment for i, c in enumerate(plan.scratch)},
        }
        self.input_elements = sum(lengths[c] for c in plan.inputs)
        self.output_elements = sum(lengths[c] for c in plan.outputs)
        self.scratch_elements = len(plan.scratch) * self.segment
        self._peers = {Space.INPUT: plan.peer_inputs, Space.OUTPUT: plan.peer_outputs}
        self._peer_begins: dict[tuple[int, Space], dict[int, int]] = {}

    def _begins(self, chunks: Sequence[int]) -> dict[int, int]:
        starts = accumulate((self.lengths[c] for c in chunks), initial=0)
        return dict(zip(chunks, starts, strict=False))

    def order(self) -> Iterator[tuple[int, int]]:
        """What a rank does: (pass, index of the instruction) pairs, in order."""
        for wave in range(self.passes + max(self.delays, default=0)):
            for index, delay in enumerate(self.delays):
                if 0 <= wave - delay < self.passes:
                    yield wave - delay, index

    def extent(self, chunk: int, turn: int) -> int:
        """Elements of `chunk` that pass `turn` carries."""
        return max(0, min(self.segment, self.lengths[chunk] - turn * self.segment))

    def place(self, space: Space, chunk: int, turn: int) -> slice:
        """The elements of `space` that hold what pass `turn` carries of `chunk`."""
        begin = self.begins[space][chunk]
        if space is not Space.SCRATCH:
            begin += turn * self.segment
        return slice(begin, begin + self.extent(chunk, turn))

    def place_at(self, peer: int, space: Space, chunk: int) -> slice:
        """The elements of a peer's input or output that hold all of `chunk`; one-sided plans."""
        if (peer, space) not in self._peer_begins:
            self._peer_begins[peer, space] = self._begins(self._peers[space][peer])
        begin = self._peer_begins[peer, space][chunk]
        return slice(begin, begin + self.lengths[chunk])


def split_evenly(count: int, parts: int) -> tuple[int, ...]:
    """Lengths of `parts` chunks of `count` elements: equal, the first few one longer."""
    base, remainder = divmod(count, parts)
    return tuple(base + (part < remainder) for part in range(parts))
