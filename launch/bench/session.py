"""A run from beginning to end: contenders started, cases raced, results shown and kept."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

from collectives.bench.cases import Case
from collectives.bench.libraries import limit, limit_on_devices
from collectives.bench.overlap import OVERLAP
from launch.bench.agenda import Agenda
from launch.bench.contenders import (
    Contender,
    ContenderMissing,
    distinct,
    find_contender,
    is_foreign,
    ours_on,
)
from launch.bench.devices import CPU, CUDA
from launch.bench.groups import Group, GroupLost
from launch.bench.introduction import Conditions, header, introduce
from launch.bench.places import Places
from launch.bench.race import Race
from launch.bench.results import Comparison, Result
from launch.bench.table import Table
from launch.bench.turns import Entry
from launch.binding import rank_cores, rank_threads
from transports.allowances import available_memory
from transports.caches import last_level_cache_bytes

LIMIT = "limit"
_ROOM = 1.25  # libraries take memory besides the arrays


class BenchError(Exception):
    """The run cannot begin; the text says why."""


@dataclass(frozen=True, kw_only=True)
class Manner:
    """How a run is made.

    Attributes:
        rounds: turns of each contender in a case.
        round_seconds: how long a turn lasts, at least about.
        threads: of each rank; None shares the cores out.
        bind: whether every rank has its own cores.
        limit: whether the machine's limit is measured too.
        plant: elements of our results to spoil before they are checked.
        devices: the names of those that arrays lie on; none: arrays lie in host memory.
        places: where ranks run, if an mpiexec starts them.
    """

    rounds: int
    round_seconds: float
    threads: int | None
    bind: bool
    limit: bool
    plant: int
    devices: Sequence[str] = ()
    places: Places | None = None


class Session:
    """One run of the benchmark."""

    def __init__(
        self, agenda: Agenda, against: Sequence[str], manner: Manner, console: Console
    ) -> None:
        """Finds the contenders; those that cannot take part are noted in `absent`.

        Raises:
            BenchError: the arrays would not fit into memory.
            NotPythonError: a contender's environment has no Python where one is named.
        """
        self._agenda = agenda
        self._manner = manner
        self._console = console
        self._cache_bytes = last_level_cache_bytes()
        device = CUDA if manner.devices else CPU
        self._ours = self._placed(ours_on(device))
        self._limits = limit_on_devices.METHODS if manner.devices else limit.METHODS
        self._own_rivals = [spec for spec in against if not is_foreign(spec)]
        self.absent: list[str] = []
        rivals = []
        for spec in against:
            if is_foreign(spec):
                try:
                    rivals.append(self._placed(find_contender(spec, agenda.ranks, device)))
                except ContenderMissing as reason:
                    self.absent.append(str(reason))
        self._rivals = distinct(rivals)
        self._check_memory()
        elsewhere = manner.places is not None and bool(manner.places.start.hosts)
        self._cores = rank_cores(agenda.ranks, manner.bind and not elsewhere)
        self._threads = manner.threads or rank_threads(agenda.ranks, {}) or 1
        self.results: list[Result] = []
        self.lost: dict[str, str] = {}

    def _placed(self, contender: Contender) -> Contender:
        places = self._manner.places
        return contender if places is None else places.on(contender)

    def run(self, record: TextIO | None) -> None:
        """Runs everything, showing rows as they come and writing lines to `record`.

        Raises:
            BenchError: our own ranks did not start.
        """
        with ExitStack() as stack, _stopped_by_sigterm():
            groups = self._start(stack)
            entries = self._entries(groups)
            conditions = Conditions(
                ranks=self._agenda.ranks,
                rounds=self._manner.rounds,
                round_seconds=self._manner.round_seconds,
                threads=self._threads,
                cores=self._cores,
                cache_bytes=self._cache_bytes,
                devices=self._manner.devices,
            )
            introduce(self._console, groups, conditions)
            _write(record, header(groups, conditions, self.absent))
            titles = [
                Result(case=Case(collective="", nbytes=0), size=1, role=entry.role, who=entry.who,
                       variant=entry.variant).title
                for entry in entries if entry.role == "against"
            ]  # fmt: skip
            table = Table(self._console, titles)
            race = Race(
                entries,
                least_seconds=self._manner.round_seconds,
                plant=self._manner.plant,
                notice=table.show_status,
            )
            race.lost = self.lost
            try:
                for heading, cases in self._agenda.sections():
                    overlap = cases[0].collective == OVERLAP
                    table.begin(heading, overlap=overlap)
                    for comparison in self._visits(race, cases, at_once=overlap):
                        self.results += comparison.results
                        table.add(comparison)
                        for result in comparison.results:
                            _write(record, result.as_json())
            finally:
                table.clear_status()
            for line in self.absent:  # by now the first time has left the screen
                self._console.print(Text(f"did not take part: {line}", style="yellow"))

    def _visits(self, race: Race, cases: Sequence[Case], *, at_once: bool) -> Iterator[Comparison]:
        """Each case with all its rounds: one a sweep over all cases, or all at once."""
        rounds = range(self._manner.rounds)
        sweeps = [rounds] if at_once else [range(number, number + 1) for number in rounds]
        found: dict[Case, list[Result]] = {}
        for sweep in sweeps:
            for case in cases:
                known = set(self.lost)
                results = race.run(case, sweep)
                before = found.get(case)
                if before is not None:
                    results = [b.with_rounds_of(r) for b, r in zip(before, results, strict=True)]
                found[case] = results
                self._tell_lost(known)
                if sweep is sweeps[-1]:
                    yield Comparison(results)

    def _start(self, stack: ExitStack) -> list[Group]:
        """Starts all groups, then waits for each; those that do not come are lost."""
        contenders = [self._ours, *self._rivals]
        if self._manner.limit and self._manner.places is None:  # which is that of one host
            shared = os.memfd_create("collectives-limit")
            stack.callback(os.close, shared)
            os.ftruncate(shared, limit.SHARED_BYTES)
            contenders.append(limit_contender(shared, bool(self._manner.devices)))
        groups = [
            Group(
                contender,
                self._agenda.ranks,
                cores=self._cores,
                threads=self._threads,
                cache_bytes=self._cache_bytes,
                places=self._manner.places,
            )
            for contender in contenders
        ]
        for group in groups:
            stack.enter_context(group)
        met = []
        for group in groups:
            try:
                group.meet()
                met.append(group)
            except GroupLost as reason:
                if group.contender is self._ours:
                    raise BenchError(f"our own ranks did not start: {reason}") from None
                self.absent.append(f"{group.contender.name}: {reason}")
                group.close()
        for line in self.absent:
            self._console.print(Text(f"does not take part: {line}", style="yellow"))
        return met

    def _entries(self, groups: Sequence[Group]) -> list[Entry]:
        entries = []
        for group in groups:
            if group.contender is self._ours:
                entries += [
                    Entry(group=group, variant=v, role="ours") for v in self._agenda.algorithms
                ]
                entries += [Entry(group=group, variant=v, role="against") for v in self._own_rivals]
            elif group.contender.name == LIMIT:
                entries += [Entry(group=group, variant=v, role="limit") for v in self._limits]
            elif group.contender.library == self._ours.library:
                # Of another environment: as ours, one by one.
                entries += [
                    Entry(group=group, variant=v, role="against") for v in self._agenda.algorithms
                ]
            else:
                entries.append(Entry(group=group, variant="", role="against"))
        return entries

    def _tell_lost(self, known: set[str]) -> None:
        for who in self.lost.keys() - known:
            self._console.print(Text(f"  lost {who}: {self.lost[who]}", style="red"))

    def _check_memory(self) -> None:
        entries = len(self._rivals) + len(self._own_rivals) + len(self._agenda.algorithms)
        if self._manner.limit and not self._manner.devices:  # whose limit takes none of the host's
            entries += len(self._limits)
        needed = self._agenda.most_memory(entries, self._cache_bytes) * _ROOM
        available, _ = available_memory(swap=False)
        if needed > available:
            raise BenchError(
                f"the arrays of {self._agenda.ranks} ranks and {entries} contenders would take "
                f"{needed / 2**30:.1f} GiB, found {available / 2**30:.1f} GiB of memory available; "
                "expected a smaller --max, or fewer contenders"
            )


def limit_contender(shared: int, on_devices: bool) -> Contender:
    """The machine's limit, as a contender whose ranks share a memory file."""
    library = "limit_on_devices" if on_devices else "limit"
    return Contender(name=LIMIT, library=library, options={"shared": shared}, inherited=(shared,))


def _write(record: TextIO | None, line: dict[str, Any]) -> None:
    if record is not None:
        record.write(json.dumps(line) + "\n")
        record.flush()


def open_record(path: Path) -> TextIO:
    """Opens a file for JSON lines.

    Raises:
        BenchError: it cannot be written.
    """
    try:
        return path.open("w")
    except OSError as error:
        raise BenchError(f"cannot write {path}: {error.strerror}") from None


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """Lets SIGTERM and SIGHUP end the run as Ctrl-C does: with everything tidied up."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    numbers = (signal.SIGTERM, signal.SIGHUP)
    previous = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        if previous[number] != signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
