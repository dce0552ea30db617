"""A rank's part of a program: every result is compared as soon as it is there."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from harness.conformance import as_numpy

from collectives.messages import ANY
from soak.operations import (
    Allocate,
    Close,
    Collective,
    Message,
    Messages,
    Objects,
    Operation,
    Program,
    Split,
    Wait,
)
from soak.oracle import brought, dtype_named, random_bits, wanted
from soak.placed import Placed, difference

Pending = tuple[Any, Callable[[Any], str]]
"""A handle and what finds the problem of its result."""


class WrongResult(Exception):
    """A result that is not what numpy says."""


class Execution:
    """Runs a program on one rank.

    Attributes:
        number: of the operation that this rank is in.
    """

    def __init__(self, program: Program, world: Any, spoil: int | None = None) -> None:
        """`spoil`: on the last rank, change a result of this operation before it is compared."""
        self._program = program
        self.comms = {0: world}
        self.rank = world.rank
        self.number = 0
        self._spoil = spoil if world.rank == world.size - 1 else None
        self._pending: dict[int, list[Pending]] = {}
        self._symmetric: dict[int, np.ndarray] = {}
        self._owned: dict[int, list[int]] = {}  # communicator -> its allocations
        self._dice = random.Random(program.seed * 64 + world.rank)

    def run(self, before: Callable[[int], Any] = lambda number: None) -> None:
        """All operations; `before` is called before each, may raise, and may change the program.

        Raises:
            WrongResult: names seed, operation, rank, expected and found.
        """
        with self._closing():
            for number in range(len(self._program.operations)):
                before(number)
                self.number = number
                self.do(self._program.operations[number])

    def do(self, operation: Operation) -> None:
        """One of them."""
        comm = self.comms.get(operation.comm)
        if isinstance(operation, Wait):
            self._wait(operation)
        elif comm is not None:
            _PARTS[type(operation)](self, comm, operation)

    @contextmanager
    def _closing(self) -> Iterator[None]:
        """Every communicator but the world tells its ranks what ended it here."""
        try:
            yield
        except BaseException as error:
            if not isinstance(error, WrongResult):
                error.add_note(self._where())
            for number, comm in self.comms.items():
                if number:
                    comm.__exit__(type(error), error, None)
            raise
        finally:
            self._pending.clear()
            self._symmetric.clear()
            for number in [each for each in self.comms if each]:
                self.comms.pop(number).close()

    def _check(self, problem: str) -> None:
        if problem:
            raise WrongResult(f"{self._where()}: {problem}")

    def _where(self) -> str:
        program = self._program
        return (
            f"seed {program.seed}, {program.size} ranks, operation {self.number} "
            f"{program.operations[self.number]}, rank {self.rank}"
        )

    # --- collectives

    def _collective(self, comm: Any, call: Collective) -> None:
        method = getattr(comm, call.collective)
        keywords: dict[str, Any] = {"algorithm": call.algorithm}
        if call.handle is not None:
            keywords["async_op"] = True
        if call.collective == "barrier":
            self._keep(call, method(**keywords), lambda found: "" if found is None else repr(found))
            return
        seed = [self._program.seed, self.number]
        inputs = [brought(call, seed, each, comm.size) for each in range(comm.size)]
        target = wanted(call, inputs, comm.rank)
        rooted = call.collective in ("broadcast", "reduce", "gather", "scatter")
        if rooted:
            keywords["root"] = call.root
        if call.op is not None:
            keywords["op"] = call.op
        if call.deterministic:
            keywords["deterministic"] = True
        if call.counts is not None:
            keywords["counts"] = call.counts
            if call.collective == "alltoall":
                received = tuple(sent[comm.rank] for sent in call.counts)
                keywords["counts"] = (call.counts[comm.rank], received)
        x = None
        if call.collective != "scatter" or comm.rank == call.root:
            x = self._placed(inputs[comm.rank], call, 0)
        out = None
        if target is not None and call.result == "in place":
            out = x
        elif target is not None and call.result == "out":
            filler = np.frombuffer(bytearray(b"\1" * target.nbytes), target.dtype)
            out = self._placed(filler.reshape(target.shape), call, 1)
        if out is not None:
            keywords["out"] = out.array

        def problem(found: Any) -> str:
            if found is None or target is None:
                return "" if found is target else f"expected {target!r}, found {found!r}"
            if out is not None and found is not out.array:
                return "expected out itself, found another array"
            like = np.ndarray if call.kind == "numpy" else type(_torch().empty(0))
            if not isinstance(found, like):
                return f"expected a {call.kind} array, found {type(found).__name__}"
            result = np.asarray(as_numpy(call.kind, found))
            if self._spoil == self.number and result.size:
                raw = bytearray(result.tobytes())
                raw[-1] ^= 1
                result = np.frombuffer(raw, result.dtype).reshape(result.shape)
            return (
                difference(target, result)
                or (out.problem(target) if out is not None else "")
                or ("the input was changed" if x is not None and x is not out and x.problem()
                    else "")
            )  # fmt: skip

        self._keep(call, method(None if x is None else x.array, **keywords), problem)

    def _placed(self, content: np.ndarray, call: Collective, which: int) -> Placed:
        place, room = call.places[which], None
        if place is not None:
            room = self._symmetric[place[0]][place[1] :]
        return Placed(content, call.layouts[which], call.kind, room)

    def _keep(self, call: Collective, found: Any, problem: Callable[[Any], str]) -> None:
        if call.handle is None:
            self._check(problem(found))
        else:
            self._pending[call.handle] = [(found, problem)]

    def _objects(self, comm: Any, call: Objects) -> None:
        items = [(rank, self.number, "x" * (call.length + rank)) for rank in range(comm.size)]
        if call.collective == "broadcast_object":
            mine = items[call.root] if comm.rank == call.root else None
            found, target = comm.broadcast_object(mine, root=call.root), items[call.root]
        else:
            found, target = comm.allgather_object(items[comm.rank]), items
        self._check("" if found == target else f"expected {target!r}, found {found!r}")

    # --- communicators and memory

    def _split(self, comm: Any, call: Split) -> None:
        part = comm.split(call.colors[comm.rank], call.keys[comm.rank])
        number = dict(call.made).get(call.colors[comm.rank])
        if number is None:
            self._check("" if part is None else f"expected None, found {part!r}")
            return
        self.comms[number] = part
        members = self._program.members[number]
        if (part.size, part.rank) != (len(members), members.index(self.rank)):
            self._check(f"expected a place in {members}, found {part!r}")

    def _close(self, comm: Any, call: Close) -> None:
        self.comms.pop(call.comm).close()
        for number in self._owned.pop(call.comm, ()):
            del self._symmetric[number]

    def _allocate(self, comm: Any, call: Allocate) -> None:
        owned = self._owned.setdefault(call.comm, [])
        if len(owned) == 2:
            del self._symmetric[owned.pop(0)]
        self._symmetric[call.number] = comm.empty(call.nbytes, np.uint8)
        owned.append(call.number)

    # --- point-to-point

    def _wait(self, operation: Wait) -> None:
        waits = [each for handle in operation.handles for each in self._pending.pop(handle, ())]
        self._dice.shuffle(waits)
        for work, problem in waits:
            self._check(problem(work.wait()))

    def _content(self, message: Message) -> np.ndarray:
        dice = np.random.default_rng([self._program.seed, self.number, message.handle])
        return random_bits(dice, (message.count,), dtype_named(message.dtype))

    def _messages(self, comm: Any, call: Messages) -> None:
        me = comm.rank
        if call.how == "shift":
            sent = next(each for each in call.messages if each.source == me)
            got = next(each for each in call.messages if each.dest == me)
            found = comm.sendrecv(self._content(sent), sent.dest, source=got.source, tag=sent.tag)
            self._check(difference(self._content(got), found))
            return
        if call.how == "any source":
            self._from_anyone(comm, call)
            return
        for message in call.messages:
            if call.how == "blocking":
                if message.source == me:
                    comm.send(self._content(message), message.dest, message.tag)
                if message.dest == me:
                    x = np.empty(message.count, dtype_named(message.dtype))
                    found = comm.recv(x, message.source, message.tag)
                    self._check(difference(self._content(message), found))
                continue
            works = []
            if message.dest == me:
                works.append(self._receive(comm, call, message))
            if message.source == me:
                work = comm.isend(self._content(message), message.dest, message.tag)
                works.append((work, lambda found: "" if found is None else repr(found)))
            self._pending[message.handle] = works
        if call.how == "any tag":  # whatever comes later must not be what it takes
            self._wait(Wait(handles=tuple(each.handle for each in call.messages)))
            comm.barrier()

    def _receive(self, comm: Any, call: Messages, message: Message) -> Pending:
        x = np.empty(message.count, dtype_named(message.dtype))
        tag = ANY if call.how == "any tag" else message.tag
        work = comm.irecv(x, message.source, tag)
        target = self._content(message)

        def problem(found: Any) -> str:
            if (work.source, work.tag) != (message.source, message.tag):
                return f"expected {message}, found source {work.source}, tag {work.tag}"
            return difference(target, found)

        return work, problem

    def _from_anyone(self, comm: Any, call: Messages) -> None:
        """Those of one source come in its order; which source is next, nobody knows."""
        due = {
            source: [self._content(each) for each in call.messages if each.source == source]
            for source in range(comm.size)
        }

        taken: list[tuple[int, int, Any]] = []  # index of the receive, source, content
        receives = sum(each.dest == comm.rank for each in call.messages)
        for at, message in enumerate(call.messages):
            works: list[Pending] = []
            if message.dest == comm.rank:
                x = np.empty(message.count, dtype_named(message.dtype))
                work = comm.irecv(x, ANY, message.tag)

                def problem(found: Any, work: Any = work, at: int = at) -> str:
                    taken.append((at, work.source, found))
                    if len(taken) < receives:
                        return ""
                    rest = {source: list(contents) for source, contents in due.items()}
                    for _, source, content in sorted(taken, key=lambda each: each[0]):
                        if not rest[source]:
                            return f"rank {source} has sent less than was received from it"
                        if text := difference(rest[source].pop(0), content):
                            return f"from rank {source}: {text}"
                    return ""

                works.append((work, problem))
            if message.source == comm.rank:
                work = comm.isend(self._content(message), message.dest, message.tag)
                works.append((work, lambda found: "" if found is None else repr(found)))
            self._pending[message.handle] = works


def _torch() -> Any:
    import torch

    return torch


_PARTS: dict[type, Any] = {
    Collective: Execution._collective,
    Objects: Execution._objects,
    Split: Execution._split,
    Close: Execution._close,
    Allocate: Execution._allocate,
    Messages: Execution._messages,
}
