"""What a race has found: a result for each case and whoever ran it, as JSON lines to keep and read.

A file begins with a line of kind "run", which says on what machine, with which versions, settings
and binding; a line of kind "result" follows for each measurement, with the time of every round.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

from collectives.bench.cases import ITEM_BYTES, Case
from collectives.bench.rates import algbw, busbw
from collectives.bench.timing import Timing

Role = Literal["ours", "against", "limit"]
"""ours: has a row of its own; against: what the rows are compared with; limit: of the machine."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One case as one contender ran it.

    Attributes:
        case: what was measured.
        size: number of ranks.
        role: what it is in the comparison.
        who: ours, limit, or the contender's name.
        variant: the algorithm, or the limit's method.
        rounds: seconds a call took, by round; empty where there is a problem.
        calls: calls in a round.
        wrong: elements of the result that were wrong, on all ranks together.
        problem: why there are no times.
        predicted: seconds that the fitted cost model expects, if there is one.
        chosen: the algorithm that ran, where the variant leaves that open.
        part: of overlap, which of its three measurements; else empty.
    """

    case: Case
    size: int
    role: Role
    who: str
    variant: str
    rounds: tuple[float, ...] = ()
    calls: int = 0
    wrong: int = 0
    problem: str = ""
    predicted: float | None = None
    chosen: str = ""
    part: str = ""

    def with_rounds_of(self, later: Result) -> Result:
        """The same result of a later visit to the case added to this one."""
        problem = self.problem or later.problem
        return replace(
            self,
            rounds=() if problem else (*self.rounds, *later.rounds),
            wrong=max(self.wrong, later.wrong),
            problem=problem,
        )

    @property
    def title(self) -> str:
        """Who it is, in few words."""
        return self.who if self.variant in ("", "auto") else f"{self.who} {self.variant}"

    @property
    def timing(self) -> Timing:
        """The rounds."""
        return Timing(rounds=self.rounds, calls=self.calls)

    @property
    def best(self) -> float:
        """Seconds a call took in the best round."""
        return self.timing.best

    @property
    def count(self) -> int:
        """Elements of the longest array of a rank."""
        return self.case.nbytes // ITEM_BYTES[self.case.dtype]

    @property
    def algbw(self) -> float:
        """Bytes a second in the best round."""
        return algbw(self.case.nbytes, self.best)

    @property
    def busbw(self) -> float:
        """The same, comparable with the links' bandwidth."""
        return busbw(self.case.collective, self.size, self.case.nbytes, self.best)

    def as_json(self) -> dict[str, Any]:
        """A line of the file: what was measured, and for reading what follows from it."""
        line = {"kind": "result", **asdict(self)}
        if self.rounds:
            timing = self.timing
            line |= {
                "best": timing.best,
                "median": timing.median,
                "spread": timing.spread,
            }
        if self.rounds and not self.part:
            line |= {"algbw": self.algbw, "busbw": self.busbw}
        return line

    @classmethod
    def from_json(cls, line: dict[str, Any]) -> Self:
        """The reverse of `as_json`.

        Raises:
            ValueError: the line is none of a result.
        """
        derived = ("kind", "best", "median", "spread", "algbw", "busbw")
        known = {name: value for name, value in line.items() if name not in derived}
        try:
            case = Case(**known.pop("case"))
            return cls(case=case, rounds=tuple(known.pop("rounds")), **known)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"expected a result of `collectives bench`, found {error}") from None


@dataclass(frozen=True)
class Comparison:
    """All results of one case."""

    results: Sequence[Result]

    @property
    def case(self) -> Case:
        """The case."""
        return self.results[0].case

    def of_role(self, role: Role) -> list[Result]:
        """The results that have this role, in order."""
        return [result for result in self.results if result.role == role]

    @property
    def limit(self) -> Result | None:
        """The quickest way the machine has."""
        tried = [result for result in self.of_role("limit") if result.rounds]
        return min(tried, key=lambda result: result.best, default=None)


def compared(results: Iterable[Result]) -> list[Comparison]:
    """Results by case, in the order in which the cases came."""
    cases: dict[tuple[Case, int], list[Result]] = {}
    for result in results:
        cases.setdefault((result.case, result.size), []).append(result)
    return [Comparison(each) for each in cases.values()]


def overlaps(comparison: Comparison) -> list[tuple[Result, Result, Result]]:
    """The three measurements of each contender: alone, compute, both."""
    found: dict[tuple[str, str], dict[str, Result]] = {}
    for result in comparison.results:
        found.setdefault((result.who, result.variant), {})[result.part] = result
    return [(parts["alone"], parts["compute"], parts["both"]) for parts in found.values()]


def read_results(path: Path) -> tuple[dict[str, Any], list[Result]]:
    """The header of a file, and its results.

    Raises:
        ValueError: it cannot be read, or is no file of `collectives bench --json`.
    """
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path} is no file of JSON lines: {error}") from None
    if not lines or not isinstance(lines[0], dict) or lines[0].get("kind") != "run":
        raise ValueError(f"{path} does not begin as a file of `collectives bench --json` does")
    return lines[0], [Result.from_json(line) for line in lines[1:] if line.get("kind") == "result"]
