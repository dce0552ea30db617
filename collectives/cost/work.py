"""What an engine does in each instruction of a plan, counted in the parameters of the model.

One instruction of one pass is a handful of events and some bytes: read from the own arrays, fetched
from slots of peers, stored in an own slot, written to an array, reduced. A message is stored once,
however many peers it is for, and fetched by each of them where it lies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from collectives.cost.parameters import NAMES, PLACE, Vector, add_bytes
from collectives.lowering import lower
from collectives.schedule import Algorithm
from transports.plan import Instruction, Plan, Space, split_evenly

INLINE_BYTES = 40
"""Messages up to here travel in their descriptor and take no slot (transports/native)."""

LINE_BYTES = 64


@dataclass(frozen=True, kw_only=True)
class Room:
    """The memory of channels, and the cores there are.

    Attributes:
        slots: slots of a rank.
        slot_bytes: the size of each.
        depth: messages on their way from one rank to one peer.
        cores: cores that the ranks share.
    """

    slots: int
    slot_bytes: int
    depth: int
    cores: int

    @property
    def in_flight(self) -> int:
        """How many messages a rank may have on their way."""
        return min(self.slots, self.depth)


@dataclass(frozen=True, slots=True)
class Doing:
    """One instruction in one pass.

    Attributes:
        sources: from whom it takes a message.
        targets: to whom it posts one.
        in_slot: whether what it posts needs a slot.
        work: which row of `Workload.works` it does.
        delay: how many passes later than the first its turn comes.
    """

    sources: tuple[int, ...]
    targets: tuple[int, ...]
    in_slot: bool
    work: int
    delay: int


@dataclass
class Workload:
    """A call of all ranks, counted.

    Attributes:
        ranks: for every rank, for every pass, what it does; passes overlap by the delays.
        works: a row for each kind of doing, in parameters.
        passes: how many passes the call has; more than are listed where all are alike.
        call: what a call costs before its first step, in parameters.
    """

    ranks: list[list[list[Doing]]]
    works: Vector
    passes: float
    call: Vector


def workload(
    algo: Algorithm,
    size: int,
    nbytes: int,
    room: Room,
    *,
    item_bytes: int = 4,
    root: int = 0,
    most_passes: int = 8,
) -> Workload:
    """Count a call on `nbytes` in all; of many passes, `most_passes` whole ones.

    Args:
        algo: what is run.
        size: by how many ranks.
        nbytes: bytes of all chunks together, as in the closed forms.
        room: the channels.
        item_bytes: bytes of an element.
        root: the root.
        most_passes: with more passes than two above this, only so many are listed.
    """
    plans = [lower(algo, rank, size, root) for rank in range(size)]
    lengths = chunk_bytes(algo, size, nbytes, item_bytes)
    segment = segment_bytes(plans[0], room.slot_bytes, item_bytes if algo.spec.reduces else 1)
    longest = max(lengths, default=0)
    if plans[0].one_sided:
        segment = max(1, longest)
    passes = max(1, -(-longest // segment))
    many = passes > most_passes + 2
    overlaps = passes > 1 and bool(plans[0].delays) and room.in_flight >= plans[0].in_flight
    counter = _Counter(plans, lengths, segment, room, overlaps=overlaps)
    listed = most_passes if many else passes
    ranks = [[counter.turn(plan, 0 if many else turn) for turn in range(listed)] for plan in plans]
    call = np.zeros(len(NAMES))
    call[PLACE[f"call.{algo.collective}"]] = 1
    works = np.array(counter.works) if counter.works else np.zeros((0, len(NAMES)))
    return Workload(ranks, works, longest / segment if many else passes, call)


def segment_bytes(plan: Plan, slot_bytes: int, item_bytes: int) -> int:
    """Bytes of a chunk that one pass carries, as transports/native/program.cpp cuts them."""
    items = slot_bytes // item_bytes // plan.widest
    line = max(1, LINE_BYTES // item_bytes)
    if items > line:
        items -= items % line
    return max(1, items) * item_bytes


def chunk_bytes(algo: Algorithm, size: int, nbytes: int, item_bytes: int) -> list[int]:
    """Bytes of every chunk, as a call splits them."""
    items = nbytes // item_bytes
    if algo.spec.chunking == "empty":
        return [0]
    if algo.spec.chunking == "open":
        return [part * item_bytes for part in split_evenly(items, algo.chunk_count(size))]
    return [items // size * item_bytes] * algo.chunk_count(size)


@dataclass
class _Counter:
    """Counts instructions; equal ones share a row."""

    plans: Sequence[Plan]
    lengths: Sequence[int]
    segment: int
    room: Room
    works: list[Vector] = field(default_factory=list)
    _known: dict[tuple[object, ...], int] = field(default_factory=dict)
    overlaps: bool = False
    _arrays: int = 0  # bytes of a rank's arrays
    _scratch: int = 0

    def __post_init__(self) -> None:
        ranks = len(self.plans)
        held = sum(self.lengths[c] for plan in self.plans for c in (*plan.inputs, *plan.outputs))
        longest = min(self.segment, max(self.lengths, default=0))
        self._arrays = held // ranks
        self._scratch = longest * max(len(plan.scratch) for plan in self.plans)

    def turn(self, plan: Plan, turn: int) -> list[Doing]:
        done = []
        delays = plan.delays if self.overlaps else (0,) * len(plan.instructions)
        for each, delay in zip(plan.instructions, delays, strict=True):
            extents = [self._extent(chunk, turn) for chunk in each.chunks]
            nbytes = sum(extents)
            messages = bool(each.sources or each.targets)
            if turn > 0 and nbytes == 0 and messages:
                continue  # both ends know that this is done
            in_slot = bool(each.targets) and nbytes > INLINE_BYTES
            work = self._work(each, nbytes, sum(extent > 0 for extent in extents), in_slot)
            done.append(Doing(each.sources, each.targets, in_slot, work, delay))
        return done

    def _extent(self, chunk: int, turn: int) -> int:
        return max(0, min(self.segment, self.lengths[chunk] - turn * self.segment))

    def _work(self, each: Instruction, nbytes: int, chunks: int, in_slot: bool) -> int:
        spaces = [space for space, _ in each.reads[:1]], [space for space, _ in each.writes]
        kept = sum(space is not Space.NOWHERE for space in spaces[1])
        scratch = Space.SCRATCH in spaces[1]
        key = (len(each.sources), len(each.targets), tuple(spaces[0]), kept, scratch, nbytes,
               chunks, in_slot, len(each.peeks), len(each.pokes), len(each.chunks))  # fmt: skip
        if key not in self._known:
            self._known[key] = len(self.works)
            self.works.append(self._counted(each, nbytes, chunks, kept, in_slot))
        return self._known[key]

    def _counted(
        self, each: Instruction, nbytes: int, chunks: int, kept: int, in_slot: bool
    ) -> Vector:
        vector = np.zeros(len(NAMES))
        vector[PLACE["step"]] = 1
        vector[PLACE["chunk"]] = max(0, chunks - 1)
        vector[PLACE["post"]] = len(each.targets)
        vector[PLACE["take"]] = len(each.sources)
        # Slots are used in turn, so that a rank's messages go round all of them.
        slots = self.room.slots * nbytes if each.sources or each.targets else 0
        arrays = self._arrays + slots
        uses = bool(kept or each.targets or each.pokes)
        if uses and each.reads:
            of = self._scratch + slots if each.reads[0][0] is Space.SCRATCH else arrays
            add_bytes(vector, "read", nbytes, of)
        if uses and nbytes > INLINE_BYTES:
            add_bytes(vector, "fetch", nbytes * len(each.sources), slots)
        if in_slot:
            add_bytes(vector, "store", nbytes, slots)
        if kept:
            of = self._scratch + slots if each.writes[0][0] is Space.SCRATCH else arrays
            add_bytes(vector, "write", nbytes * kept / len(each.writes), of)
        add_bytes(vector, "peek", nbytes * len(each.peeks), self._arrays)
        add_bytes(vector, "poke", nbytes * len(each.pokes), self._arrays)
        if each.reads and uses:
            vector[PLACE["reduce"]] = nbytes * (len(each.sources) + len(each.peeks))
        return vector
