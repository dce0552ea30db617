"""What a call on devices is: a program, and what the hosts agree on; made once, then cached."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from collectives import dtypes
from collectives.choosing import Request
from collectives.device_symmetric import DeviceBlock, DeviceSymmetric
from collectives.lowering import lower_all
from collectives.reaching import reach
from collectives.specs import spec_named
from transports import _native
from transports.cuda_ipc.connection import Connected
from transports.cuda_ipc.program import Program, Reduction, compile_program
from transports.plan import Space

_MOST_CALLS = 4096  # a program that never repeats a shape must not grow for ever


class DeviceCall:
    """A program, and what the hosts agree on.

    Attributes:
        has_run: whether all that a first run makes is there: kernels, and room for scratch.
    """

    def __init__(self, program: Program, agreement: _native.Call) -> None:
        self.program = program
        self.agreement = agreement
        self.has_run = False


class DeviceCalls(DeviceSymmetric):
    """Makes and keeps the calls on devices of a communicator."""

    hosts: tuple[int, ...]

    def _begin_device_calls(self) -> None:
        self._connected: Connected | None = None
        self._device_calls: dict[Any, DeviceCall] = {}
        self._begin_device_symmetric()

    def _device_call(
        self, request: Request, where: Sequence[tuple[Space, DeviceBlock, int]]
    ) -> DeviceCall:
        places = tuple((space, block.id, offset) for space, block, offset in where)
        rows = self._everyones_counts(request)
        key = (request, places, rows)
        try:
            found = self._device_calls.get(key)
        except TypeError:  # op or algorithm cannot be hashed: no name, and refused as such
            return self._make_device_call(request, places, rows)
        if found is None:
            if len(self._device_calls) >= _MOST_CALLS:
                self._device_calls.clear()
            found = self._device_calls[key] = self._make_device_call(request, places, rows)
        return found

    def _make_device_call(
        self,
        request: Request,
        places: tuple[tuple[Space, int, int], ...],
        rows: tuple[tuple[int, ...], ...],
    ) -> DeviceCall:
        assert self._connected is not None, "a call on devices that are not connected"
        reduction = None
        if spec_named(request.collective).reduces:
            reduction = Reduction(*dtypes.reduction(request.dtype, request.op))
        algo = self._calls.proved_algorithm_for(request)
        text = self._calls.text_of(request, algo) + " on devices"
        if algo.one_sided:  # where an array lies that peers reach is part of what must be agreed on
            remote = reach(algo, self.size, request.root, self.hosts).remote
            text += "".join(f" at {block:x}+{at}" for space, block, at in places if space in remote)
        plans = lower_all(algo, self.size, request.root, self.hosts)
        unit = 1 if reduction is None else request.itemsize
        scale = request.itemsize // unit
        known = [count for row in rows for count in row] or self._calls.lengths_of(request, algo)
        lengths = [length * scale for length in known]
        program = compile_program(plans, lengths, unit, reduction, self._connected.engine.wiring)
        return DeviceCall(program, self._calls.agreement(text))

    def _everyones_counts(self, request: Request) -> tuple[tuple[int, ...], ...]:
        """What each rank sends each in an alltoall with counts; () for other calls.

        Told anew each time, since a rank does not see when others change what they exchange.
        """
        if request.collective != "alltoall" or request.counts is None:
            return ()
        with self._calling("alltoall on devices"):
            rows: list[tuple[int, ...]] = self.allgather_object(request.counts[: self.size])
        for source, row in enumerate(rows):
            mine = request.counts[self.size + source]
            if row[self.rank] != mine:
                self._engine.mismatch(
                    f"alltoall: rank {source} sends {row[self.rank]} elements to rank {self.rank}, "
                    f"which receives {mine}"
                )
        return tuple(rows)
