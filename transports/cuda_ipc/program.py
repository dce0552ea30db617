"""A plan as work for one stream: flags, copies and folds, in the order of the plan.

A message is written into a slot of the sender's outbox, which its receivers map, and folded from
there in place. What tells them is a flag, so the program of a rank says all that its stream has to
do before anything has run, and never asks the host again. Which slot a peer uses for a message is
known from the peer's own plan: it takes them in turn, beginning anew with each call.

Addresses that change from call to call are given when a program is run; see `Place`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from transports.cuda_ipc.device import Device, Signal, State, Stream
from transports.plan import Instruction, Layout, Plan, Space

_BYTES = (8, 4)  # dtype and op of what is moved only: uint8, and no op is applied to one operand


class Place(NamedTuple):
    """An address: `offset` bytes from one of the call's bases, or itself where `base` is ""."""

    base: str
    offset: int


def own(space: Space) -> str:
    """The base of this rank's input, output or scratch."""
    return space.name


def of_peer(peer: int, space: Space) -> str:
    """The base of a peer's input or output."""
    return f"{space.name} {peer}"


class Order(NamedTuple):
    """Wait for flags and set them."""

    signals: tuple[Signal, ...]


class Fold(NamedTuple):
    """Fold operands into all targets; of one operand, copy it."""

    targets: tuple[Place, ...]
    operands: tuple[Place, ...]
    count: int  # type: ignore[assignment]  # a tuple's count() is not needed here


class Divide(NamedTuple):
    """The last step of an average."""

    data: Place
    count: int  # type: ignore[assignment]
    divisor: int


Operation: TypeAlias = Order | Fold | Divide


class Transfer(NamedTuple):
    """A message from or to a rank of another host, which a carrier moves.

    Attributes:
        peer: that rank.
        flag: the address, for streams, of the flag that is FULL on both hosts while it is there.
        address: of its bytes, likewise; 0: a notify, that has none.
        nbytes: how many.
    """

    peer: int
    flag: int
    address: int
    nbytes: int


@dataclass(frozen=True)
class Reduction:
    """How values are folded; numbers of transports/native/kernels.hpp."""

    dtype: int
    op: int
    average: bool = False


@dataclass(frozen=True, kw_only=True)
class Wiring:
    """What the streams of a communicator share.

    Attributes:
        rank: whose.
        size: number of ranks.
        slots: of each rank's outbox.
        slot_bytes: of a slot, a multiple of 16.
        outbox: (owner, targets) -> where its outbox begins for this rank.
        slot_flag: (owner, slot, target) -> address of that flag for streams.
        note_flag: (source, target) -> likewise.
        far: ranks of other hosts, whose messages carriers move.
    """

    rank: int
    size: int
    slots: int
    slot_bytes: int
    outbox: Callable[[int, tuple[int, ...]], int]
    slot_flag: Callable[[int, int, int], int]
    note_flag: Callable[[int, int], int]
    far: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Program:
    """Operations of one rank.

    Attributes:
        operations: in order.
        reduction: how folds fold; None if they only move bytes.
        input_bytes: of this rank's input.
        output_bytes: of its output.
        scratch_bytes: of its scratch.
        item_bytes: of what counts count.
        sends: messages to other hosts, in order.
        receives: messages from there.
    """

    operations: tuple[Operation, ...]
    reduction: Reduction | None
    input_bytes: int
    output_bytes: int
    scratch_bytes: int
    item_bytes: int
    sends: tuple[Transfer, ...] = ()
    receives: tuple[Transfer, ...] = ()

    def run(self, device: Device, stream: Stream, bases: dict[str, int]) -> None:
        """Put all of it on a stream."""
        dtype, op = _BYTES if self.reduction is None else (self.reduction.dtype, self.reduction.op)

        def at(place: Place) -> int:
            return place.offset + bases[place.base] if place.base else place.offset

        for each in self.operations:
            if isinstance(each, Order):
                device.signal(stream, each.signals)
            elif isinstance(each, Divide):
                device.divide(stream, at(each.data), each.count, dtype, each.divisor)
            else:
                operands = [at(place) for place in each.operands]
                targets = [at(place) for place in each.targets]
                if len(operands) == 1:  # in place nothing is left of some
                    targets = [target for target in targets if target != operands[0]]
                if len(operands) == len(targets) == 1:
                    nbytes = each.count * self.item_bytes
                    device.copy(stream, targets[0], operands[0], nbytes)
                elif targets:
                    device.fold(stream, targets, operands, each.count, dtype, op)


