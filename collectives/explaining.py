"""Which algorithm a call runs and why, what else there is, and what each takes: `comm.explain`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from collectives.arguments import check_leading_axis, check_root, input_array
from collectives.arrays import Array, shape_of
from collectives.bench.timing import measure as measure_rounds
from collectives.choosing import Chooser, Request
from collectives.cost.comparison import able_algorithms
from collectives.cost.parameters import Parameters
from collectives.cost.shared_memory import predict
from collectives.cost.work import Room
from collectives.on_devices import OnDevices
from collectives.schedule import Algorithm
from collectives.selection import Row, SelectionTable
from collectives.specs import Spec, spec_named
from collectives.tuned import machine_model
from transports.plan import Space

_NO_LIMIT = 1 << 62  # as in collectives.selection


@dataclass(frozen=True)
class Candidate:
    """One algorithm that could run a call.

    Attributes:
        algorithm: its name.
        predicted: seconds by the model of this machine; None where it was not fitted for that.
        measured: seconds of a call in the best round, if it was measured.
        refused: why this call cannot run it; empty if it can.
        chosen: whether it is the one that runs.
    """

    algorithm: str
    predicted: float | None
    measured: float | None = None
    refused: str = ""
    chosen: bool = False


@dataclass(frozen=True)
class Explanation:
    """Why a call runs what it runs; print it.

    Attributes:
        call: what is called, in words.
        algorithm: the name of what runs.
        reason: why.
        candidates: every algorithm of the collective, the quickest predicted first.
        machine: what machine the predictions were fitted on.
        error: median error of predictions for the algorithm that runs, at sizes that were not
            fitted, of 64 KiB and more; None if that is not known.
        instead: what runs in its place where copies of the kernel's between the ranks' arrays are
            quicker, which the call finds out by trying; empty: nothing.
        found: what it has found last: "trying", "slower" or "quicker"; empty: nothing yet.
    """

    call: str
    algorithm: str
    reason: str
    candidates: tuple[Candidate, ...]
    machine: str
    error: float | None
    instead: str = ""
    found: str = ""

    def __str__(self) -> str:
        head = f"{self.call}: runs {self.algorithm}, {self.reason}"
        if self.instead:
            words = f"or {self.instead}, if copies of the kernel's are found to be quicker"
            head += "; " + words + _FOUND[self.found].format(self)
        measured = any(each.measured is not None for each in self.candidates)
        wide = max(len("algorithm"), *(len(each.algorithm) for each in self.candidates)) + 2
        lines = [head, f"  {'algorithm':<{wide}}{'predicted':>12}{'measured' * measured:>12}"]
        for each in self.candidates:
            line = f"{'* ' if each.chosen else '  '}{each.algorithm:<{wide}}"
            line += f"{_readable(each.predicted):>12}"
            if measured:
                line += f"{_readable(each.measured):>12}"
            lines.append(line + (f"  {each.refused}" if each.refused else ""))
        about = f"predictions fitted on {self.machine or 'another machine'}"
        if self.error is not None:
            about += f"; median error of {self.algorithm} there {self.error:.0%}"
        return "\n".join([*lines, about])


_FOUND = {
    "": "",
    "trying": ", which is being tried",
    "slower": ": which they were not, when it was tried last",
    "quicker": ": which they were, so {0.instead} runs",
}
"""What a call has found, in the engine's order, and the words for it."""


