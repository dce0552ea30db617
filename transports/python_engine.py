"""The engine in readable Python: the specification of the native one, and the oracle of its tests.

`execute` runs one rank's plan over any `Channels`, as a generator that yields whenever it has to
wait; a one-sided plan also after every access to a peer's memory, so that ranks can be made to
alternate in every way. `run_together` drives the ranks of one process turn by turn, so a schedule
that cannot go on is seen at once, without a clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import reduce
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from transports.channel import Channels, Message, Payload
from transports.errors import MismatchError
from transports.plan import Instruction, Layout, Plan, Space

OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "sum": np.add,
    "avg": np.add,
    "prod": np.multiply,
    "min": np.minimum,
    "max": np.maximum,
    "band": np.bitwise_and,
    "bor": np.bitwise_or,
    "bxor": np.bitwise_xor,
    "land": np.logical_and,
    "lor": np.logical_or,
    "lxor": np.logical_xor,
}

Memory: TypeAlias = Mapping[Space, Payload]
"""The flat input and output of a rank, as its peers see them."""

_NO_PEERS: Mapping[int, Memory] = MappingProxyType({})


class LoopbackChannels:
    """Channels among ranks of one process; every rank has `slots` slots.

    A channel takes one notify at a time, the least that any engine's does.
    """

    def __init__(self, rank: int, size: int, slots: int) -> None:
        """An outbox of `slots` slots; connect the ranks with `connected_channels`."""
        if slots < 2:
            raise ValueError(f"an engine needs at least 2 slots, found {slots}")
        self.rank = rank
        self._slots = slots
        self._held: deque[set[int]] = deque()  # peers that still hold each message, oldest first
        self._inbox: list[deque[tuple[Message, set[int]]]] = [deque() for _ in range(size)]
        self.peers: list[LoopbackChannels] = []

    def slot_is_free(self) -> bool:
        """Slots are used in turn, so only the oldest can come free."""
        while self._held and not self._held[0]:
            self._held.popleft()
        return len(self._held) < self._slots

    def post(self, targets: tuple[int, ...], payload: Payload, fingerprint: int) -> None:
        """Write once; each target reads the same bytes."""
        assert self.slot_is_free(), "post without a free slot"
        holders = set(targets)
        self._held.append(holders)
        message = Message(payload.copy(), fingerprint)
        for target in targets:
            self.peers[target]._inbox[self.rank].append((message, holders))

    def can_notify(self, targets: tuple[int, ...]) -> bool:
        """Whether every target has taken all that this rank has sent it."""
        return not any(self.peers[target]._inbox[self.rank] for target in targets)

    def notify(self, targets: tuple[int, ...], fingerprint: int) -> None:
        """Send an empty message, which no slot holds."""
        assert self.can_notify(targets), "notify without room"
        for target in targets:
            message = Message(np.empty(0), fingerprint)
            self.peers[target]._inbox[self.rank].append((message, set()))

    def take(self, source: int) -> Message | None:
        """The oldest message of `source`, still in its slot."""
        inbox = self._inbox[source]
        return inbox[0][0] if inbox else None

    def release(self, source: int) -> None:
        """Let go of the oldest message of `source`."""
        _, holders = self._inbox[source].popleft()
        holders.discard(self.rank)


def connected_channels(size: int, slots: int = 2) -> list[LoopbackChannels]:
    """The channels of `size` ranks in this process, connected to each other."""
    channels = [LoopbackChannels(rank, size, slots) for rank in range(size)]
    for each in channels:
        each.peers = channels
    return channels


class Stuck(RuntimeError):
    """No rank could go on: the plans dead-lock with these channels."""


class Waiting(NamedTuple):
    """How far a rank is, and what it waits for; the same twice means that nothing happened."""

    done: int
    for_what: str


def execute(
    plan: Plan,
    layout: Layout,
    channels: Channels,
    source: Payload,
    result: Payload,
    op: str | None = None,
    fingerprint: int = 0,
    peers: Mapping[int, Memory] = _NO_PEERS,
) -> Generator[Waiting]:
    """Run `plan`; yields what it waits for each time it cannot go on.

    Args:
        plan: this rank's plan.
        layout: the plan bound to this call's chunk lengths.
        channels: this rank's channels.
        source: flat input, `layout.input_elements` long; may be the very same array as `result`.
        result: flat output, `layout.output_elements` long.
        op: how to reduce; None for collectives that do not.
        fingerprint: what the call is; must be the same on every rank.
        peers: of a one-sided plan, the memory of every peer, as far as `plan.remote` says.

    Raises:
        MismatchError: a message belongs to another call, or has another length.
    """
    scratch = np.empty(layout.scratch_elements, dtype=result.dtype)
    spaces = {Space.INPUT: source, Space.OUTPUT: result, Space.SCRATCH: scratch}
    done = 0
    for turn, index in layout.order():
        instruction = plan.instructions[index]
        done += 1
        expected = sum(layout.extent(chunk, turn) for chunk in instruction.chunks)
        if turn > 0 and expected == 0:
            continue  # both ends know that this chunk is done; pass 0 always speaks
        yield from _wait_for_room(instruction, channels, done)
        operands: list[Payload] = []
        for peer in instruction.sources:
            while (message := channels.take(peer)) is None:
                yield Waiting(done, f"a message from rank {peer}")
            _check(message, expected, fingerprint, peer)
            operands.append(message.payload)
        operands += _peek(instruction, peers, layout)
        if instruction.reads:
            places = [spaces[space][layout.place(space, c, turn)] for space, c in instruction.reads]
            operands.insert(instruction.own_at, np.concatenate(places))
        if instruction.chunks:
            value = _fold(operands, op)
            _keep(instruction, value, spaces, layout, turn)
            _poke(instruction, value, peers, layout)
            if instruction.targets:
                channels.post(instruction.targets, value, fingerprint)
        elif instruction.targets:
            channels.notify(instruction.targets, fingerprint)
        for peer in instruction.sources:
            channels.release(peer)
        if instruction.peeks or instruction.pokes:
            yield Waiting(done, "its turn")
    if op == "avg":
        wide = result.astype(np.float64 if result.dtype == np.float64 else np.float32)
        result[...] = np.divide(wide, plan.size).astype(result.dtype)


def _wait_for_room(instruction: Instruction, channels: Channels, done: int) -> Generator[Waiting]:
    """Until the message can be posted, or the notify sent, if there is one."""
    if not instruction.targets:
        return
    if instruction.chunks:
        while not channels.slot_is_free():
            yield Waiting(done, "a free slot")
    else:
        while not channels.can_notify(instruction.targets):
            yield Waiting(done, f"room for a notify to ranks {list(instruction.targets)}")


def _check(message: Message, expected: int, fingerprint: int, peer: int) -> None:
    if message.fingerprint != fingerprint or message.payload.size != expected:
        raise MismatchError(
            f"expected {expected} elements of call {fingerprint} from rank {peer}, found "
            f"{message.payload.size} of call {message.fingerprint}"
        )


def _fold(operands: Sequence[Payload], op: str | None) -> Payload:
    """All operands combined in the order given; 16-bit floats in float32, rounded once."""
    if len(operands) == 1:
        return operands[0]
    assert op is not None, "a plan that reduces needs an op"
    dtype = operands[0].dtype
    narrow = dtype.itemsize == 2 and dtype.kind in "fV"
    wide = [each.astype(np.float32) for each in operands] if narrow else operands
    with np.errstate(all="ignore"):
        folded: Payload = reduce(OPERATIONS[op], wide)
        return folded.astype(dtype, copy=False)


def _keep(
    instruction: Instruction,
    value: Payload,
    spaces: dict[Space, Payload],
    layout: Layout,
    turn: int,
) -> None:
    begin = 0
    for index, chunk in enumerate(instruction.chunks):
        end = begin + layout.extent(chunk, turn)
        if instruction.writes and instruction.writes[index][0] is not Space.NOWHERE:
            space, place = instruction.writes[index]
            spaces[space][layout.place(space, place, turn)] = value[begin:end]
        begin = end


def _peek(instruction: Instruction, peers: Mapping[int, Memory], layout: Layout) -> list[Payload]:
    """What lies in the peers' memory now, a payload a peer."""
    return [
        np.concatenate([peers[peer][space][layout.place_at(peer, space, c)]
                        for c in instruction.chunks])
        for peer, space in instruction.peeks
    ]  # fmt: skip