def compile_program(
    plans: Sequence[Plan],
    lengths: Sequence[int],
    item_bytes: int,
    reduction: Reduction | None,
    wiring: Wiring,
) -> Program:
    """The program of `wiring.rank`.

    Args:
        plans: of every rank, as what a peer sends where depends on its plan.
        lengths: elements of every chunk, the same table on every rank.
        item_bytes: of an element.
        reduction: how to fold, or None.
        wiring: what connects the ranks.

    Raises:
        ValueError: a slot cannot hold one element of each chunk of the widest message.
    """
    plan = plans[wiring.rank]
    slot_elements = wiring.slot_bytes // item_bytes
    layout = Layout(plan, lengths, slot_elements, wiring.slots)
    compiling = _Compiling(plan, layout, item_bytes, wiring)
    for peer in range(wiring.size):
        if peer != wiring.rank:
            theirs = Layout(plans[peer], lengths, slot_elements, wiring.slots)
            compiling.expect(peer, plans[peer], theirs)
    operations: list[Operation] = []
    for turn, index in layout.order():
        for each in compiling.put(turn, index):
            before = operations[-1] if operations else None
            if isinstance(each, Order) and isinstance(before, Order):  # one call of the driver
                operations[-1] = Order(before.signals + each.signals)
            else:
                operations.append(each)
    if reduction is not None and reduction.average and layout.output_elements:
        begin = Place(own(Space.OUTPUT), 0)
        operations.append(Divide(begin, layout.output_elements, plan.size))
    return Program(
        tuple(operations),
        reduction,
        layout.input_elements * item_bytes,
        layout.output_elements * item_bytes,
        layout.scratch_elements * item_bytes,
        item_bytes,
        tuple(compiling.sends),
        tuple(compiling.receives),
    )


