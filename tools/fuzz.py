"""Fuzzes the parsing of shared memory: what another process of the same user writes into a region.

    make fuzz MINUTES=10

Builds tests/fuzz with the engine's sources under clang's libFuzzer, AddressSanitizer and
UndefinedBehaviorSanitizer, runs it for so long on as many processes as there are cores, and prints
executions and coverage. What was interesting stays in build/fuzz/corpus, so that the next run goes
on from there. A crash, a wait beyond its deadline or memory that leaks ends it with 1; the input is
left in build/fuzz, and `build/fuzz/fuzz INPUT` runs it again.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

from native_programs import BUILD, ROOT, build, needs

COMPILER = os.environ.get("FUZZ_CXX", "clang++")
FLAGS = [
    "-O1",
    "-fno-omit-frame-pointer",
    "-fsanitize=fuzzer,address,undefined",
    "-fno-sanitize-recover=all",
]
# One input takes a few milliseconds; a real second is a hang.
# Inputs are long from the begin: short ones end before anything has happened.
LIMITS = ["-timeout=10", "-rss_limit_mb=2048", "-max_len=1024", "-len_control=0"]
SEEDS = 64


def figures(log: str) -> tuple[int, int, int]:
    """Executions, covered edges and features, from what one fuzzing process wrote."""
    runs = re.findall(r"stat::number_of_executed_units:\s+(\d+)", log)
    covered = re.findall(r"cov: (\d+) ft: (\d+)", log)
    edges, features = covered[-1] if covered else (0, 0)
    return int(runs[-1]) if runs else 0, int(edges), int(features)


def main() -> int:
    """Builds, runs, and prints what came of it; 1 if anything was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    options = parser.parse_args()
    needs(COMPILER, "clang")
    drivers = sorted((ROOT / "tests" / "fuzz").glob("*.cpp"))
    program = build("fuzz", drivers, [COMPILER, *FLAGS])
    corpus = BUILD / "fuzz" / "corpus"
    corpus.mkdir(exist_ok=True)
    if not any(corpus.iterdir()):
        for number in range(SEEDS):
            (corpus / f"seed-{number}").write_bytes(random.Random(number).randbytes(512))
    seconds = max(1, round(60 * options.minutes))
    command = [str(program), str(corpus), f"-max_total_time={seconds}", "-print_final_stats=1"]
    command += [*LIMITS, f"-artifact_prefix={BUILD / 'fuzz'}/"]
    logs = [BUILD / "fuzz" / f"process-{i}.log" for i in range(options.processes)]
    began = time.monotonic()
    running = []
    for log in logs:
        with log.open("w") as out:
            running.append(subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT))
    found = [
        (process.wait(), Path(log).read_text(errors="replace"))
        for process, log in zip(running, logs, strict=True)
    ]
    figured = [figures(text) for _, text in found]
    print(
        f"{time.monotonic() - began:.0f} s on {len(found)} processes: "
        f"{sum(each[0] for each in figured):,} executions, "
        f"{max(each[1] for each in figured)} edges and {max(each[2] for each in figured)} features "
        f"covered, {len(list(corpus.iterdir()))} inputs in the corpus"
    )
    failed = [text for status, text in found if status != 0]
    for text in failed:
        print(text[-6000:])
    print("nothing was found" if not failed else f"{len(failed)} processes found something")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
