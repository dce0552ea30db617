"""Ranks of one process on one emulated device: a stream each, memory in common."""

from __future__ import annotations

import numpy as np

from collectives.lowering import lower_all
from transports.cuda_ipc.emulation import EmulatedDevice, Machine
from transports.cuda_ipc.engine import DeviceEngine
from transports.cuda_ipc.flags import FlagTable
from transports.cuda_ipc.program import Reduction, compile_program, of_peer
from transports.plan import Space, split_evenly


class Streams:
    """`size` engines whose streams run on the same memory."""

    def __init__(self, size: int, slots: int = 4, slot_bytes: int = 4096, seed: int = 0) -> None:
        self.size = size
        self.device = EmulatedDevice(Machine(seed=seed), 0)
        table = FlagTable(size, slots)
        self.words = np.zeros(table.nbytes // 4, np.uint32)
        table.begin(self.words)
        at = self.device.register(self.words.ctypes.data, self.words.nbytes)
        outboxes = [self.device.allocate(slots * slot_bytes) for _ in range(size)]
        self.engines = [
            DeviceEngine(
                self.device, rank, table, self.words, at,
                lambda owner, targets: outboxes[owner], slot_bytes,
            )
            for rank in range(size)
        ]  # fmt: skip

    def array(self, data):
        """Memory of the device that holds `data`: (address, the bytes as an array)."""
        address = self.device.allocate(data.nbytes)
        memory = self.device._memory(address, data.nbytes).view(data.dtype)
        memory[:] = data.ravel()
        return address, memory

    def run(self, algo, inputs, root, count, reduction=None, *, mutate=None, after=None):
        """One call: the input and output of every rank; `inputs[r]` is rank r's input or None.

        `mutate` changes the programs; `after(rank, input)` gives the caller's stream.
        """
        size = self.size
        plans = lower_all(algo, size, root)
        chunks = algo.chunk_count(size)
        open_ended = algo.spec.chunking == "open"
        lengths = split_evenly(count, chunks) if open_ended else (count,) * chunks
        if algo.spec.chunking == "empty":
            lengths = (0,)
        item = next(x for x in inputs if x is not None).dtype.itemsize
        dtype = next(x for x in inputs if x is not None).dtype
        unit = item if reduction is not None else 1
        lengths = [length * (item // unit) for length in lengths]
        programs = [
            compile_program(plans, lengths, unit, reduction, engine.wiring)
            for engine in self.engines
        ]
        if mutate is not None:
            programs = mutate(programs)
        given, taken = [], []
        for rank, program in enumerate(programs):
            data = inputs[rank] if inputs[rank] is not None else np.zeros(0, dtype)
            given.append(self.array(data if program.input_bytes else np.zeros(0, dtype)))
            taken.append(self.array(np.full(program.output_bytes // item, 77).astype(dtype)))
        bases = {}
        for rank in range(size):
            bases |= {of_peer(rank, Space.INPUT): given[rank][0],
                      of_peer(rank, Space.OUTPUT): taken[rank][0]}  # fmt: skip
        for rank in range(size):
            here = {Space.INPUT.name: given[rank][0], Space.OUTPUT.name: taken[rank][0]}
            stream = 0 if after is None else after(rank, given[rank][1])
            engine = self.engines[rank]
            number = engine.next_number(stream)
            engine.run(programs[rank], stream, {**bases, **here}, number)
        return given, taken

    def finish(self):
        for engine in self.engines:
            self.device.synchronize(engine.stream)

    def close(self):
        for engine in self.engines:
            engine.release()
            engine.run_out()
        self.device.end()


def reduction_of(dtype, op):
    from collectives.dtypes import reduction

    return Reduction(*reduction(dtype, op))
