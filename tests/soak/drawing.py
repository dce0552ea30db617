"""From a seed to a program: what is drawn, how often, and what may stand where.

Every rank does its part of all operations in the order of the list, so whoever blocks is waited for
by nobody who has not come as far: a program cannot deadlock, unless the library does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from harness.conformance import OPS_OF

from collectives.catalogue import CATALOGUE
from collectives.specs import SPECS
from soak.operations import (
    Allocate,
    Close,
    Collective,
    Message,
    Messages,
    Objects,
    Operation,
    Place,
    Program,
    Split,
    Wait,
)
from soak.oracle import FLOATS, dtype_named, shape_on

MOVED_ONLY = ("complex64", "complex128")
GEOMETRIES: tuple[dict[str, str], ...] = (
    {},
    {"COLLECTIVES_SLOTS": "2", "COLLECTIVES_SLOT_BYTES": "1024", "COLLECTIVES_DEPTH": "2",
     "COLLECTIVES_LANE_SLOTS": "2", "COLLECTIVES_LANE_BYTES": "1024"},
    {"COLLECTIVES_SLOTS": "4", "COLLECTIVES_SLOT_BYTES": "4096"},
    {"COLLECTIVES_DEPTH": "4", "COLLECTIVES_LANE_SLOTS": "3", "COLLECTIVES_LANE_BYTES": "192"},
)  # fmt: skip
"""Communicators as they are, and with few and small slots."""

TAKES_COUNTS = ("gather", "allgather", "scatter", "reduce_scatter", "alltoall")
IN_PLACE = ("allreduce", "reduce", "broadcast", "alltoall")


@dataclass(frozen=True, kw_only=True)
class Taste:
    """What programs are made of.

    Attributes:
        length: number of operations, about.
        torch: whether some arrays are torch tensors.
        longest: of an array, in bytes.
        messages: how often an operation is point-to-point.
        splits: how often communicators come and go.
        allocations: how often arrays are symmetric.
        reaches: whether there is memory that all ranks reach, for one-sided algorithms.
        pending: how many asynchronous operations there may be at once; 0: all calls block.
    """

    length: int = 200
    torch: bool = True
    longest: int = 1 << 21
    messages: float = 0.2
    splits: float = 0.04
    allocations: float = 0.2
    pending: int = 12
    reaches: bool = True


def draw(seed: int, size: int, taste: Taste) -> Program:
    """The program of a seed."""
    return _Draw(seed, size, taste).program()


class _Draw:
    def __init__(self, seed: int, size: int, taste: Taste) -> None:
        self.dice = np.random.default_rng([seed, size])
        self.seed, self.size, self.taste = seed, size, taste
        self.members = {0: tuple(range(size))}
        self.parents: dict[int, int] = {}
        self.open = [0]
        self.pending: dict[int, int] = {}  # handle -> communicator
        self.handles = self.allocated = 0
        self.pools: dict[int, tuple[int, int, int]] = {}  # communicator -> number, bytes, used
        self.operations: list[Operation] = []

    def program(self) -> Program:
        environment = dict(GEOMETRIES[self.dice.integers(len(GEOMETRIES))])
        # By dice of its own: programs stay what they were.
        if np.random.default_rng([self.seed, self.size, 1]).random() < 0.5:
            environment["COLLECTIVES_LEND"] = "always"
        while len(self.operations) < self.taste.length:
            self.draw_one()
        self.wait_for(list(self.pending))
        while len(self.open) > 1:
            self.close(self.open[-1])
        self.operations.append(Collective(collective="barrier"))
        return Program(seed=self.seed, size=self.size, environment=environment,
                       operations=self.operations, members=self.members)  # fmt: skip

    def draw_one(self) -> None:
        taste, chance = self.taste, self.dice.random()
        if self.pending and (self.dice.random() < 0.15 or len(self.pending) > taste.pending):
            several = self.dice.integers(1, len(self.pending) + 1)
            self.wait_for(list(self.dice.permutation(list(self.pending))[:several]))
        comm = int(self.pick(self.open))
        if chance < taste.splits:
            if len(self.open) > 1 and self.dice.random() < 0.5:
                self.close(int(self.pick(self.open[1:])))
            elif len(self.open) < 6:
                self.split(comm)
        elif chance < taste.splits + taste.messages:
            self.messages(comm)
        elif chance > 0.96:
            length = int(self.pick((0, 1, 30, 3000)))
            root = int(self.dice.integers(len(self.members[comm])))
            name = self.pick(("broadcast_object", "allgather_object"))
            self.operations.append(Objects(comm=comm, collective=name, root=root, length=length))
        else:
            self.collective(comm)

    def pick(self, among: Sequence[Any]) -> Any:
        return among[self.dice.integers(len(among))]

    # --- communicators

    def split(self, comm: int) -> None:
        members = self.members[comm]
        colors = [self.pick((0, 0, 1, None)) for _ in members]
        keys = [int(key) for key in self.dice.integers(-2, 3, len(members))]
        made = []
        for color in sorted({color for color in colors if color is not None}):
            number = len(self.members)
            order = sorted((keys[at], at) for at, other in enumerate(colors) if other == color)
            self.members[number] = tuple(members[at] for _, at in order)
            self.parents[number] = comm
            self.open.append(number)
            made.append((color, number))
        self.operations.append(
            Split(comm=comm, colors=tuple(colors), keys=tuple(keys), made=tuple(made))
        )

    def close(self, comm: int) -> None:
        for child in [each for each in self.open if self.parents.get(each) == comm]:
            self.close(child)
        self.wait_for([handle for handle, of in self.pending.items() if of == comm])
        self.open.remove(comm)
        self.pools.pop(comm, None)
        self.operations.append(Close(comm=comm))

    def wait_for(self, handles: list[int]) -> None:
        if handles:
            for handle in handles:
                del self.pending[handle]
            self.operations.append(Wait(handles=tuple(map(int, handles))))

    def new_handle(self, comm: int) -> int:
        self.handles += 1
        self.pending[self.handles] = comm
        return self.handles

    # --- collectives

    def collective(self, comm: int) -> None:
        taste, size = self.taste, len(self.members[comm])
        collective = str(self.pick(sorted(SPECS)))
        spec = SPECS[collective]
        handle = None
        if taste.pending and self.dice.random() < 0.3:
            handle = self.new_handle(comm)
        names = [
            name for of, name in CATALOGUE if of == collective and CATALOGUE[of, name].allows(size)
        ]
        if collective == "barrier":
            algorithm = self.pick([None, *names])
            self.operations.append(
                Collective(comm=comm, collective=collective, algorithm=algorithm, handle=handle)
            )
            return
        dtype = str(self.pick([*OPS_OF] if spec.reduces else [*OPS_OF, *MOVED_ONLY]))
        op = str(self.pick(OPS_OF[dtype])) if spec.reduces else None
        kind = "torch" if taste.torch and self.dice.random() < 0.25 else "numpy"
        shape, counts = self.shape(collective, size, dtype_named(dtype).itemsize)
        result = str(self.pick(("new", "new", "out", "in place")))
        if result == "in place" and (collective not in IN_PLACE or counts is not None):
            result = "out"
        deterministic = spec.reduces and self.dice.random() < 0.2
        if deterministic and dtype in FLOATS and self.dice.random() < 0.7:
            op = "sum"
        call = Collective(
            comm=comm, collective=collective, dtype=dtype, op=op, shape=shape, counts=counts,
            root=int(self.dice.integers(size)) if spec.rooted else 0, kind=kind, result=result,
            deterministic=deterministic, handle=handle,
        )  # fmt: skip
        layouts, places = self.memory(call, size)
        names = [
            name for name in names if self.may_run(call, name, layouts[0] == "symmetric", size)
        ]
        self.operations.append(
            Collective(**{**vars(call), "layouts": layouts, "places": places,
                          "algorithm": self.pick([None, None, *names])})
        )  # fmt: skip

    def may_run(self, call: Collective, name: str, symmetric: bool, size: int) -> bool:
        """Whether an algorithm takes the call."""
        algo = CATALOGUE[call.collective, name]
        if algo.one_sided and (
            not symmetric
            or not self.taste.reaches
            or (call.collective == "alltoall" and call.counts is not None)
            or (call.collective == "alltoall" and call.result == "in place")
            or (call.collective == "allreduce" and call.result == "new")
            # An array without bytes lies nowhere.
            or any(0 in shape_on(call, rank, size) for rank in range(size))
        ):
            return False
        if call.deterministic and size > 2 and not (name == "linear" or algo.one_sided):
            return False
        return not (
            call.collective == "alltoall" and call.counts is not None and name in ("bruck", "tree")
        )

    def length(self, itemsize: int) -> int:
        """Elements of an array: mostly few."""
        chance = self.dice.random()
        if chance < 0.15:
            return int(self.pick((0, 1, 1, 2)))
        if chance < 0.6:
            return int(self.dice.integers(1, 40))
        if chance < 0.7:  # around what travels inline, and the ends of slots
            near = int(self.pick((40, 64, 1024, 4096, 16384, 262144)))
            return max(0, min(near, self.taste.longest) // itemsize + int(self.pick((-1, 0, 1))))
        longest = self.taste.longest if chance > 0.98 else min(self.taste.longest, 16384)
        return int(self.dice.integers(1, max(2, longest // itemsize)))

    def shape(
        self, collective: str, size: int, itemsize: int
    ) -> tuple[tuple[int, ...], tuple[Any, ...] | None]:
        """Shape of a part and counts."""
        if collective in TAKES_COUNTS and self.dice.random() < 0.35:
            most = max(1, self.length(itemsize) // size)

            def counts() -> tuple[int, ...]:
                return tuple(
                    0 if self.dice.random() < 0.2 else int(count)
                    for count in self.dice.integers(0, most + 1, size)
                )

            row: tuple[int, ...] = self.pick(((), (), (2,), (3, 1)))
            if collective == "alltoall":
                return row, tuple(counts() for _ in range(size))
            return row, counts()
        length = self.length(itemsize)
        if collective in TAKES_COUNTS:
            length = length // size if length >= size else length
        chance = self.dice.random()
        if chance < 0.1:
            return (), None
        return ((3, length // 3) if chance < 0.2 else (length,)), None

    def memory(
        self, call: Collective, size: int
    ) -> tuple[tuple[str, str], tuple[Place | None, Place | None]]:
        """Where x and out lie."""
        usual = ("whole", "whole", "slice", "strided")
        if self.dice.random() > self.taste.allocations:
            return (str(self.pick(usual)), str(self.pick(usual))), (None, None)
        itemsize = dtype_named(call.dtype).itemsize
        elements = max(
            int(np.prod(shape_on(call, rank, size), dtype=np.int64)) for rank in range(size)
        )
        several = call.collective in ("gather", "allgather", "alltoall")
        results = elements * size if several else elements
        x = self.place(call.comm, elements * itemsize, itemsize)
        if call.result == "new":
            return ("symmetric", "whole"), (x, None)
        if call.result == "in place":
            return ("symmetric", "symmetric"), (x, x)
        # Both are the same allocation's, or two: it may have come to its end.
        out = self.place(call.comm, results * itemsize, itemsize)
        return ("symmetric", "symmetric"), (x, out)

    def place(self, comm: int, nbytes: int, itemsize: int) -> Place:
        """Room in what this communicator, or one it was split from, has, or in something new."""
        owner = comm
        while owner in self.parents and self.dice.random() < 0.3:
            owner = self.parents[owner]
        number, length, used = self.pools.get(owner, (0, 0, 0))
        if owner != comm and used + nbytes + 64 > length:
            owner = comm
            number, length, used = self.pools.get(owner, (0, 0, 0))
        used = -(-used // itemsize) * itemsize
        if number == 0 or used + nbytes > length:
            self.allocated += 1
            number, used = self.allocated, 0
            length = max(4 * nbytes, int(self.pick((1 << 14, 1 << 18))))
            self.operations.append(Allocate(comm=owner, number=number, nbytes=length))
        self.pools[owner] = (number, length, used + nbytes)
        return number, used

    # --- point-to-point

    def messages(self, comm: int) -> None:
        size = len(self.members[comm])
        how = str(self.pick(("posted", "posted", "blocking", "any source", "any tag", "shift")))
        if how == "posted" and not self.taste.pending:
            how = "blocking"
        if how == "shift":
            step = int(self.dice.integers(size))
            ends = [(source, (source + step) % size) for source in range(size)]
        else:
            ends = [
                (int(self.dice.integers(size)), int(self.dice.integers(size)))
                for _ in range(self.dice.integers(1, 6))
            ]
        if how == "any source":  # one receiver, whose receives take what comes
            ends = [(source, ends[0][1]) for source, _ in ends]
        if how == "any tag":
            ends = ends[:1]
        once = 1000 + len(self.operations)
        dtype, count = str(self.pick([*OPS_OF, *MOVED_ONLY])), self.length(8)
        messages = []
        for source, dest in ends:
            if how == "posted" or how == "blocking":
                dtype, count = str(self.pick([*OPS_OF, *MOVED_ONLY])), self.length(8)
            tag = int(self.dice.integers(3)) if how in ("posted", "blocking") else once
            handle = self.new_handle(comm)
            messages.append(Message(source=source, dest=dest, tag=tag, dtype=dtype, count=count,
                                    handle=handle))  # fmt: skip
        self.operations.append(Messages(comm=comm, how=how, messages=tuple(messages)))
        if how != "posted" and how != "any source":
            for message in messages:
                del self.pending[message.handle]
        elif not self.taste.pending:
            self.wait_for([message.handle for message in messages])
