"""The stages of `gpu_check.py` that measure against others, by `collectives bench`."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpu_check_parts import EMULATED, leave, left, shown

if TYPE_CHECKING:
    from launch.bench.results import Comparison, Result


def sweep() -> dict[str, Any]:
    """Allreduce in place from 1 KiB on: our own, against gloo, and nccl where there are GPUs."""
    from launch.bench.results import compared

    ranks, parts = 2, [("1K", "64M", "gloo"), ("256M", "1G", "")]
    if EMULATED:
        parts = [("1K", "256K", "")]
    elif (gpus := _gpus()) > 1:
        ranks = min(8, gpus)
        parts = [("1K", "64M", "gloo,nccl"), ("256M", "1G" if ranks == 2 else "256M", "nccl")]
    results: list[Result] = []
    failures = []
    words = f"Best of three rounds in turn, float32 sum in place, {ranks} ranks; bound: what every "
    found = {"words": [words + "rank's copy of as many bytes takes, all at once."]}
    for least, most, against in parts:
        more, failed = _raced(
            ranks, "--device", "cuda", "--algorithm", "symmetric,auto", "--against", against,
            "--places", "in", "--min", least, "--max", most, "--factor", "4", "--rounds", "3",
            "--round-ms", "5", *_plot(most),
        )  # fmt: skip
        results += more
        failures.append(failed)
        table = [_row(comparison) for comparison in compared(results)]
        rates = [row["bytes"] / row["symmetric us"] / 1e3 for row in table if "symmetric us" in row]
        found |= {"found": f"symmetric at most {max(rates, default=0):.1f} GB/s", "table": table}
        leave(found)
    return found | {"failed": any(failures) or not rates}


def _plot(name: str) -> list[str]:
    if importlib.util.find_spec("matplotlib") is None:
        return []
    return ["--plot", str(Path(sys.argv[2]).with_name(f"sweep-to-{name}.png"))]


def _row(comparison: Comparison) -> dict[str, Any]:
    """A size: what each way takes, our best share of the bound, how many times others take it."""
    best = {
        result.variant.replace("auto", "private") or result.who: result.best
        for result in comparison.results
        if result.role != "limit" and result.rounds
    }
    row: dict[str, Any] = {"bytes": comparison.case.nbytes}
    row |= {f"{way} us": round(seconds * 1e6, 1) for way, seconds in best.items()}
    own = min((best[way] for way in ("symmetric", "private") if way in best), default=None)
    if own and comparison.limit is not None:
        bound = comparison.limit.best
        row |= {"bound us": round(bound * 1e6, 1), "of bound": f"{bound / own:.0%}"}
    if own:
        row |= {f"x {who}": round(best[who] / own, 1) for who in ("gloo", "nccl") if who in best}
    return row


def _gpus() -> int:
    from transports.cuda_ipc.nvidia import nvidia_count

    return nvidia_count()


def _raced(ranks: int, *options: str) -> tuple[list[Result], bool]:
    """What `collectives bench allreduce` finds, and whether it failed."""
    from launch.bench.results import read_results

    lines = Path(sys.argv[2]).with_name("bench.jsonl")
    failed, _ = shown(
        [sys.executable, "-m", "launch", "bench", "allreduce", "-n", str(ranks), *options,
         "--json", str(lines)], left(),
    )  # fmt: skip
    if not lines.exists() or not lines.stat().st_size:
        return [], True
    _, results = read_results(lines)
    lines.unlink()
    return results, failed


def shared_memory() -> dict[str, Any]:
    """Allreduce in host memory among as many ranks as there are cores for, against gloo."""
    cores = os.cpu_count() or 2
    rows, failures = [], []
    for size in [each for each in (2, 4, 8, 16) if each <= cores]:
        results, failed = _raced(
            size, "--min", "8", "--max", "16M", "--factor", "64", "--rounds", "3",
            "--against", "gloo", "--no-limit", "--round-ms", "5",
        )  # fmt: skip
        failures.append(failed)
        for result in results:
            if result.rounds:
                rows.append({"ranks": size, "bytes": result.case.nbytes, "who": result.who,
                             "us": round(result.best * 1e6, 2)})  # fmt: skip
    return {"found": f"{len(rows)} rows", "table": rows, "failed": any(failures)}
