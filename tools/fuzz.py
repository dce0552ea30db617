"""Fuzzes the parsing of shared memory: what another process of the same user writes into a region.

    make fuzz MINUTES=10

Builds tests/fuzz with the engine's sources under clang's libFuzzer, AddressSanitizer and
UndefinedBehaviorSanitizer, runs it for so long on as many processes as there are cores, and prints
executions and coverage. What was interesting stays in build/fuzz/corpus, so that the next run goes
on from there. A crash, a wait beyond its deadline or memory that leaks ends it with 1; the input is
left in build/fuzz, and `build/fuzz/fuzz INPUT` runs it again.

With --planted each of a few checks is taken away in a copy of the sources, alone, and the fuzzer
must find that, from the same seeds, within --minutes.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from native_programs import ROOT, Plant, build, needs, planted

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
INTERRUPTED = 72  # libFuzzer's exit status for a signal from outside
SEEDS = 64
DRIVERS = sorted((ROOT / "tests" / "fuzz").glob("*.cpp"))

PLANTS = [
    Plant(
        "extent",
        "region.cpp",
        "geometry.fault() != nullptr || !geometry.fits(bytes)",
        "geometry.ranks == 0 || geometry.total_bytes() > bytes",
    ),
    Plant("slot", "engine_steps.cpp", "place.index >= region_.geometry().slots || ", ""),
    Plant(
        "spoken",
        "waiting_texts.cpp",
        "static_cast<double>(now) - static_cast<double>(last)",
        "static_cast<double>(now - last)",
    ),
    Plant("text", "waiting_texts.cpp", "each = '?';", "continue;"),
    Plant("packet", "point_to_point.cpp", "packet.bytes > slot_bytes || ", ""),
]


def figures(log: str) -> tuple[int, int, int]:
    """Executions, covered edges and features, from what one fuzzing process wrote."""
    runs = re.findall(r"stat::number_of_executed_units:\s+(\d+)", log)
    covered = re.findall(r"cov: (\d+) ft: (\d+)", log)
    edges, features = covered[-1] if covered else (0, 0)
    return int(runs[-1]) if runs else 0, int(edges), int(features)


def sow(corpus: Path) -> None:
    """Writes the first inputs, the same each time, into a folder that has none."""
    corpus.mkdir(parents=True, exist_ok=True)
    if not any(corpus.iterdir()):
        for number in range(SEEDS):
            (corpus / f"seed-{number}").write_bytes(random.Random(number).randbytes(512))


def command_of(program: Path, corpus: Path, seconds: int) -> list[str]:
    """How a process fuzzes: what it finds is left beside the program."""
    limits = [*LIMITS, f"-max_total_time={seconds}", "-print_final_stats=1"]
    return [str(program), str(corpus), *limits, f"-artifact_prefix={program.parent}/"]


def find_planted(seconds: int) -> int:
    """How many mistakes were not found."""
    missed = 0
    for plant in PLANTS:
        name = f"fuzz-{plant.name}"
        program = build(
            name,
            DRIVERS,
            [COMPILER, *FLAGS],
            native=planted(name, plant),
            like="fuzz",
            but=plant.file,
        )
        shutil.rmtree(program.parent / "corpus", ignore_errors=True)
        sow(program.parent / "corpus")
        command = command_of(program, program.parent / "corpus", seconds)
        began = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        is_found = "Test unit written to" in done.stderr
        missed += not is_found
        word = f"found after {time.monotonic() - began:.0f} s" if is_found else "MISSED"
        print(f"planted, {plant.name}: {word}", flush=True)
    return missed


def main() -> int:
    """Builds, runs, and prints what came of it; 1 if anything was found, or a plant was not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--planted", action="store_true")
    options = parser.parse_args()
    needs(COMPILER, "clang")
    program = build("fuzz", DRIVERS, [COMPILER, *FLAGS])
    seconds = max(1, round(60 * options.minutes))
    if options.planted:
        return 1 if find_planted(seconds) else 0
    corpus = program.parent / "corpus"
    sow(corpus)
    command = command_of(program, corpus, seconds)
    logs = [program.parent / f"process-{i}.log" for i in range(options.processes)]
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
    if any(status == INTERRUPTED for status, _ in found):
        print("it was interrupted")
        return 1
    failed = [text for status, text in found if status != 0]
    for text in failed:
        print(text[-6000:])
    print("nothing was found" if not failed else f"{len(failed)} processes found something")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
