"""One contender's turns in one case: made ready, checked, timed round by round, let go."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from collectives.bench.cases import Case
from collectives.bench.overlap import PARTS
from collectives.bench.streams import messages_of
from collectives.bench.timing import fitting_calls
from launch.bench.groups import Group
from launch.bench.results import Result, Role

_KEYS = itertools.count(1)
_FIRST_UNITS = 8


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Who takes part: a variant of what a group can do."""

    group: Group
    variant: str
    role: Role

    @property
    def who(self) -> str:
        """The group's name."""
        return self.group.contender.name


@dataclass
class Runner:
    """One entry on its way through one case."""

    entry: Entry
    key: int = field(default_factory=lambda: next(_KEYS))
    most_calls: int | None = None
    calls: int = 0
    wrong: int = 0
    rounds: list[float] = field(default_factory=list)
    problem: str = ""
    expected: dict[str, Any] = field(default_factory=dict)

    def prepare(self, case: Case, least_seconds: float, plant: int) -> None:
        """Makes the case ready, checks it, and finds out how many calls make a round."""
        group, key = self.entry.group, self.key
        answers = group.ask("prepare", key, case=case.as_json(), variant=self.entry.variant)
        self.expected = answers[0]["expected"]
        bounds = [answer["most_calls"] for answer in answers if answer["most_calls"] is not None]
        self.wrong = sum(answer["wrong"] for answer in group.ask("check", key, plant=plant))
        self.calls = fitting_calls(self.time, least_seconds, *([min(bounds)] if bounds else []))

    def time(self, calls: int) -> float:
        """The slowest rank's seconds for so many calls."""
        answers = self.entry.group.ask("time", self.key, calls=calls)
        return max(float(answer["seconds"]) for answer in answers)

    def conclude(self) -> None:
        """Checks once more: what ran in the last rounds may not be what ran first."""
        answers = self.entry.group.ask("check", self.key, plant=0)
        self.wrong += sum(answer["wrong"] for answer in answers)
        # No prediction is of that.
        if ran := answers[0].get("ran"):
            self.expected = {**self.expected, "chosen": ran, "predicted": None}

    def results(self, case: Case) -> list[Result]:
        """What came of it: seconds a message, where a call is several."""
        messages = messages_of(case.collective)
        return [self._result(case, [seconds / messages for seconds in self.rounds])]

    def _result(self, case: Case, rounds: Sequence[float], part: str = "") -> Result:
        return Result(
            case=case,
            size=self.entry.group.ranks,
            role=self.entry.role,
            who=self.entry.who,
            variant=self.entry.variant,
            rounds=() if self.problem else tuple(rounds),
            calls=self.calls,
            wrong=self.wrong,
            problem=self.problem,
            part=part,
            **self.expected,
        )

    def release(self) -> None:
        """Frees the arrays."""
        self.entry.group.ask("release", self.key)

    def run_round(self) -> None:
        """Takes one turn."""
        self.rounds.append(self.time(self.calls) / self.calls)


@dataclass
class OverlapRunner(Runner):
    """The same for overlap, where a turn is three measurements one after the other."""

    units: int = _FIRST_UNITS
    parts: dict[str, list[float]] = field(default_factory=lambda: {part: [] for part in PARTS})

    def prepare(self, case: Case, least_seconds: float, plant: int) -> None:
        """Chooses as many calls as make a round, and computing as long as the allreduce."""
        group, key = self.entry.group, self.key
        answers = group.ask("prepare", key, case=case.as_json(), variant=self.entry.variant)
        self.expected = answers[0]["expected"]
        self.wrong = sum(answer["wrong"] for answer in group.ask("check", key, plant=plant))
        self.calls = fitting_calls(lambda calls: self._part("alone", calls), least_seconds)
        alone = self._part("alone", self.calls) / self.calls
        unit = self._part("compute", self.calls) / self.calls / self.units
        self.units = max(1, round(alone / unit))

    def run_round(self) -> None:
        """Takes one turn."""
        for part, rounds in self.parts.items():
            rounds.append(self._part(part, self.calls) / self.calls)

    def results(self, case: Case) -> list[Result]:
        """A result for each of the three."""
        return [self._result(case, rounds, part) for part, rounds in self.parts.items()]

    def _part(self, part: str, calls: int) -> float:
        answers = self.entry.group.ask("part", self.key, calls=calls, part=part, units=self.units)
        return max(float(answer["seconds"]) for answer in answers)
