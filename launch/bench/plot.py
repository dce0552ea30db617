"""The picture of a run: time and busbw over the size, with the limit and the prediction drawn in.

The limit bounds a region that nobody can enter, so it is drawn as one. Our own lines are strong and
share a hue, contenders are thin, each in a colour of its own; every line has its name at its end
rather than in a box, so that the eye need not travel.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from collectives.bench.overlap import OVERLAP
from collectives.bench.rates import busbw
from launch.bench.markdown import readable_size
from launch.bench.results import Comparison, Result, compared

OURS = ("#c2255c", "#f06595", "#862e9c", "#cc5de8")
THEIRS = ("#1971c2", "#2f9e44", "#e8590c", "#0c8599", "#6741d9", "#846358", "#5c940d")
INK, FAINT, FORBIDDEN = "#212529", "#dee2e6", "#f1f3f5"
_INCHES = (13.0, 5.2)
_LINE_HEIGHT = 0.052  # of the panel, between two names at its edge

Points = list[tuple[float, float]]
Series = dict[str, tuple[Result, Points]]


def draw_results(results: Sequence[Result], path: Path) -> None:
    """Draws all cases but overlap's: a row of two panels for each collective, place and cache."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sections: dict[str, list[Comparison]] = {}
    for comparison in compared(results):
        case = comparison.case
        if case.collective != OVERLAP and case.nbytes:
            where = {"in": "in place", "out": "out of place"}[case.place]
            op = f" {case.op}" if case.op else ""
            ranks = comparison.results[0].size
            title = f"{case.collective}, {ranks} ranks, {case.dtype}{op}, {where}"
            sections.setdefault(title + ", cold" * case.cold, []).append(comparison)
    style: Any = {"font.size": 9, "svg.fonttype": "none", "axes.labelcolor": INK, "text.color": INK}
    with matplotlib.rc_context(style):
        rows = max(1, len(sections))
        width, height = _INCHES
        figure, panels = pyplot.subplots(
            rows, 2, figsize=(width, height * rows), squeeze=False, layout="constrained"
        )
        for (title, comparisons), (left, right) in zip(sections.items(), panels, strict=False):
            _panel(left, comparisons, lambda result: result.best * 1e6, _predicted_time, True)
            _panel(right, comparisons, lambda result: result.busbw / 1e9, _predicted_rate, False)
            left.set_title(title, loc="left", fontweight="bold", color=INK)
            left.set_ylabel("microseconds a call")
            right.set_ylabel("busbw, GB/s")
        if any(_predictions(each, _predicted_time) for each in sections.values()):
            # Below all panels: within one there is no place that no line ever crosses.
            figure.supxlabel(
                "dashed: predicted by the cost model", x=0.01, ha="left", fontsize=9,
                color="#495057",
            )  # fmt: skip
        figure.savefig(path, dpi=160)
        pyplot.close(figure)


def _panel(
    axes: Any,
    comparisons: Sequence[Comparison],
    value: Callable[[Result], float],
    predicted: Callable[[Result], float | None],
    limit_below: bool,
) -> None:
    series = _series(comparisons, value)
    colours = _colours(series)
    limit: Points = []
    for comparison in comparisons:
        if comparison.limit is not None:
            limit.append((comparison.case.nbytes, value(comparison.limit)))
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    names: list[tuple[float, str, str, bool]] = []
    for title, (result, points) in series.items():
        ours = result.role == "ours"
        xs, ys = zip(*points, strict=True)
        axes.plot(
            xs, ys, color=colours[title], linewidth=2.4 if ours else 1.2, zorder=4 if ours else 3,
            marker="o", markersize=3.6 if ours else 2.2, solid_capstyle="round",
        )  # fmt: skip
        names.append((ys[-1], title, colours[title], ours))
    predictions = _predictions(comparisons, predicted)
    for title, points in predictions.items():
        xs, ys = zip(*points, strict=True)
        axes.plot(xs, ys, color=colours[title], linewidth=1.2, linestyle=(0, (2, 2)), zorder=5)
    if limit:
        xs, ys = zip(*limit, strict=True)
        low, high = axes.get_ylim()
        low, high = min(low, min(ys) / 1.6), max(high, max(ys) * 1.6)
        axes.set_ylim(low, high)
        edge = low if limit_below else high
        axes.fill_between(xs, ys, edge, color=FORBIDDEN, zorder=1, linewidth=0)
        axes.plot(xs, ys, color="#868e96", linewidth=1.2, zorder=2)
        names.append((ys[-1], "limit of this machine", "#495057", False))
    _dress(axes, [comparison.case.nbytes for comparison in comparisons])
    _name_lines(axes, names)


