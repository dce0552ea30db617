"""From measurements to a selection table: at each size the quickest, without needless changes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from collectives.catalogue import find
from collectives.cost.comparison import able_algorithms
from collectives.cost.measuring import Measurement, whole_bytes
from collectives.cost.parameters import Parameters
from collectives.cost.shared_memory import predict
from collectives.cost.work import Room
from collectives.schedule import Algorithm, Copy
from collectives.selection import Row, SelectionTable
from collectives.specs import SPECS

CHANGE = 0.2
"""What a change of algorithm must gain: a fifth at one size, or less at several. Less is noise."""

_PREDICTED = tuple(1 << power for power in (6, 10, *range(12, 26, 2)))

_NO_LIMIT = Row(collective="barrier", algorithm="tree").below

Times = Mapping[int, Mapping[str, float]]
"""Bytes -> algorithm -> seconds."""


def chosen_table(measurements: Sequence[Measurement], base: SelectionTable) -> SelectionTable:
    """Rows for the numbers of ranks that were measured, before those of `base`.

    A number of ranks between two that were measured goes by the greater one.

    Args:
        measurements: every algorithm of a collective at the same sizes.
        base: what goes for more ranks than were measured, and for collectives that were not.

    Raises:
        ValueError: there are no measurements.
    """
    if not measurements:
        raise ValueError("expected measurements to choose by, found none")
    by_call: dict[tuple[str, int], dict[int, dict[str, float]]] = defaultdict(dict)
    for each in measurements:
        times = by_call[each.collective, each.ranks].setdefault(each.nbytes, {})
        times[each.algorithm] = min(each.seconds, times.get(each.algorithm, math.inf))
    rows: list[Row] = []
    for collective in SPECS:
        measured = sorted(ranks for name, ranks in by_call if name == collective)
        for ranks in measured:
            rows += rows_for(collective, by_call[collective, ranks], ranks, ranks)
        most = max(measured, default=0)
        rows += [row for row in base.rows if row.collective == collective and row.most > most]
    return SelectionTable(rows)


def predicted_table(sizes: Sequence[int], model: Parameters, room: Room) -> SelectionTable:
    """Rows for the numbers of ranks `sizes`, as the model predicts them with a core for each rank.

    A number of ranks between two goes by the greater one, and beyond the last by that.
    """
    rows: list[Row] = []
    for collective in SPECS:
        for ranks in sizes:
            most = _NO_LIMIT if ranks == sizes[-1] else ranks
            roomy = replace(room, cores=ranks)
            times = {
                nbytes: {
                    algo.name: predict(algo, ranks, nbytes, model, roomy)
                    for algo in able_algorithms(collective, ranks, one_sided=True)
                    if model.tells_of(algo)
                }
                for nbytes in sorted({whole_bytes(collective, each, ranks) for each in _PREDICTED})
            }
            rows += rows_for(collective, times, most, ranks)
    return SelectionTable(rows)


def rows_for(collective: str, times: Times, most: int, ranks: int) -> list[Row]:
    """The rows of one collective for up to `most` ranks, the times being those of `ranks`.

    First come the rows for symmetric memory, then those for any.
    """
    sent: Times = {
        nbytes: {n: t for n, t in at.items() if not find(collective, n).one_sided}
        for nbytes, at in times.items()
    }
    plain = _message_rows(collective, sent, most, ranks)
    return _symmetric_rows(collective, times, plain, most) + plain


def _message_rows(collective: str, times: Times, most: int, ranks: int) -> list[Row]:
    found: list[Row] = []
    for below, name in limits(times):
        algo = find(collective, name)
        any_counts = not (collective == "alltoall" and relays(algo, ranks))
        found.append(
            Row(collective=collective, algorithm=name, below=below, most=most, uneven=any_counts)
        )
    if any(not row.uneven for row in found):
        # What relays cannot have counts of its own; the quickest of the others can.
        others = {
            nbytes: {n: t for n, t in at.items() if not relays(find(collective, n), ranks)}
            for nbytes, at in times.items()
        }
        found += [
            Row(collective=collective, algorithm=name, below=below, most=most)
            for below, name in limits(others)
        ]
    return found


def _symmetric_rows(collective: str, times: Times, plain: Sequence[Row], most: int) -> list[Row]:
    """Rows for symmetric memory, as far as one-sided algorithms are the quickest there.

    Where messages are quicker below, their rows come before, cut off there.
    """
    by_kind = {nbytes: _quickest_of_each_kind(collective, at) for nbytes, at in times.items()}
    if not all(True in kinds for kinds in by_kind.values()):
        return []
    found: list[Row] = []
    begin = 0
    kinds = {n: {str(k): t for k, (t, _) in at.items()} for n, at in by_kind.items()}
    for below, kind in limits(kinds):
        if kind == "True":
            inside = [nbytes for nbytes in by_kind if begin <= nbytes < below]
            name = by_kind[max(inside)][True][1]
            found.append(
                Row(collective=collective, algorithm=name, below=below, most=most, symmetric=True)
            )
        elif below < _NO_LIMIT:
            for row in plain:
                if row.below > begin:
                    found.append(replace(row, below=min(row.below, below)))
                if row.below >= below and row.uneven:
                    break
        begin = below
    return found


def _quickest_of_each_kind(
    collective: str, at: Mapping[str, float]
) -> dict[bool, tuple[float, str]]:
    """One-sided or not -> (seconds, algorithm)."""
    best: dict[bool, tuple[float, str]] = {}
    for name, seconds in at.items():
        kind = find(collective, name).one_sided
        best[kind] = min(best.get(kind, (math.inf, "")), (seconds, name))
    return best


def limits(times: Times) -> list[tuple[int, str]]:
    """(bytes below which, algorithm) in ascending order, the last without a limit.

    Of all ways to go through the sizes with one algorithm after another, the one that loses least
    against the quickest at each size, where every change counts as a loss too.
    """
    sizes = sorted(times)
    names = sorted(set.intersection(*(set(at) for at in times.values())))
    losses = [
        {name: math.log(times[nbytes][name] / min(times[nbytes].values())) for name in names}
        for nbytes in sizes
    ]
    # The best way to every algorithm at this size, as (loss, the algorithms so far).
    ways: dict[str, tuple[float, tuple[str, ...]]] = {
        name: (losses[0][name], (name,)) for name in names
    }
    for loss in losses[1:]:
        cheapest = min(ways.values())
        ways = {
            name: min(
                (ways[name][0] + loss[name], (*ways[name][1], name)),
                (cheapest[0] + CHANGE + loss[name], (*cheapest[1], name)),
            )
            for name in names
        }
    _, chosen = min(ways.values())
    found = [
        (_between(sizes[place], sizes[place + 1]), chosen[place])
        for place in range(len(sizes) - 1)
        if chosen[place] != chosen[place + 1]
    ]
    return [*found, (_NO_LIMIT, chosen[-1])]


def _between(low: int, high: int) -> int:
    """A limit between two sizes: the power of two next to their geometric mean, in (low, high]."""
    middle = 1 << round(math.log2(math.sqrt(max(1, low) * high)))
    return middle if low < middle <= high else high


def relays(algo: Algorithm, size: int) -> bool:
    """Whether an alltoall handles chunks that neither come from a rank nor end with it."""
    return any(
        rank not in divmod(chunk, size)
        for rank in range(size)
        for step in algo.schedule(rank, size)
        if not isinstance(step, Copy)
        for chunk in step.chunks
    )


def as_toml(table: SelectionTable, heading: str) -> str:
    """The text of a table, that `SelectionTable.from_toml` reads.

    Args:
        table: the rows.
        heading: lines that become a comment at the top.
    """
    lines = [f"# {line}".rstrip() for line in heading.splitlines()]
    for row in table.rows:
        lines += ["", "[[row]]", f'collective = "{row.collective}"']
        if row.below < _NO_LIMIT:
            lines.append(f"below = {row.below}")
        if row.least > 1 or row.most < _NO_LIMIT:
            lines.append(f"sizes = [{row.least}, {row.most}]")
        if not row.uneven:
            lines.append("uneven = false")
        if row.symmetric:
            lines.append("symmetric = true")
        lines.append(f'algorithm = "{row.algorithm}"')
    return "\n".join(lines) + "\n"
