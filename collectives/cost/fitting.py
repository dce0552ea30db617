"""Fits the model of this transport to measured calls.

A predicted time is what lies on the critical path, each a number of events or bytes, times the
parameters: linear, as long as the critical path stays the same. So: find the paths, fit the
parameters to them, and again, until the paths no longer change. Errors count relative to the time
measured, outliers little (a neighbour may have disturbed them), no parameter is negative, and
curves bend no more than they must.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

from collectives.catalogue import find
from collectives.cost.measuring import HELD_OUT_SIZES, Measurement, whole_bytes
from collectives.cost.parameters import (
    CALLS,
    EVENTS,
    KNOTS,
    NAMES,
    PLACE,
    STREAMS,
    Vector,
    with_company,
)
from collectives.cost.shared_memory import composition, critical_path
from collectives.cost.work import Room, Workload, workload

_ROUNDS = 12
_STIFFNESS = 0.03  # of curves, against the measurements' weight of 1 each
_STEPS = {"post": 1 / 3, "take": 1 / 3, "arrival": 2.0}  # that events are like, unless measured
_SHARES = tuple(np.arange(0, 0.85, 0.05))
_OUTLIER = 0.15  # relative errors beyond this count less


@dataclass(frozen=True)
class Judged:
    """A measurement and its prediction."""

    measured: Measurement
    predicted: float

    @property
    def error(self) -> float:
        """By how much the prediction is off: 0.1 is a tenth too long, -0.1 too short."""
        return self.predicted / self.measured.seconds - 1


def guess() -> Vector:
    """Parameters of no machine, to begin with: tenths of microseconds, ten gigabytes a second."""
    values = np.full(len(NAMES), 5e-11)
    for name in EVENTS:
        values[PLACE[name]] = 1e-7
    for name in CALLS:
        values[PLACE[name]] = 5e-7
    values[PLACE["alone"]] = 0.0
    return values


def fit(measurements: Sequence[Measurement], room: Room) -> Vector:
    """The parameters under which predictions are nearest to `measurements`.

    Raises:
        ValueError: there are none.
    """
    if not measurements:
        raise ValueError("expected measurements to fit the model to, found none")
    loads = [_load(each, room) for each in measurements]
    seconds = np.array([each.seconds for each in measurements])
    best, values = (np.inf, guess()), guess()
    for _ in range(_ROUNDS):
        found = [critical_path(load, values, room) for load in loads]
        alone, score = _alone(found, values, seconds)
        values[PLACE["alone"]] = alone
        if score < best[0]:
            best = (score, values)
        paths = np.array([with_company(path, company, alone) for path, company in found])
        fitted = _solve(paths / seconds[:, None], values)
        # Half of the way: the path may flip between two that are nearly as long.
        values = np.sqrt(np.maximum(values, 1e-18) * np.maximum(fitted, 1e-18))
    return _seen(best[1], loads)


def _alone(
    found: Sequence[tuple[Vector, float]], values: Vector, seconds: NDArray[np.float64]
) -> tuple[float, float]:
    """By what share bytes are quicker while others wait, as errors are least, and these."""
    scores = []
    for alone in _SHARES:
        paths = np.array([with_company(path, company, alone) for path, company in found])
        errors = np.abs(paths @ values / seconds - 1)
        scores.append((float(np.minimum(errors, 1).mean()), alone))
    score, alone = min(scores)
    return alone, score


def _load(measured: Measurement, room: Room) -> Workload:
    algo = find(measured.collective, measured.algorithm)
    return workload(algo, measured.ranks, measured.nbytes, room)


def _solve(shares: NDArray[np.float64], start: Vector) -> Vector:
    """Non-negative x with shares @ x near 1 in every row; outliers weigh less, curves are stiff."""
    scale = start.copy()
    matrix = shares * scale  # unknowns near 1
    stiff = _bends(scale)
    x = np.ones(len(scale))
    for _ in range(4):
        off = np.abs(matrix @ x - 1)
        weight = np.sqrt(np.minimum(1, _OUTLIER / np.maximum(off, 1e-9)))
        rows = np.vstack([matrix * weight[:, None], stiff])
        wanted = np.concatenate([weight, np.zeros(len(stiff))])
        # A little pull towards what was before decides what the measurements leave open.
        gram = rows.T @ rows + 1e-4 * np.eye(len(x))
        x = _not_negative(gram, rows.T @ wanted + 1e-4, x)
    return x * scale


def _bends(scale: Vector) -> NDArray[np.float64]:
    """Rows that are 0 where a curve goes straight on, in units of its own.

    And where events are in some proportion to a step: among two ranks each step has a post or a
    take, each call an arrival, and measurements can hardly tell them apart.
    """
    rows = []
    for name, steps in _STEPS.items():
        row = np.zeros(len(NAMES))
        row[PLACE[name]], row[PLACE["step"]] = scale[PLACE[name]], -scale[PLACE["step"]] * steps
        rows.append(row / (steps * scale[PLACE["step"]]))
    for stream in STREAMS:
        places = [PLACE[f"{stream}.{knot}"] for knot in KNOTS]
        unit = float(np.mean(scale[places]))
        for left, middle, right in zip(places, places[1:], places[2:], strict=False):
            row = np.zeros(len(NAMES))
            row[left], row[middle], row[right] = scale[left], -2 * scale[middle], scale[right]
            rows.append(row * _STIFFNESS / unit)
        # Ends that no measurement tells of go on flat.
        for end, next_to in ((places[0], places[1]), (places[-1], places[-2])):
            row = np.zeros(len(NAMES))
            row[end], row[next_to] = scale[end], -scale[next_to]
            rows.append(row * _STIFFNESS / unit)
    return np.array(rows)


def _not_negative(gram: NDArray[np.float64], right: Vector, start: Vector) -> Vector:
    """The x >= 0 nearest to gram x = right, coordinate by coordinate."""
    x = start.copy()
    for _ in range(300):
        moved = 0.0
        for place in range(len(x)):
            step = (right[place] - gram[place] @ x) / gram[place, place]
            new = max(0.0, x[place] + step)
            moved = max(moved, abs(new - x[place]))
            x[place] = new
        if moved < 1e-5:
            break
    return x


def _seen(values: Vector, loads: Iterable[Workload]) -> Vector:
    """The same, but nothing (0) for what no measurement tells of, the ends of curves excepted."""
    used = np.zeros(len(NAMES))
    for load in loads:
        used += load.call
        if len(load.works):
            used += load.works.sum(axis=0)
    used[[PLACE["arrival"], PLACE["switch"], PLACE["alone"]]] = 1
    for stream in STREAMS:
        places = [PLACE[f"{stream}.{knot}"] for knot in KNOTS]
        if used[places].any():
            used[places] = 1
    least = np.full(len(NAMES), 1e-14)
    least[[PLACE[name] for name in (*EVENTS, *CALLS)]] = 1e-10
    found: Vector = np.where((used > 0) & (values > least), values, 0.0)
    return found


def held_out(measurements: Iterable[Measurement]) -> list[Measurement]:
    """Those at sizes that no model is fitted to."""
    return [
        each
        for each in measurements
        if any(
            each.nbytes and each.nbytes == whole_bytes(each.collective, size, each.ranks)
            for size in HELD_OUT_SIZES
        )
    ]


def judge(measurements: Sequence[Measurement], values: Vector, room: Room) -> list[Judged]:
    """Predict every measurement."""
    return [
        Judged(
            each,
            float(
                composition(
                    find(each.collective, each.algorithm), each.ranks, each.nbytes, values, room
                )
                @ values
            ),
        )
        for each in measurements
    ]


def median_errors(judged: Iterable[Judged], least_bytes: int = 0) -> Mapping[str, float]:
    """The median size of the error of every algorithm, by "collective algorithm"."""
    errors: dict[str, list[float]] = defaultdict(list)
    for each in judged:
        if each.measured.nbytes >= least_bytes:
            name = f"{each.measured.collective} {each.measured.algorithm}"
            errors[name].append(abs(each.error))
    return {name: median(found) for name, found in errors.items()}
