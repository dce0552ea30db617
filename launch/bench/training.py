"""`collectives bench train`: the same training by several ways, in turns, and what each exposes.

Every way is a group of ranks of its own. Round by round each takes some steps of the same model on
the same samples while the others sleep. Of each step the ranks' times are put together, as
`trainers.step_times` does: what counts is the communication that nothing hides, the median over
all steps, and how many steps a second there are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from rich.console import Console
from rich.text import Text

import trainers
from launch.bench.contenders import Contender
from launch.bench.groups import CaseRefused, Group, GroupLost
from launch.bench.hardware import run_facts
from launch.bench.training_results import TrainingResult, training_table
from launch.binding import rank_cores, rank_threads
from trainers.bench.stepping import VARIANTS
from trainers.step_times import PARTS, parts_of
from trainers.step_times import Table as Rows

PROGRAM = Path(trainers.__file__).parent / "bench" / "rank_program.py"
OURS = Contender(name="ours", library="ours", program=str(PROGRAM), options={"variant": ""})

WARM_UP = 5
"""Steps of each before its first turn; buckets and memory are made in them."""

LEAST, MOST = 4, 1000
"""Steps of a turn."""

_ANY_KEY = 1


@dataclass
class _Runner:
    """One way on its way through one case."""

    group: Group
    facts: dict[str, Any] = field(default_factory=dict)
    first: Rows | None = None
    norms: Rows | None = None
    turns: list[Rows] = field(default_factory=list)
    problem: str = ""

    @property
    def who(self) -> str:
        return self.group.contender.name

    def steps(self, count: int) -> Rows:
        """Rows of all ranks, shape (size, steps, columns)."""
        answers = self.group.ask("steps", _ANY_KEY, count=count)
        return np.array([answer["rows"] for answer in answers])


def find_way(spec: str) -> Contender:
    """The way of training that `spec` names.

    Raises:
        ValueError: there is none.
    """
    if spec and spec in VARIANTS:
        return replace(OURS, name=spec, options={"variant": spec})
    if spec.startswith("ddp-") and (backend := spec.removeprefix("ddp-")):
        settings = {"GLOO_SOCKET_IFNAME": "lo"} if backend == "gloo" else {}
        return Contender(
            name=spec,
            library="ddp",
            program=str(PROGRAM),
            options={"backend": backend},
            environment=settings,
            settings=settings,
        )
    known = ", ".join(("ddp-gloo", "ddp-BACKEND", *filter(None, VARIANTS)))
    raise ValueError(f"unknown contender {spec!r} for training; expected one of {known}")


def default_cases(ranks: int) -> dict[str, dict[str, Any]]:
    """A language model of ten million parameters at 64 tokens a rank, and the example network."""
    return {
        "language model, 10 M": {
            "task": "language_model",
            "model": {
                "layers": 8, "width": 320, "heads": 10, "key_value_heads": 2, "context": 64
            },
            "data": {"vocabulary": 4096},
            "train": {"batch": ranks},
        },
        "example network": {
            "task": "super_resolution",
            "data": {"crop": 20, "edge": 2},
            "train": {"batch": 4 * ranks},
        },
    }  # fmt: skip


class TrainingSession:
    """One run of the benchmark.

    Args:
        cases: plain data of configurations, by what they are called.
        ways: besides ours.
        ranks: of each.
        rounds: turns of each in a case.
        round_seconds: how long a turn lasts, at least about.
        threads: of each rank; None shares the cores out.
        bind: whether every rank has its own cores.
        console: where it is shown.
    """

    def __init__(
        self,
        cases: Mapping[str, dict[str, Any]],
        ways: Sequence[Contender],
        *,
        ranks: int,
        rounds: int,
        round_seconds: float,
        threads: int | None,
        bind: bool,
        console: Console,
    ) -> None:
        self._cases = cases
        self._ways = [OURS, *ways]
        self._ranks = ranks
        self._rounds = rounds
        self._round_seconds = round_seconds
        self._threads = threads or rank_threads(ranks, {}) or 1
        self._cores = rank_cores(ranks, bind)
        self._console = console
        self.results: list[TrainingResult] = []

    def run(self, record: TextIO | None) -> None:
        """Runs everything, showing a table for each case and writing lines to `record`."""
        with ExitStack() as stack:
            groups = self._start(stack)
            self._introduce(groups)
            _write(record, self._header(groups))
            for case, config in self._cases.items():
                results = self._race(case, config, groups)
                self.results += results
                self._console.print(training_table(results))
                for result in results:
                    _write(record, asdict(result))

    def failures(self) -> list[str]:
        """Which ways did not train, or to other losses than ours."""
        ours = {each.case: each for each in self.results if each.who == OURS.name}
        return [
            each.who
            for each in self.results
            if each.problem
            or (not ours[each.case].problem and not each.agrees_with(ours[each.case]))
        ]

    def _start(self, stack: ExitStack) -> list[Group]:
        groups = []
        for way in self._ways:
            group = Group(
                way, self._ranks, cores=self._cores, threads=self._threads, cache_bytes=0
            )  # fmt: skip
            try:
                stack.enter_context(group).meet()
                groups.append(group)
            except GroupLost as loss:
                if way is OURS:
                    raise
                self.results.append(TrainingResult(case="", who=way.name, problem=str(loss)))
                self._console.print(Text(f"did not take part: {way.name}: {loss}", style="yellow"))
        return groups

    def _race(
        self, case: str, config: dict[str, Any], groups: Sequence[Group]
    ) -> list[TrainingResult]:
        runners = [_Runner(group) for group in groups]
        for runner in runners:
            self._or_note(runner, lambda runner: self._prepare(runner, config))
        ready = [runner for runner in runners if not runner.problem]
        for number in range(self._rounds):
            if self._console.is_terminal:
                self._console.print(f"{case}: round {number + 1} of {self._rounds}", end="\r")
            for runner in ready:
                if not runner.problem:
                    self._or_note(runner, self._take_turn)
        for runner in runners:
            if not runner.problem:
                self._or_note(runner, lambda runner: runner.group.ask("release", _ANY_KEY))
        return [_result(case, runner) for runner in runners]

    def _or_note(self, runner: _Runner, do: Any) -> None:
        try:
            do(runner)
        except (CaseRefused, GroupLost) as error:
            runner.problem = str(error)

    def _prepare(self, runner: _Runner, config: dict[str, Any]) -> None:
        answers = runner.group.ask("prepare", _ANY_KEY, config=config)
        runner.facts = answers[0]["facts"]
        answers = runner.group.ask("first", _ANY_KEY, count=WARM_UP)
        runner.first = np.array([answer["rows"] for answer in answers])
        runner.norms = np.array([answer["norms"] for answer in answers])

    def _take_turn(self, runner: _Runner) -> None:
        rows = runner.turns[-1] if runner.turns else runner.first
        assert rows is not None, "it is prepared"
        count = math.ceil(self._round_seconds / _step_seconds(rows[:, -LEAST:]))
        runner.turns.append(runner.steps(min(MOST, max(LEAST, count))))

    def _introduce(self, groups: Sequence[Group]) -> None:
        cores = [",".join(map(str, each)) for each in self._cores]
        bound = f"on cores {' | '.join(cores)}" if any(self._cores) else "not bound"
        self._console.print(
            Text(
                f"{self._ranks} ranks {bound}, {self._threads} thread"
                f"{'s' * (self._threads > 1)} each; milliseconds of a step, medians of all steps; "
                f"steps/s of the best of {self._rounds} round{'s' * (self._rounds > 1)}"
            ),
            soft_wrap=True,
        )
        for group in groups:
            about = "; ".join(
                text if name == "library" else f"{name} {text}"
                for name, text in group.description.items()
            )
            line = Text(f"{group.contender.name:<10} {about}", style="dim")
            self._console.print(line, soft_wrap=True)

    def _header(self, groups: Sequence[Group]) -> dict[str, Any]:
        return {
            "kind": "training",
            **run_facts(),
            "ranks": self._ranks,
            "rounds": self._rounds,
            "round_seconds": self._round_seconds,
            "threads": self._threads,
            "cores": self._cores,
            "cases": dict(self._cases),
            "contenders": {group.contender.name: group.description for group in groups},
        }


def _result(case: str, runner: _Runner) -> TrainingResult:
    if runner.problem or runner.first is None or runner.norms is None or not runner.turns:
        return TrainingResult(case=case, who=runner.who, problem=runner.problem or "no round")
    parts = np.concatenate([parts_of(rows) for rows in runner.turns], axis=1).mean(0)
    median = np.median(parts, axis=0)
    exposed = parts[:, PARTS.index("exposed")]
    low, high = np.percentile(exposed, [10, 90]).tolist()
    return TrainingResult(
        case=case,
        who=runner.who,
        rounds=tuple(map(_step_seconds, runner.turns)),
        parts=dict(zip(PARTS, median.tolist(), strict=True)),
        step=float(np.median(parts.sum(1))),
        spread=(low, high),
        steps=len(parts),
        losses=tuple(runner.first[:, :, 0].sum(0).tolist()),
        norms=tuple(map(tuple, runner.norms.tolist())),
        facts=runner.facts,
    )


def _step_seconds(rows: Rows) -> float:
    """Seconds of a step, from the first rank's begin to the last one's end of all."""
    began, ended = rows[:, :, 1], rows[:, :, 5]
    seconds: float = (ended.max() - began.min()).item() / rows.shape[1]
    return seconds


def _write(record: TextIO | None, line: Mapping[str, Any]) -> None:
    if record is not None:
        record.write(json.dumps(line) + "\n")
        record.flush()