def _poke(
    instruction: Instruction, value: Payload, peers: Mapping[int, Memory], layout: Layout
) -> None:
    for peer, space in instruction.pokes:
        begin = 0
        for chunk in instruction.chunks:
            place = layout.place_at(peer, space, chunk)
            end = begin + place.stop - place.start
            peers[peer][space][place] = value[begin:end]
            begin = end


def run_together(
    executions: Sequence[Generator[Waiting]], order: Sequence[int] | None = None
) -> None:
    """Drive all ranks to their end, each as far as it gets, again and again.

    Args:
        executions: one `execute` a rank.
        order: in which order ranks get their turns; any order must give the same result.

    Raises:
        Stuck: nobody can go on; the text says what each rank waits for.
    """
    turns = list(order) if order is not None else list(range(len(executions)))
    before: dict[int, Waiting] = {}
    waiting: dict[int, Waiting] = {}
    active = set(turns)
    while active:
        progressed = False
        for rank in turns:
            if rank not in active:
                continue
            try:
                waiting[rank] = next(executions[rank])
            except StopIteration:
                active.discard(rank)
                progressed = True
        if not progressed and waiting == before:
            raise Stuck(
                "; ".join(f"rank {r} waits for {waiting[r].for_what}" for r in sorted(active))
            )
        before = dict(waiting)
