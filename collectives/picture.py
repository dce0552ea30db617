"""An algorithm as text: ranks down, rounds across, what each rank does in each.

What a round is, and which step falls in it, is said in `collectives.rounds`; a schedule that gets
stuck is drawn as far as it comes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from collectives.rounds import MessageRounds, OneSidedRounds, Rounds, peers_of
from collectives.schedule import Algorithm
from collectives.steps import (
    Copy,
    Notify,
    Read,
    ReadReduce,
    Recv,
    RecvReduce,
    Send,
    Step,
    Wait,
    Write,
)

_LONGEST_LIST = 3  # runs of peers or chunks in a label; beyond, they are cut

Cells = dict[int, list[str]]
"""A rank's labels by round."""


def draw(
    algo: Algorithm,
    size: int,
    root: int = 0,
    hosts: Sequence[int] | None = None,
    *,
    width: int = 100,
    ranks: int = 9,
    rounds: int = 24,
) -> str:
    """The picture of an algorithm.

    Args:
        algo: what to draw.
        size: number of ranks.
        root: the root, for collectives that have one.
        hosts: `hosts[r]` is the index of rank r's host; None is one host.
        width: columns; rounds that do not fit go below.
        ranks: of more ranks than this, only the first ones are drawn.
        rounds: of more rounds than this, only the first ones are drawn.

    Raises:
        ValueError: the algorithm is not written for this size, or the root does not exist.
    """
    if not algo.allows(size):
        raise ValueError(f"{algo.collective} {algo.name} is not written for size {size}")
    schedules = [algo.schedule(rank, size, root, hosts) for rank in range(size)]
    timeline = OneSidedRounds(schedules) if algo.one_sided else MessageRounds(schedules)
    timeline.run()
    labels = _Labels(algo, size)
    shown = range(size if size <= ranks else ranks - 1)
    rows = [labels.row(timeline, rank) for rank in shown]
    last = max((number for row in rows for number in row), default=0)
    lines = list(_bands(rows, min(last, rounds), width, root if algo.spec.rooted else None))
    if size > len(shown):
        lines.append(f"⋮ {size - len(shown)} more ranks")
    if last > rounds:
        lines.append(f"⋯ {last - rounds} more rounds")
    if not last:
        lines.append("(nothing to send)")
    lines += ["", *labels.legend(rows, rooted=algo.spec.rooted)]
    return "\n".join(line.rstrip() for line in lines).rstrip()


_SIGNS: dict[type[Step], str] = {
    Send: "→",
    Recv: "←",
    RecvReduce: "+←",
    Read: "⇐",
    ReadReduce: "+⇐",
    Write: "⇒",
    Notify: "!",
    Wait: "?",
}


