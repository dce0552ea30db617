"""scatter, in which only the root knows what comes.

The first time, a header goes before the data, and every rank keeps what it said. From then on all
know that call: the root sends the data at once, and the others see by the fingerprint of the first
message that comes whether it is of a call they know, or a header.
"""

from __future__ import annotations

import pickle
import weakref
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from collectives.arguments import (
    check_counts,
    check_root,
    check_timeout,
    input_array,
    refuse_out,
    refuse_overlap,
)
from collectives.arrays import NUMPY, ON_DEVICE, Array, family_of, shape_of
from collectives.by_mpi import NAME as MPI
from collectives.catalogue import find
from collectives.choosing import Request
from collectives.operations import Counts, Operations
from collectives.schedule import Algorithm
from collectives.steps import Recv
from collectives.work import Deferred, Work
from transports import _native
from transports.errors import CollectiveError

_HEADER_BYTES = 512
# All ranks keep the same, in the same order, so they stop at the same; beyond it headers go on.
_MOST_TOLD = 1024

Told = tuple[str, Any, tuple[int, ...], str, bool]
"""What a header says: family and dtype of the root's x, its shape, and the algorithm's name, empty
for one of the user's: names are unique in the catalogue only; and whether the root has named it."""


class Scatter(Operations):
    """The scatter of a communicator."""

    # By (root, counts): what headers have said, and the calls for it.
    _told: dict[Any, dict[Told, _native.Call]]
    # Of OnDevices: the caller's current stream by family, and the scatter of what lies on a device.
    _streams_now: Callable[[], Mapping[str, Any]]
    _scatter_before: Callable[[], Work | None]
    _scatter_on_device: Callable[..., Any]

    @_native.repeatable
    def scatter(
        self,
        x: Array | None,
        *,
        root: int = 0,
        out: Array | None = None,
        counts: Counts | None = None,
        algorithm: str | Algorithm | None = None,
        async_op: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """Give entry r of the root's `x` to rank r.

        Args:
            x: on the root, shape (size, ...), or with `counts` (sum(counts), ...); other ranks may
                pass None, and what they pass is not read.
            root: whose.
            out: shape x.shape[1:]; with `counts`, (counts[rank], ...).
            counts: how many entries of the leading axis each rank gets; the same on every rank.
            algorithm: see `collectives.operations`.
            async_op: see `collectives.operations`.
            timeout: see `collectives.operations`.

        Returns:
            This rank's part.
        """
        root = check_root(root, self.size)
        if algorithm == MPI:
            self._refuse_beside_mpi("scatter", async_op=async_op, counts=counts, timeout=timeout)
            return self._mpis_own().scatter(x, out, root)
        parts = None if counts is None else check_counts(counts, self.size)
        seconds = self.timeout if timeout is None else check_timeout(timeout)
        # Proved here, not in the job: a proof takes a call of its own.
        self._calls.proved_algorithm_for(
            Request("scatter", "", 1, 0, root=root, algorithm=algorithm, counts=parts)
        )
        if self.rank == root:
            family, x = input_array(x)
            family.dtype_of(x)
            shape, _, _ = self._share_of(family, x, counts)
            if out is not None:
                refuse_out(out, shape, x, family)
                refuse_overlap(x, out, family)
        elif out is not None:
            family_of(out, "out")
        streams = self._streams_now()

        def job() -> Any:
            return self._scatter(x, root, out, parts, algorithm, seconds, streams)

        if async_op:
            work = self._queue.submit("scatter", job)
            self._scatter_before = weakref.ref(work)  # the queue keeps it as long as it matters
            return work
        found = self._in_turn("scatter", job)
        return found.wait() if isinstance(found, Deferred) else found

    def _scatter(
        self,
        x: Array | None,
        root: int,
        out: Array | None,
        parts: tuple[int, ...] | None,
        algorithm: str | Algorithm | None,
        seconds: float,
        streams: Mapping[str, Any],
    ) -> Any:
        try:
            told, call = self._next_scatter(x, root, parts, algorithm, seconds)
            family_name, dtype, whole, *_ = told
            if call is None:
                asked = self._scatter_request(told, root, parts, algorithm)
                shape = whole[1:] if parts is None else (parts[self.rank], *whole[1:])
                return self._scatter_on_device(
                    asked, family_name, dtype, x, shape, out, seconds, streams.get(family_name)
                )
            like = x if self.rank == root else _example(family_name, dtype)
        except CollectiveError:
            raise
        except BaseException as error:  # between header and data: the others must not wait
            self._engine.abort(f"rank {self.rank} left a scatter with {error!r}")
            raise
        family = family_of(like)
        rest = whole[1:]
        shape = rest if parts is None else (parts[self.rank], *rest)
        if out is not None:
            try:
                refuse_out(out, shape, like, family)
            except (TypeError, ValueError) as error:
                # The others are in the collective already: they must hear of it.
                self._engine.mismatch(f"{call.text}: rank {self.rank}: {error}")
        result = family.empty(shape, like) if out is None else out
        target = result if family.is_contiguous(result) else family.empty(shape, like)
        source = family.contiguous(x) if self.rank == root else None
        given = None if source is None else family.memory(source)
        plain = target is out and (source is None or source is x) and parts is None
        if plain and family is NUMPY and (algorithm is None or isinstance(algorithm, str)):
            mine = x if self.rank == root else None
            if told in self._told.get((root, parts), ()):
                self._engine.remember(
                    "scatter", mine, out, root, None, algorithm, False, call,
                    is_told=self.rank != root,
                )  # fmt: skip
        self._engine.execute(call, given, family.memory(target), seconds, False, target, source)
        if target is not result:
            family.copy_into(result, target)
        return result

    def _next_scatter(
        self,
        x: Array | None,
        root: int,
        parts: tuple[int, ...] | None,
        algorithm: str | Algorithm | None,
        seconds: float,
    ) -> tuple[Told, _native.Call | None]:
        """What the root scatters now, and the call that does it; None: it lies on a device."""
        known = self._told.setdefault((root, parts), {})
        told = None
        if self.rank == root:
            told = self._about(x, root, parts, algorithm)
            if told in known:
                return told, known[told]
        else:
            for each in reversed(known):  # what came last is likeliest to come again
                if algorithm in (None, each[3]) and self._engine.next_is(known[each], seconds):
                    return each, known[each]
        told = self._told_by_root(told, root, seconds)
        if self._asks_for_another(told, algorithm):
            # Not left to the messages: one that waits for what none sends would never see it.
            theirs = told[3] or "an algorithm of the user's"
            ours = getattr(algorithm, "name", algorithm)
            self._engine.mismatch(
                f"scatter: rank {root} scatters by {theirs}, rank {self.rank} by {ours}"
            )
        if told[0] in ON_DEVICE:
            return told, None
        call = self._scatter_call(told, root, parts, algorithm)
        # Only where every rank hears first of the root does its first message, header or data, tell
        # which of the two has come.
        direct = bool(told[3]) and _hears_of_root(find("scatter", told[3]), self.size, root)
        if direct and sum(map(len, self._told.values())) < _MOST_TOLD:
            known[told] = call
        return told, call

    def _asks_for_another(self, told: Told, algorithm: str | Algorithm | None) -> bool:
        """Whether this rank asks for another algorithm than the root."""
        if isinstance(algorithm, str):
            return find("scatter", algorithm).name != told[3]
        return (algorithm is None) != bool(told[3])

    def _about(
        self,
        x: Array | None,
        root: int,
        parts: tuple[int, ...] | None,
        algorithm: str | Algorithm | None,
    ) -> Told:
        """What the root's header says."""
        family = family_of(x)
        what = (family.name, x.dtype, shape_of(x))  # type: ignore[union-attr]
        if isinstance(algorithm, Algorithm):
            return (*what, "", True)
        request = self._scatter_request((*what, algorithm or "", True), root, parts, None)
        name = self._calls.chooser.algorithm_for(request).name
        return (*what, name, algorithm is not None)

    def _scatter_request(
        self,
        told: Told,
        root: int,
        parts: tuple[int, ...] | None,
        algorithm: str | Algorithm | None,
    ) -> Request:
        like = _example(*told[:2])
        family = family_of(like)
        row = int(np.prod(told[2][1:], dtype=np.int64))
        counts = None if parts is None else tuple(part * row for part in parts)
        named = algorithm if isinstance(algorithm, Algorithm) else told[3] * told[4] or None
        return Request(
            "scatter", family.dtype_of(like), family.itemsize_of(like),
            row if parts is None else 0, None, root, named, counts,
            whole=f"{told[0]} {told[2]}",
        )  # fmt: skip

    def _scatter_call(
        self,
        told: Told,
        root: int,
        parts: tuple[int, ...] | None,
        algorithm: str | Algorithm | None,
    ) -> _native.Call:
        return self._calls.get(self._scatter_request(told, root, parts, algorithm))

    def _told_by_root(self, told: Told | None, root: int, seconds: float) -> Told:
        """The root's header, on every rank."""
        note = b"" if told is None else pickle.dumps(told)
        header = np.zeros(_HEADER_BYTES, np.uint8)
        header[:8] = np.frombuffer(len(note).to_bytes(8, "little"), np.uint8)
        short = note[: _HEADER_BYTES - 8]
        header[8 : 8 + len(short)] = np.frombuffer(short, np.uint8)
        self._tell(header, root, seconds)
        length = int.from_bytes(header[:8].tobytes(), "little")
        text = header[8 : 8 + length]
        if length > text.size:  # a record of many fields, say
            text = np.frombuffer(bytearray(note or length), np.uint8)
            self._tell(text, root, seconds)
        said: Told = pickle.loads(text.tobytes())
        return said

    def _tell(self, note: Array, root: int, seconds: float) -> None:
        # Straight from the root, as the data that a rank may be waiting for, see above.
        call = self._calls.get(
            Request(
                "broadcast",
                "header",
                1,
                note.size,
                root=root,
                algorithm="linear",
                part_of="scatter",
            )
        )
        self._engine.execute(call, note if self.rank == root else None, note, seconds, False)


@lru_cache(maxsize=256)
def _hears_of_root(algo: Algorithm, size: int, root: int) -> bool:
    """Whether the first message that each rank takes is the root's."""
    firsts = (
        next(
            (step.peer for step in algo.schedule(rank, size, root) if isinstance(step, Recv)), root
        )
        for rank in range(size)
    )
    return all(first == root for first in firsts)


def _example(family: str, dtype: Any) -> Array:
    """An empty array of the type of another rank's, and of its family if that is on the host."""
    if family.startswith("torch"):
        import torch

        return torch.empty(0, dtype=dtype, device="cpu")
    return np.empty(0, dtype)
