"""All ranks of a schedule of messages, run symbolically with one slot a rank.

A rank's single slot is shared by all its channels and held until every addressed peer has taken
the message: the least buffering any engine has.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from collectives.proof.driver import Driver
from collectives.proof.expressions import Expression
from collectives.specs import Spec
from collectives.steps import Copy, Recv, RecvReduce, Send, Step


@dataclass
class _Message:
    step: int
    chunks: tuple[int, ...]
    values: tuple[Expression, ...]


@dataclass
class _Slot:
    untaken: set[int] = field(default_factory=set)  # peers that have not taken what is in it
    filled_at: int = -1  # the step that filled it


class Machine(Driver):
    """Runs schedules; afterwards `values(rank)` is what each rank holds."""

    least = "one slot"

    def __init__(self, spec: Spec, title: str, schedules: Sequence[Sequence[Step]]) -> None:
        """One schedule a rank; `title` begins the text of every error."""
        super().__init__(title, schedules)
        self._spec = spec
        self._slots = [_Slot() for _ in schedules]
        self._inbox: dict[tuple[int, int], deque[_Message]] = {}

    def _check_end(self) -> None:
        for (source, target), messages in self._inbox.items():
            if messages:
                left = messages[0]
                raise self._error(
                    "a message is never received",
                    source,
                    left.step,
                    left.chunks[0],
                    f"a receive from rank {source} in the schedule of rank {target}",
                    "none",
                )

    def _can_go_on(self, rank: int, step: Step) -> bool:
        if isinstance(step, Send):
            return not self._slots[rank].untaken
        return all(self._inbox.get((peer, rank)) for peer in _sources(step))

    def _do(self, rank: int, step: Step) -> Iterable[int]:
        if isinstance(step, Send):
            return self._send(rank, step)
        if isinstance(step, Copy):
            self._values[rank][step.to] = self._read(rank, step.source)
            return ()
        assert isinstance(step, Recv | RecvReduce)
        return self._receive(rank, step)

    def _send(self, rank: int, step: Send) -> tuple[int, ...]:
        values = tuple(self._read(rank, chunk) for chunk in step.chunks)
        for peer in step.peers:
            message = _Message(self._at[rank], step.chunks, values)
            self._inbox.setdefault((rank, peer), deque()).append(message)
        self._slots[rank] = _Slot(set(step.peers), self._at[rank])
        return step.peers

    def _receive(self, rank: int, step: Recv | RecvReduce) -> tuple[int, ...]:
        sources = tuple(sorted(_sources(step)))
        messages = {peer: self._inbox[peer, rank].popleft() for peer in sources}
        for peer, message in messages.items():
            self._slots[peer].untaken.discard(rank)
            if message.chunks != step.chunks:
                raise self._error(
                    "a message carries other chunks than its receive names",
                    rank,
                    self._at[rank],
                    step.chunks[0],
                    f"chunks {list(step.chunks)}",
                    f"chunks {list(message.chunks)} (step {message.step} of rank {peer})",
                )
        for index, chunk in enumerate(step.chunks):
            operands = {peer: message.values[index] for peer, message in messages.items()}
            if isinstance(step, RecvReduce) or self._spec.chunking == "empty":
                operands[rank] = self._read(rank, chunk)
            folded = self.expressions.fold([operands[r] for r in sorted(operands)])
            self._values[rank][chunk] = folded
        return sources

    def _read(self, rank: int, chunk: int) -> Expression:
        held = self._values[rank]
        if chunk not in held:
            raise self._error(
                "a step reads a chunk that its rank does not hold",
                rank,
                self._at[rank],
                chunk,
                f"one of chunks {sorted(held)}",
                f"chunk {chunk}",
            )
        return held[chunk]

    def _obstacle(self, rank: int, step: Step) -> tuple[int, str]:
        if isinstance(step, Send):
            slot = self._slots[rank]
            peer = min(slot.untaken)
            return (
                peer,
                f"cannot send until rank {peer} takes what it sent at step {slot.filled_at}",
            )
        peer = next(p for p in _sources(step) if not self._inbox.get((p, rank)))
        return peer, f"waits for a message of rank {peer}"


def _sources(step: Step) -> tuple[int, ...]:
    if isinstance(step, RecvReduce):
        return step.peers
    return (step.peer,) if isinstance(step, Recv) else ()