class Explaining(OnDevices):
    """Adds `explain` to a communicator."""

    _table: SelectionTable
    _room: Room

    def explain(
        self,
        collective: str,
        x: Array | None = None,
        *,
        root: int = 0,
        op: str | None = None,
        algorithm: str | Algorithm | None = None,
        deterministic: bool = False,
        measure: bool = False,
        rounds: int = 5,
    ) -> Explanation:
        """Say which algorithm `comm.<collective>(x, ...)` runs and why, and what others would take.

        Predicted is what the model of this machine says (`collectives tune` fits it) for one call
        of many in a row. Nothing is sent unless `measure` is set.

        Args:
            collective: its name, such as "allreduce".
            x: what would be passed; of scatter the root's array, on every rank. None for a
                barrier. Only its shape and type matter, unless it is measured.
            root: as in the call.
            op: as in the call; "sum" by default.
            algorithm: as in the call.
            deterministic: as in the call.
            measure: also run each candidate and take its time: a collective call then, which all
                ranks make alike.
            rounds: how many rounds to measure; the best counts.

        Raises:
            ValueError: no such collective, or the arguments do not fit it.
            TypeError: x is no array.
        """
        spec = spec_named(collective)
        root = check_root(root, self.size)
        request = self._request(spec, x, root, op, algorithm, deterministic)
        chosen = self._calls.chooser_for(request).algorithm_for(request)
        instead = None if request.on_devices else self._calls.instead_of(request, chosen)
        nbytes = _full_bytes(spec, request, self.size)
        model = machine_model()
        candidates = [
            self._candidate(each, request, nbytes, model, chosen)
            for each in _with(chosen, able_algorithms(collective, self.size, one_sided=True))
        ]
        if measure:
            candidates = [
                each
                if each.refused
                else replace(each, measured=self._time(_named(each, chosen), request, x, rounds))
                for each in candidates
            ]
        return Explanation(
            call=_words(spec, request, self.size, nbytes),
            algorithm=chosen.name,
            reason=self._reason(request, chosen, nbytes),
            candidates=tuple(sorted(candidates, key=_quickest_first)),
            machine=model.machine,
            error=None if request.on_devices else model.errors.get(f"{collective} {chosen.name}"),
            instead=instead.name if instead is not None else "",
            found=self._found(request) if instead is not None else "",
        )

    def predict(
        self,
        collective: str,
        x: Array | None = None,
        *,
        root: int = 0,
        op: str | None = None,
        deterministic: bool = False,
        ranks: int | None = None,
    ) -> float | None:
        """Seconds that `comm.<collective>(x, ...)` takes, as the model of this machine says.

        Nothing is sent. What `explain` says of the algorithm that runs, for other numbers of ranks,
        too: then every rank has a core of its own on one host, and what the model was not fitted
        for is extrapolated.

        Args:
            collective: as in `explain`.
            x: as in `explain`.
            root: as in the call.
            op: as in the call.
            deterministic: as in the call.
            ranks: of how many; by default as many as there are.

        Returns:
            None where the model was not fitted for that algorithm, nor for any on devices.

        Raises:
            ValueError: as `explain`; or ranks below 1, or below what root asks for.
            TypeError: as `explain`.
        """
        size = self.size if ranks is None else ranks
        if size < 1:
            raise ValueError(f"ranks: expected 1 or more, found {ranks}")
        spec = spec_named(collective)
        root = check_root(root, size)
        request = self._request(spec, x, root, op, None, deterministic, size)
        if request.on_devices:
            return None
        chooser, room = self._calls.chooser, self._room
        if size != self.size:
            chooser = Chooser(0, size, (0,) * size, self._table)
            room = replace(room, cores=max(room.cores, size))
        algo = chooser.algorithm_for(request)
        model = machine_model()
        if not model.tells_of(algo):
            return None
        return predict(
            algo, size, _full_bytes(spec, request, size), model, room,
            item_bytes=request.itemsize, root=root,
        )  # fmt: skip

    def _found(self, request: Request) -> str:
        """What the call has found of copies of the kernel's, here and on all ranks alike."""
        return tuple(_FOUND)[self._engine.found(self._calls.get(request))]

    def _request(
        self,
        spec: Spec,
        x: Array | None,
        root: int,
        op: str | None,
        algorithm: str | Algorithm | None,
        deterministic: bool,
        size: int | None = None,
    ) -> Request:
        if spec.chunking == "empty":
            return Request(spec.name, "", 1, 0, algorithm=algorithm)
        if x is None:
            raise ValueError(f"explain {spec.name}: expected an array, found None")
        family, x = input_array(x)
        count = family.count_of(x)
        if spec.name in ("reduce_scatter", "scatter", "alltoall"):
            ranks = self.size if size is None else size
            check_leading_axis(x, ranks, "the number of ranks")
            count //= ranks
        # What one array is asked about stands for both, as in place.
        both = (Space.INPUT, Space.OUTPUT)
        symmetric = (
            self._block_of(family, x) is not None  # type: ignore[arg-type]
            if family.on_device
            else self._lies_in_symmetric(family, x)
        )
        return Request(
            spec.name, family.dtype_of(x), family.itemsize_of(x), count,
            (op or "sum") if spec.reduces else None, root if spec.rooted else 0, algorithm,
            None, deterministic, both if symmetric else (),
            f"{family.name} {shape_of(x)}" if spec.name == "scatter" else "",
            on_devices=family.on_device,
        )  # fmt: skip

    def _candidate(
        self,
        algo: Algorithm,
        request: Request,
        nbytes: int,
        model: Parameters,
        chosen: Algorithm,
    ) -> Candidate:
        refused = ""
        try:
            self._calls.chooser_for(request).algorithm_for(request._replace(algorithm=algo))
        except ValueError as error:
            refused = str(error).partition("; expected")[0]
        seconds = None
        if model.tells_of(algo) and not request.on_devices:
            seconds = predict(
                algo, self.size, nbytes, model, self._room, item_bytes=request.itemsize,
                root=request.root,
            )  # fmt: skip
        return Candidate(algo.name, seconds, refused=refused, chosen=algo is chosen)

    def _time(
        self, algorithm: str | Algorithm, request: Request, x: Array | None, rounds: int
    ) -> float:
        call = self._call(request, x, algorithm)
        return measure_rounds(self, call, rounds=rounds, least_seconds=0.002).best

    def _call(
        self, request: Request, x: Array | None, algorithm: str | Algorithm
    ) -> Callable[[], object]:
        """The call to be timed, its result's array made before."""
        method = getattr(self, request.collective)
        options: dict[str, Any] = {"algorithm": algorithm}
        if x is None:
            return lambda: method(**options)
        spec = spec_named(request.collective)
        if spec.reduces:
            options |= {"op": request.op, "deterministic": request.deterministic}
        if spec.rooted:
            options["root"] = request.root
        if request.symmetric and request.collective == "allreduce":  # which reaches into out, too
            place = "cuda" if request.on_devices else None
            out = self.empty(shape_of(x), x.dtype, place)
        else:
            out = method(x, **options)
        return lambda: method(x, out=out, **options)

    def _reason(self, request: Request, chosen: Algorithm, nbytes: int) -> str:
        if request.algorithm is not None:
            return "which the call names"
        table = self._calls.chooser_for(request).table
        for number, row in enumerate(table.rows, 1):
            fits = row.collective == request.collective and row.fits(self.size, nbytes, False)
            if fits and row.algorithm in self._names_of(chosen):
                only = ", among those that fold in rank order" if request.deterministic else ""
                return f"by row {number} of the selection table ({_row_words(row)}){only}"
        return "the last of those that fold in rank order"

    def _names_of(self, algo: Algorithm) -> tuple[str, ...]:
        from collectives.catalogue import CATALOGUE

        return tuple(name for (_, name), each in CATALOGUE.items() if each is algo)


