"""Writes the figures of README and docs/benchmarks from the results that are committed there.

    python tools/benchmark_tables.py            write them
    python tools/benchmark_tables.py --check    say what is stale, exit code 1

A run's results come from `collectives bench ... --json docs/benchmarks/DATE/NAME.jsonl`. What
stands between `<!-- begin DATE NAME -->` and `<!-- end DATE NAME -->` is made here and never by
hand.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from launch.bench.markdown import markdown_report, readable_size
from launch.bench.results import Comparison, Result, compared, read_results
from launch.bench.table import microseconds, times
from launch.bench.training_results import is_training, read_training, training_markdown

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "docs" / "benchmarks"
SIZES = (8, 1 << 10, 16 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20)


def comparisons(date: str, name: str) -> list[Comparison]:
    """All cases of one run of a day."""
    return compared(read_results(RUNS / date / f"{name}.jsonl")[1])


def fastest(comparison: Comparison) -> Result:
    """The quickest contender that is not ours."""
    others = [r for r in comparison.of_role("against") if r.rounds and r.who != "ours"]
    return min(others, key=lambda result: result.best)


def allreduce_table(date: str) -> str:
    """Private and symmetric arrays against the fastest of all contenders, a few sizes."""
    private = {each.case.nbytes: each for each in comparisons(date, "allreduce-private")}
    symmetric = {each.case.nbytes: each for each in comparisons(date, "allreduce-symmetric")}
    lines = [
        "| size | ours | fastest other | symmetric, in place | fastest, in place | of limit |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for size in SIZES:
        cells = [readable_size(size)]
        for run in (private, symmetric):
            ours, other = run[size].of_role("ours")[0], fastest(run[size])
            ratio = times(other.best / ours.best)
            cells += [microseconds(ours.best), f"{microseconds(other.best)} {other.who} ({ratio})"]
        limit = symmetric[size].limit
        assert limit is not None, "runs are made with the limit"
        cells.append(f"{limit.best / symmetric[size].of_role('ours')[0].best:.0%}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def others_table(date: str) -> str:
    """Every other collective against the fastest MPI."""
    lines = [
        "| collective | size | ours | symmetric | fastest MPI |",
        "| :--- | ---: | ---: | ---: | ---: |",
    ]
    for each in comparisons(date, "collectives"):
        ours, other = each.of_role("ours")[0], fastest(each)
        if each.case.collective == "allreduce":
            continue  # has tables of its own
        own = [r for r in each.of_role("against") if r.who == "ours" and r.rounds]
        ratio = times(other.best / ours.best)
        lines.append(
            f"| {each.case.collective} | {readable_size(each.case.nbytes)} "
            f"| {microseconds(ours.best)} | {microseconds(own[0].best) if own else '–'} "
            f"| {microseconds(other.best)} {other.who} ({ratio}) |"
        )
    return "\n".join(lines)


def training_table(date: str) -> str:
    """What communication our training and DDP's exposes, a line a case."""
    _, results = read_training(RUNS / date / "training.jsonl")
    lines = [
        "| | ours, exposed | DDP over gloo, exposed | ours, steps/s | DDP, steps/s |",
        "| :--- | ---: | ---: | ---: | ---: |",
    ]
    for case in dict.fromkeys(result.case for result in results):
        ours, other = (
            next(r for r in results if r.case == case and r.who == who)
            for who in ("ours", "ddp-gloo")
        )
        lines.append(
            f"| {case} | {1e3 * ours.exposed:.3f} ms | {1e3 * other.exposed:.3f} ms "
            f"({times(other.exposed / ours.exposed)}) | {ours.best:.1f} | {other.best:.1f} |"
        )
    return "\n".join(lines)


def run_table(file: Path) -> str:
    """Everything of one run."""
    if is_training(file):
        return training_markdown(file)
    return markdown_report([read_results(file)])


def written(path: Path) -> str:
    """The file with its tables made anew."""
    makers: dict[str, Callable[[], str]] = {}
    for folder in sorted(each for each in RUNS.iterdir() if each.is_dir()):
        date = folder.name
        makers[f"{date} allreduce"] = partial(allreduce_table, date)
        makers[f"{date} collectives"] = partial(others_table, date)
        makers[f"{date} training"] = partial(training_table, date)
        for file in sorted(folder.glob("*.jsonl")):
            makers[f"{date} run {file.stem}"] = partial(run_table, file)
    text = path.read_text(encoding="utf-8")

    def replace(match: re.Match[str]) -> str:
        name = match[1]
        if name not in makers:
            raise SystemExit(f"{path}: expected one of {', '.join(makers)}, found {name!r}")
        return f"<!-- begin {name} -->\n{makers[name]()}\n<!-- end {name} -->"

    return re.sub(r"<!-- begin ([^>]+?) -->\n.*?<!-- end \1 -->", replace, text, flags=re.DOTALL)


def main() -> int:
    """Writes, or checks, every file with tables."""
    stale = []
    for path in (ROOT / "README.md", *sorted(RUNS.glob("*.md"))):
        made = written(path)
        if made == path.read_text(encoding="utf-8"):
            continue
        stale.append(str(path.relative_to(ROOT)))
        if "--check" not in sys.argv[1:]:
            path.write_text(made, encoding="utf-8")
    print(
        f"{', '.join(stale)}: {'stale' if '--check' in sys.argv[1:] else 'written'}"
        if stale
        else "all up to date"
    )
    return 1 if stale and "--check" in sys.argv[1:] else 0


if __name__ == "__main__":
    sys.exit(main())
