"""All ranks of a schedule, run symbolically with one slot a rank.

A rank's single slot is shared by all its channels and held until every addressed peer has taken
the message: the least buffering any engine has. The machine is monotone (what a rank can do once
it can do until it does it), so the order in which ranks are driven does not matter: a dead-lock
found here is one, and none found means that no order of events leads to one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from collectives.proof.expressions import Expression, Expressions
from collectives.proof.failure import ProofError
from collectives.schedule import Copy, Recv, RecvReduce, Send, Step
from collectives.specs import Spec


@dataclass
class _Message:
    step: int
    chunks: tuple[int, ...]
    values: tuple[Expression, ...]


@dataclass
class _Rank:
    steps: Sequence[Step]
    values: dict[int, Expression]
    at: int = 0
    untaken: set[int] = field(default_factory=set)  # peers that have not taken what is in the slot
    in_slot: int = -1  # the step that filled it
    sent: int = 0

    @property
    def done(self) -> bool:
        return self.at == len(self.steps)


class Machine:
    """Runs schedules; afterwards `values(rank)` is what each rank holds."""

    def __init__(self, spec: Spec, title: str, schedules: Sequence[Sequence[Step]]) -> None:
        """One schedule a rank; `title` begins the text of every error."""
        self.expressions = Expressions()
        self._spec = spec
        self._title = title
        self._ranks = [_Rank(steps, {}) for steps in schedules]
        self._inbox: dict[tuple[int, int], deque[_Message]] = {}

    def hold(self, rank: int, chunks: Sequence[int]) -> None:
        """Let `rank` start with its own value of `chunks`."""
        for chunk in chunks:
            self._ranks[rank].values[chunk] = self.expressions.leaf(rank, chunk)

    def values(self, rank: int) -> dict[int, Expression]:
        """What `rank` holds now."""
        return self._ranks[rank].values

    def run(self) -> None:
        """Drive every rank to its end.

        Raises:
            ProofError: a rank cannot go on, misuses a chunk, or a message is never received.
        """
        ready = deque(range(len(self._ranks)))
        queued = set(ready)
        while ready:
            rank = ready.popleft()
            queued.discard(rank)
            for woken in self._advance(rank):
                if woken not in queued:
                    queued.add(woken)
                    ready.append(woken)
        if not all(rank.done for rank in self._ranks):
            raise self._deadlock()
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

    def _advance(self, rank: int) -> set[int]:
        """Run `rank` until it must wait; the ranks that may go on because of it."""
        state = self._ranks[rank]
        woken: set[int] = set()
        while not state.done and self._can_go_on(rank):
            step = state.steps[state.at]
            if isinstance(step, Send):
                woken.update(self._send(rank, step))
            elif isinstance(step, Copy):
                state.values[step.to] = self._read(rank, step.source)
            else:
                woken.update(self._receive(rank, step))
            state.at += 1
        return woken

    def _can_go_on(self, rank: int) -> bool:
        state = self._ranks[rank]
        step = state.steps[state.at]
        if isinstance(step, Send):
            return not state.untaken
        if isinstance(step, Copy):
            return True
        return all(self._inbox.get((peer, rank)) for peer in _sources(step))

    def _send(self, rank: int, step: Send) -> tuple[int, ...]:
        state = self._ranks[rank]
        values = tuple(self._read(rank, chunk) for chunk in step.chunks)
        for peer in step.peers:
            message = _Message(state.at, step.chunks, values)
            self._inbox.setdefault((rank, peer), deque()).append(message)
        state.untaken = set(step.peers)
        state.in_slot = state.at
        state.sent += 1
        return step.peers

    def _receive(self, rank: int, step: Recv | RecvReduce) -> tuple[int, ...]:
        state = self._ranks[rank]
        sources = tuple(sorted(_sources(step)))
        messages = {peer: self._inbox[peer, rank].popleft() for peer in sources}
        for peer, message in messages.items():
            self._ranks[peer].untaken.discard(rank)
            if message.chunks != step.chunks:
                raise self._error(
                    "a message carries other chunks than its receive names",
                    rank,
                    state.at,
                    step.chunks[0],
                    f"chunks {list(step.chunks)}",
                    f"chunks {list(message.chunks)} (step {message.step} of rank {peer})",
                )
        for index, chunk in enumerate(step.chunks):
            operands = {peer: message.values[index] for peer, message in messages.items()}
            if isinstance(step, RecvReduce) or self._spec.chunking == "empty":
                operands[rank] = self._read(rank, chunk)
            state.values[chunk] = self.expressions.fold([operands[r] for r in sorted(operands)])
        return sources

    def _read(self, rank: int, chunk: int) -> Expression:
        state = self._ranks[rank]
        if chunk not in state.values:
            raise self._error(
                "a step reads a chunk that its rank does not hold",
                rank,
                state.at,
                chunk,
                f"one of chunks {sorted(state.values)}",
                f"chunk {chunk}",
            )
        return state.values[chunk]

    def _deadlock(self) -> ProofError:
        """Follow who waits for whom until a rank comes again, or one that has ended."""
        rank = next(index for index, state in enumerate(self._ranks) if not state.done)
        seen: list[int] = []
        story: list[str] = []
        while rank not in seen and not self._ranks[rank].done:
            seen.append(rank)
            peer, why = self._obstacle(rank)
            story.append(f"rank {rank} at step {self._ranks[rank].at} {why}")
            rank = peer
        ended = self._ranks[rank].done
        if ended:
            story.append(f"rank {rank} has ended")
        first = seen[-1] if ended else rank
        state = self._ranks[first]
        step = state.steps[state.at]
        return self._error(
            "the ranks dead-lock" if not ended else "a rank waits for one that has ended",
            first,
            state.at,
            step.to if isinstance(step, Copy) else step.chunks[0],
            "an order of steps in which every rank comes to its end with one slot",
            "; ".join(story),
        )

    def _obstacle(self, rank: int) -> tuple[int, str]:
        state = self._ranks[rank]
        step = state.steps[state.at]
        if isinstance(step, Send):
            peer = min(state.untaken)
            return peer, f"cannot send until rank {peer} takes what it sent at step {state.in_slot}"
        assert isinstance(step, Recv | RecvReduce)
        peer = next(p for p in _sources(step) if not self._inbox.get((p, rank)))
        return peer, f"waits for a message of rank {peer}"

    def _error(
        self, what: str, rank: int, step: int, chunk: int, expected: str, found: str
    ) -> ProofError:
        return ProofError(
            f"{self._title}: {what}",
            rank=rank,
            step=step,
            chunk=chunk,
            expected=expected,
            found=found,
        )


def _sources(step: Recv | RecvReduce) -> tuple[int, ...]:
    return (step.peer,) if isinstance(step, Recv) else step.peers