class _Labels:
    """How steps are written."""

    def __init__(self, algo: Algorithm, size: int) -> None:
        self._chunking = algo.spec.chunking
        self._size = size

    def row(self, timeline: Rounds, rank: int) -> Cells:
        """The labels of one rank, round by round; at the end what it is stuck at."""
        began = timeline.began[rank]
        cells: Cells = {}
        for step, number in zip(timeline.schedules[rank], began, strict=False):
            cells.setdefault(number, []).append(self.label(step))
        if (stuck := timeline.stuck_at(rank)) is not None:
            cells.setdefault(max(began, default=0) + 1, []).append("✗ " + self.label(stuck))
        return cells

    def label(self, step: Step) -> str:
        """Such as `→1 c0`, `←2 c1`, `+←2 c1`, `⇐1 c0`, `!1`."""
        if isinstance(step, Copy):
            return f"{self._chunks((step.to,))}={self._chunks((step.source,))}"
        head, peers = _SIGNS[type(step)], peers_of(step)
        if len(peers) == self._size - 1 > 1:
            head += "all"
        else:
            head += _runs(sorted(peers))
        return f"{head} {self._chunks(step.chunks)}".rstrip() if step.chunks else head

    def _chunks(self, chunks: Sequence[int]) -> str:
        if self._chunking == "empty":
            return ""
        if self._chunking == "pairs":
            pairs = [f"({c // self._size},{c % self._size})" for c in chunks[:_LONGEST_LIST]]
            return "".join(pairs) + "…" * (len(chunks) > _LONGEST_LIST)
        return "c" + _runs(sorted(chunks))

    def legend(self, rows: Sequence[Cells], rooted: bool) -> list[str]:
        """What the signs mean, of those that are there."""
        used = [label for row in rows for labels in row.values() for label in labels]
        chunk = {"empty": "", "pairs": " (2,3)"}.get(self._chunking, " c0")
        named = {"empty": "a message", "pairs": "the chunk that goes from rank 2 to rank 3"}.get(
            self._chunking, "chunk 0"
        )
        signs = [
            (r"→", f"→1{chunk}", f"send {named} to rank 1"),
            (r"→(all|\d+[-,])", f"→1-3{chunk}", "to several ranks: written once, read by each"),
            (r"←", f"←1{chunk}", f"receive {named} from rank 1"),
            (r"\+←", f"+←1{chunk}", f"receive {named} from rank 1 and add it to the own"),
            (r"\+←(all|\d+[-,])", f"+←1-3{chunk}", "from several ranks: added in one pass"),
            (r"⇐", f"⇐1{chunk}", f"read {named} in the memory of rank 1"),
            (r"\+⇐", f"+⇐1{chunk}", f"read {named} in the memory of rank 1 and add it to the own"),
            (r"\+⇐(all|\d+[-,])", f"+⇐1-3{chunk}", "of several ranks: added in one pass"),
            (r"⇒", f"⇒1{chunk}", f"write {named} into the memory of rank 1"),
            (r"⇒(all|\d+[-,])", f"⇒1-3{chunk}", "into that of several ranks, in one pass"),
            (r"!", "!1", "notify rank 1 that all up to here is done"),
            (r"\?", "?1", "wait for a notify of rank 1"),
            (r"✗", "✗", "a step that the rank never gets past"),
        ]
        shown = [
            (sign, what)
            for pattern, sign, what in signs
            if any(re.match(pattern, label) for label in used)
        ]
        if rooted and shown:
            shown.append(("*", "the root"))
        wide = max((len(sign) for sign, _ in shown), default=0)
        return [f"{sign:<{wide}}   {what}" for sign, what in shown]


def _runs(numbers: Sequence[int]) -> str:
    """Ascending numbers as runs: 0-3,7; cut where there are too many."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    texts = [
        f"{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(map(str, run))
        for run in runs[:_LONGEST_LIST]
    ]
    return ",".join(texts) + ("…" if len(runs) > _LONGEST_LIST else "")


def _bands(rows: Sequence[Cells], rounds: int, width: int, root: int | None) -> Iterator[str]:
    """The lines of the picture: as many rounds side by side as fit, the others below."""
    heads = [f"rank {rank}" + " *" * (rank == root) for rank in range(len(rows))]
    margin = max(map(len, heads)) + 3
    longest = max(
        (len(label) for row in rows for labels in row.values() for label in labels), default=0
    )
    column = max(longest, len(f"round {rounds}")) + 2
    at_once = max(1, (width - margin) // column)
    for first in range(1, rounds + 1, at_once):
        band = range(first, min(first + at_once, rounds + 1))
        if first > 1:
            yield ""
        yield " " * margin + "".join(f"{f'round {number}':<{column}}" for number in band)
        airy = any(len(row.get(number, ())) > 1 for row in rows for number in band)
        for head, row in zip(heads, rows, strict=True):
            cells = [_aligned(row.get(number, []), airy) for number in band]
            for line in range(max(map(len, cells))):
                texts = [cell[line] if line < len(cell) else "" for cell in cells]
                yield f"{head if line == 0 else '':<{margin}}" + "".join(
                    f"{text:<{column}}" for text in texts
                )
            if airy and head != heads[-1]:
                yield ""


def _aligned(labels: list[str], airy: bool) -> list[str]:
    """What goes out on the first line, all else below, where a rank may do both in a round."""
    if not labels:
        return ["·"]
    sends = [label for label in labels if label.startswith(("→", "!"))]
    others = [label for label in labels if not label.startswith(("→", "!"))]
    return sends + others if sends or not airy else ["", *others]