class _Compiling:
    """Turns instructions into operations, following which slots are used."""

    def __init__(self, plan: Plan, layout: Layout, item_bytes: int, wiring: Wiring) -> None:
        self._plan = plan
        self._layout = layout
        self._item = item_bytes
        self._wiring = wiring
        self._posted = 0
        self.sends: list[Transfer] = []
        self.receives: list[Transfer] = []
        # (slot, where its outbox begins) of the messages a peer has for this rank, in order
        self._coming: dict[int, deque[tuple[int, int]]] = {}

    def expect(self, peer: int, plan: Plan, layout: Layout) -> None:
        """Note which slots `peer` uses for its messages to this rank."""
        coming = self._coming[peer] = deque()
        posted = 0
        for turn, index in layout.order():
            instruction = plan.instructions[index]
            if (
                not instruction.targets
                or not instruction.chunks
                or _silent(layout, instruction, turn)
            ):
                continue
            if self._wiring.rank in instruction.targets:
                begin = self._wiring.outbox(peer, instruction.targets)
                coming.append((posted % self._wiring.slots, begin))
            posted += 1

    def put(self, turn: int, index: int) -> Iterator[Operation]:
        """The operations of one instruction."""
        instruction, wiring = self._plan.instructions[index], self._wiring
        if _silent(self._layout, instruction, turn):
            return
        me, slot, room = wiring.rank, 0, 0
        extents = (self._layout.extent(chunk, turn) for chunk in instruction.chunks)
        nbytes = sum(extents) * self._item
        if instruction.targets and instruction.chunks:
            slot = self._posted % wiring.slots
            self._posted += 1
            room = wiring.outbox(me, instruction.targets) + slot * wiring.slot_bytes
            # Whoever was to take what lay in it last, in this call or another.
            others = (peer for peer in range(wiring.size) if peer != me)
            flags = tuple(wiring.slot_flag(me, slot, peer) for peer in others)
            yield _waits(flags, State.EMPTY)
        elif instruction.targets:
            flags = tuple(wiring.note_flag(me, peer) for peer in instruction.targets)
            yield _waits(flags, State.EMPTY)
        taken, payloads = [], []
        for peer in instruction.sources:
            if instruction.chunks:
                theirs, begin = self._coming[peer].popleft()
                taken.append(wiring.slot_flag(peer, theirs, me))
                payloads.append(begin + theirs * wiring.slot_bytes)
            else:
                taken.append(wiring.note_flag(peer, me))
            if peer in wiring.far:
                payload = payloads[-1] if instruction.chunks else 0
                self.receives.append(Transfer(peer, taken[-1], payload, nbytes))
        if taken:
            yield _waits(taken, State.FULL)
        yield from self._folds(instruction, turn, payloads, room)
        if instruction.targets and instruction.chunks:
            flags = tuple(wiring.slot_flag(me, slot, peer) for peer in instruction.targets)
        elif instruction.targets:
            flags = tuple(wiring.note_flag(me, peer) for peer in instruction.targets)
        if instruction.targets:
            yield _sets(flags, State.FULL)
            self.sends += [
                Transfer(peer, flag, room, nbytes)
                for peer, flag in zip(instruction.targets, flags, strict=True)
                if peer in wiring.far
            ]
        if taken:
            yield _sets(taken, State.EMPTY)

    def _folds(
        self, instruction: Instruction, turn: int, payloads: Sequence[int], room: int
    ) -> list[Fold]:
        """A fold for each run of chunks that lie side by side wherever they lie."""
        folds: list[Fold] = []
        begin = 0
        for index in range(len(instruction.chunks)):
            count = self._layout.extent(instruction.chunks[index], turn)
            targets, operands = self._places(instruction, turn, index, payloads, room, begin)
            begin += count * self._item
            if count == 0 or not targets:
                continue
            if folds and self._goes_on(folds[-1], targets, operands):
                folds[-1] = folds[-1]._replace(count=folds[-1].count + count)
            else:
                folds.append(Fold(targets, operands, count))
        return folds

    def _places(
        self,
        instruction: Instruction,
        turn: int,
        index: int,
        payloads: Sequence[int],
        room: int,
        begin: int,
    ) -> tuple[tuple[Place, ...], tuple[Place, ...]]:
        """Where one chunk's value goes, and what it is folded from."""
        chunk = instruction.chunks[index]
        operands = [Place("", payload + begin) for payload in payloads]
        operands += [self._at_peer(peer, space, chunk) for peer, space in instruction.peeks]
        if instruction.reads:
            operands.insert(instruction.own_at, self._here(*instruction.reads[index], turn))
        targets = []
        if instruction.writes and instruction.writes[index][0] is not Space.NOWHERE:
            targets.append(self._here(*instruction.writes[index], turn))
        if instruction.targets:
            targets.append(Place("", room + begin))
        targets += [self._at_peer(peer, space, chunk) for peer, space in instruction.pokes]
        return tuple(targets), tuple(operands)

    def _here(self, space: Space, chunk: int, turn: int) -> Place:
        return Place(own(space), self._layout.place(space, chunk, turn).start * self._item)

    def _at_peer(self, peer: int, space: Space, chunk: int) -> Place:
        begin = self._layout.place_at(peer, space, chunk).start
        return Place(of_peer(peer, space), begin * self._item)

    def _goes_on(self, fold: Fold, targets: tuple[Place, ...], operands: tuple[Place, ...]) -> bool:
        """Whether these places lie right behind those of `fold`."""
        before = (*fold.targets, *fold.operands)
        after = (*targets, *operands)
        nbytes = fold.count * self._item
        return (
            len(fold.targets) == len(targets)
            and len(before) == len(after)
            and all(
                a.base == b.base and a.offset + nbytes == b.offset
                for a, b in zip(before, after, strict=True)
            )
        )


def _waits(flags: Sequence[int], state: State) -> Order:
    return Order(tuple(Signal(flag, state, waits=True) for flag in flags))


def _sets(flags: Sequence[int], state: State) -> Order:
    return Order(tuple(Signal(flag, state, waits=False) for flag in flags))


def _silent(layout: Layout, instruction: Instruction, turn: int) -> bool:
    """Both ends know that its chunks are done; the first pass always speaks."""
    return turn > 0 and not any(layout.extent(chunk, turn) for chunk in instruction.chunks)
