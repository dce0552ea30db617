"""`python -m soak.faults`: many random programs in each of which one rank fails.

    PYTHONPATH=tests python -m soak.faults --jobs 2000 --report soak-faults.md
    PYTHONPATH=tests python -m soak.faults --jobs 1 --seed 17 --show

A line of JSON a job goes beside the report. Exit code 1: something was wrong.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import os
import secrets
import select
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from soak.fault_kinds import KINDS, Fault, draw_fault
from soak.fault_report import page
from soak.faulty import PATIENCE, Clock, rank_program
from soak.forked_ranks import Ending, Forked, die_with, new_job, run
from soak.verdicts import LEAK, detections, judge

HARD_LIMIT = 10.0  # seconds beyond what is expected
MOMENT = 0.05  # seconds that a rank freezes for a moment


def run_fault(fault: Fault) -> tuple[dict[str, Any], list[Ending]]:
    """One job: its record, and how its ranks ended."""
    size = fault.program.size
    clock = Clock(size)
    shared = _shared_files()
    job = partial(rank_program, fault=fault, clock=clock,
                  job=new_job(size, {"COLLECTIVES_SILENCE_SECONDS": "3"}))  # fmt: skip

    def watch(ranks: list[Forked]) -> bool:
        if not fault.kind.startswith("freezes") or not clock.at(0):
            return False
        if fault.kind == "freezes for ever":
            return all(each.has_ended() for at, each in enumerate(ranks) if at != fault.rank)
        if time.monotonic_ns() - clock.at(0) > MOMENT * 1e9:
            ranks[fault.rank].wake()
        return False

    # Freezing is noticed by whoever waits first, then told; each may be late by a deadline.
    limit = HARD_LIMIT + 2 * PATIENCE.get(fault.kind, 0.0)
    began = time.monotonic()
    endings = run([job] * size, limit, watch)
    anomalies = judge(fault, endings, clock)
    if left := _shared_files() - shared:
        anomalies.append((LEAK, f"/dev/shm: {', '.join(sorted(left))}"))
    record = {
        "seed": fault.seed,
        "size": size,
        "kind": fault.kind,
        "rank": fault.rank,
        "moment": fault.moment,
        "number": fault.number,
        "operation": str(fault.program.operations[fault.number]),
        "errors": [ending.value and ending.value.error for ending in endings],
        "detections": [round(each, 6) for each in detections(fault, clock, size)],
        "seconds": round(time.monotonic() - began, 4),
        "anomalies": anomalies,
    }
    return record, endings


def records_of(seeds: range, workers: int, kind: str | None) -> Iterator[dict[str, Any]]:
    """Run the faults of these seeds, `workers` jobs at a time."""
    pipes, pids = [], []
    for worker in range(workers):
        ours, theirs = os.pipe()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            die_with(parent)
            code = 1
            try:
                with os.fdopen(theirs, "w", encoding="utf-8", buffering=1) as pipe:
                    for seed in seeds[worker::workers]:
                        record, _ = run_fault(draw_fault(seed, kind))
                        pipe.write(json.dumps(record) + "\n")
                code = 0
            finally:
                if code:
                    sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
                os._exit(code)
        os.close(theirs)
        pipes.append(os.fdopen(ours, encoding="utf-8"))
        pids.append(pid)
    rest = dict.fromkeys(pipes, "")
    while rest:
        for pipe in select.select(list(rest), [], [])[0]:
            part = os.read(pipe.fileno(), 1 << 16).decode()
            lines = (rest[pipe] + part).split("\n")
            rest[pipe] = lines.pop()
            yield from map(json.loads, lines)
            if not part:
                del rest[pipe]
                pipe.close()
    for pid in pids:
        if os.waitpid(pid, 0)[1]:
            raise RuntimeError("a worker has ended by an error")


def main() -> int:
    """The exit code: 1 if anything was wrong."""
    options = _parse()
    gc.freeze()
    first = secrets.randbelow(1 << 30) if options.seed is None else options.seed
    if options.show:
        return _show(draw_fault(first, options.kind))
    began = time.monotonic()
    records: list[dict[str, Any]] = []
    wrong: Counter[str] = Counter()
    seeds = range(first, first + options.jobs)
    print(f"soak-faults: seeds {seeds.start} to {seeds.stop - 1}", flush=True)
    log = options.report and options.report.with_suffix(".jsonl")
    if log:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("", encoding="utf-8")
    for record in records_of(seeds, options.workers, options.kind):
        records.append(record)
        wrong.update(kind for kind, _ in record["anomalies"])
        if log:
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        for kind, text in record["anomalies"][:1]:
            print(f"  seed {record['seed']}, {record['size']} ranks, {record['kind']} "
                  f"{record['moment']} {record['operation']}: {kind}: {text[:500]}")  # fmt: skip
        if len(records) % 500 == 0:
            print(f"  {len(records)} jobs, {dict(wrong) or 'nothing wrong'}", flush=True)
    wall = time.monotonic() - began
    if options.report:
        date = datetime.datetime.now(datetime.UTC).date().isoformat()
        command = f"make soak-faults N={options.jobs} SEED={first}"
        cores = len(os.sched_getaffinity(0))
        options.report.write_text(page(records, command, date, cores, wall), encoding="utf-8")
    print(f"soak-faults: {len(records)} jobs in {wall:.0f} s, {dict(wrong) or 'nothing wrong'}")
    return int(bool(wrong))


def _show(fault: Fault) -> int:
    print(f"{fault.kind} {fault.moment} on rank {fault.rank} of {fault.program.size}, "
          f"{fault.program.environment}")  # fmt: skip
    for number, operation in enumerate(fault.program.operations):
        print("=>" if number == fault.number else "  ", number, operation)
    print("other:", fault.other)
    record, endings = run_fault(fault)
    for rank, ending in enumerate(endings):
        print(f"--- rank {rank}: exit code {ending.code}: {ending.value}\n{ending.output}")
    print(json.dumps(record, indent=1))
    return int(bool(record["anomalies"]))


def _shared_files() -> set[str]:
    return {each.name for each in Path("/dev/shm").glob("collectives*")}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="soak.faults", description=__doc__.split("\n")[0])
    parser.add_argument("--jobs", type=int, default=100, help="how many")
    parser.add_argument("--seed", type=int, help="of the first")
    parser.add_argument("--kind", choices=KINDS, help="only faults of this kind")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)),
                        help="jobs at a time")  # fmt: skip
    parser.add_argument("--report", type=Path, help="a page; the jobs go beside it, .jsonl")
    parser.add_argument("--show", action="store_true", help="one job: its program, what came of it")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