def _quickest_first(candidate: Candidate) -> float:
    return math.inf if candidate.predicted is None else candidate.predicted


def _with(chosen: Algorithm, algorithms: Sequence[Algorithm]) -> list[Algorithm]:
    return [*algorithms] if chosen in algorithms else [chosen, *algorithms]


def _named(candidate: Candidate, chosen: Algorithm) -> str | Algorithm:
    """How a call names it: an algorithm of the user's has no name."""
    return chosen if candidate.chosen else candidate.algorithm


def _full_bytes(spec: Spec, request: Request, size: int) -> int:
    """Bytes of the full array, that the selection table goes by."""
    return request.count * request.itemsize * (1 if spec.chunking in ("open", "empty") else size)


def _words(spec: Spec, request: Request, size: int, nbytes: int) -> str:
    words = f"{spec.name} among {size} ranks"
    if spec.chunking == "empty":
        return words
    kind = request.dtype + (f" {request.op}" if request.op else "")
    return f"{words}, {nbytes:,} bytes of {kind}" + (
        f", root {request.root}" if spec.rooted else ""
    )


def _row_words(row: Row) -> str:
    words = [row.collective]
    if row.below < _NO_LIMIT:
        words.append(f"below {row.below:,} bytes")
    if row.most < _NO_LIMIT:
        words.append(f"{row.least} to {row.most} ranks")
    elif row.least > 1:
        words.append(f"{row.least} ranks or more")
    return ", ".join(words)


def _readable(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds >= 1e-3:
        return f"{seconds * 1e3:.2f} ms"
    return f"{seconds * 1e6:.2f} µs"