def _series(comparisons: Sequence[Comparison], value: Callable[[Result], float]) -> Series:
    found: Series = {}
    for comparison in comparisons:
        for result in (*comparison.of_role("against"), *comparison.of_role("ours")):
            if result.rounds:
                point = (float(comparison.case.nbytes), value(result))
                found.setdefault(result.title, (result, []))[1].append(point)
    return found


def _predictions(
    comparisons: Sequence[Comparison], predicted: Callable[[Result], float | None]
) -> dict[str, Points]:
    found: dict[str, Points] = {}
    for comparison in comparisons:
        for result in comparison.of_role("ours"):
            expected = predicted(result)
            if expected is not None:
                found.setdefault(result.title, []).append((comparison.case.nbytes, expected))
    return found


def _predicted_time(result: Result) -> float | None:
    return None if result.predicted is None else result.predicted * 1e6


def _predicted_rate(result: Result) -> float | None:
    if result.predicted is None:
        return None
    case = result.case
    return busbw(case.collective, result.size, case.nbytes, result.predicted) / 1e9


def _colours(series: Series) -> dict[str, str]:
    ours, theirs = itertools.cycle(OURS), itertools.cycle(THEIRS)
    return {
        title: next(ours if result.role == "ours" else theirs)
        for title, (result, _) in series.items()
    }


def _dress(axes: Any, sizes: Sequence[int]) -> None:
    """Axes that say sizes in words, and a grid that stays behind."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    shown = sorted(set(sizes))
    every = -(-len(shown) // 8)
    axes.xaxis.set_major_locator(FixedLocator(shown[::every]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: readable_size(int(size))))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda number, _: _plain(number)))
    axes.grid(True, which="major", color=FAINT, linewidth=0.6, zorder=0)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, colors="#495057")
    axes.set_xlabel("size")
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color("#adb5bd")
    axes.margins(x=0.01)


def _name_lines(axes: Any, names: Sequence[tuple[float, str, str, bool]]) -> None:
    """Writes every line's name beside its end, moved apart where they would overlap."""
    ordered = sorted(names)
    to_axes = axes.transData + axes.transAxes.inverted()
    wanted = [to_axes.transform((1, value))[1] for value, *_ in ordered]
    places = spread_apart(wanted, _LINE_HEIGHT)
    for place, (_, title, colour, ours) in zip(places, ordered, strict=True):
        axes.annotate(
            title, (1.015, place), xycoords="axes fraction", color=colour, va="center",
            fontweight="bold" if ours else "normal", annotation_clip=False,
        )  # fmt: skip


def _plain(number: float) -> str:
    """A tick's number without an exponent."""
    return f"{number:,.0f}" if number >= 1 else f"{number:.9f}".rstrip("0")


def spread_apart(wanted: Sequence[float], gap: float) -> list[float]:
    """Ascending places in 0..1, moved as little as may be, until neighbours are `gap` apart."""
    clusters: list[list[float]] = []
    for place in wanted:
        clusters.append([place])
        while len(clusters) > 1 and _begin(clusters[-1], gap) < _end(clusters[-2], gap) + gap:
            last = clusters.pop()
            clusters[-1] += last
    return [_begin(cluster, gap) + i * gap for cluster in clusters for i in range(len(cluster))]


def _begin(cluster: Sequence[float], gap: float) -> float:
    height = (len(cluster) - 1) * gap
    return max(0.0, min(1.0 - height, sum(cluster) / len(cluster) - height / 2))


def _end(cluster: Sequence[float], gap: float) -> float:
    return _begin(cluster, gap) + (len(cluster) - 1) * gap
