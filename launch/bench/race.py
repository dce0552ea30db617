"""The race itself: every case, contender by contender, round by round, each round in another order.

Machines that others share grow slower and quicker within seconds. So nobody is measured alone: in
each round all take their turn, and the best round of each is compared with the best round of the
others. And a case has its rounds spread over the whole run: each sweep visits every case for one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from collectives.bench.cases import Case
from collectives.bench.overlap import OVERLAP
from launch.bench.groups import CaseRefused, GroupLost
from launch.bench.results import Result
from launch.bench.turns import Entry, OverlapRunner, Runner

Notice = Callable[[str], None]


class Race:
    """Runs cases; groups that are lost on the way take no part in later ones."""

    def __init__(
        self,
        entries: Sequence[Entry],
        *,
        least_seconds: float,
        plant: int = 0,
        notice: Notice = lambda text: None,
    ) -> None:
        """Prepares nothing yet.

        Args:
            entries: who takes part; their groups have met.
            least_seconds: how long a turn lasts, at least about.
            plant: elements of our own results to spoil before they are checked.
            notice: told what is happening.
        """
        self._entries = entries
        self._least_seconds = least_seconds
        self._plant = plant
        self._notice = notice
        self.lost: dict[str, str] = {}

    def run(self, case: Case, rounds: Sequence[int]) -> list[Result]:
        """What each entry made of the case in these rounds, in the order of the entries.

        Args:
            case: what is measured.
            rounds: their numbers; who is the first to take a turn depends on it.
        """
        runners: list[Runner]
        if case.collective == OVERLAP:
            runners = [OverlapRunner(each) for each in self._entries if each.role != "limit"]
        else:
            runners = [Runner(each) for each in self._entries]
        for runner in runners:
            plant = self._plant if runner.entry.role == "ours" else 0
            self._notice(f"{runner.entry.who} {runner.entry.variant}")
            self._attempt(runner, partial(runner.prepare, case, self._least_seconds, plant))
        for number in rounds:
            self._notice(f"round {number + 1}")
            turn = number % len(runners)
            for runner in (*runners[turn:], *runners[:turn]):
                self._attempt(runner, runner.run_round)
        for runner in runners:
            self._attempt(runner, runner.conclude)
            self._release(runner)
        return [result for runner in runners for result in runner.results(case)]

    def _attempt(self, runner: Runner, action: Callable[[], None]) -> None:
        """Does it, unless this runner or its group has had trouble; notes new trouble."""
        who = runner.entry.who
        if who in self.lost:
            runner.problem = runner.problem or "lost"
        if runner.problem:
            return
        try:
            action()
        except CaseRefused as reason:
            runner.problem = str(reason)
        except GroupLost as reason:
            runner.problem = "lost"
            self.lost[who] = str(reason)

    def _release(self, runner: Runner) -> None:
        """Frees the arrays, also of a case that was refused."""
        trouble, runner.problem = runner.problem, ""
        self._attempt(runner, runner.release)
        runner.problem = trouble or runner.problem
