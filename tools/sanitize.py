"""Runs ranks as threads of one process under ThreadSanitizer, then under AddressSanitizer.

    make sanitize

tests/sanitize/ranks.cpp with the engine's sources, each time in a build folder of its own. The
sources as they are must be clean. To show that a race would be seen, each of a few stores that hand
something over is weakened in a copy of the sources, alone, and ThreadSanitizer must report it; so
is the load by which a header that anybody may write is read.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from native_programs import ROOT, Plant, build, needs, planted

COMPILER = os.environ.get("SANITIZE_CXX", "g++")
# -Wno-tsan: that it does not know fences; what the engine needs them for says ranks.cpp.
THREAD = [COMPILER, "-O1", "-fsanitize=thread", "-Wno-tsan"]
ADDRESS = [COMPILER, "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
DRIVERS = [ROOT / "tests" / "sanitize" / "ranks.cpp"]
SECONDS = 300


def without_release(name: str, file: str, store: str) -> Plant:
    """A store, told up to its order, that hands something over no more."""
    orders = [f"{store}std::memory_order_{order}" for order in ("release", "relaxed")]
    return Plant(name, file, *orders)


PLANTS = [
    without_release("message", "engine_steps.cpp", "descriptor.sequence.store(index + 1, "),
    without_release("release", "region.hpp", "released.store(count, "),
    without_release("packet", "lane.hpp", "descriptor.sequence.store(++sent_, "),
    Plant(
        "header", "region.cpp", "return __atomic_load_n(&place, __ATOMIC_RELAXED);", "return place;"
    ),
]


def run(program: Path, turns: int) -> tuple[int, str]:
    """The exit status and what was written."""
    options = {"TSAN_OPTIONS": "halt_on_error=1 exitcode=66", "UBSAN_OPTIONS": "print_stacktrace=1"}
    # Its older versions do not know all the places where a kernel may put a program's memory.
    command = [str(program), str(turns)]
    if shutil.which("setarch"):
        command = ["setarch", os.uname().machine, "-R", *command]
    done = subprocess.run(
        command,
        env={**os.environ, **options},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=SECONDS,
    )
    return done.returncode, done.stdout


def main() -> int:
    """1 if a sanitizer reports something, or misses what was planted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument("--only", choices=["thread", "address", *(each.name for each in PLANTS)])
    options = parser.parse_args()
    needs(COMPILER, "g++")
    failed = 0
    for name, flags in (("thread", THREAD), ("address", ADDRESS)):
        wanted = {None, name, *(each.name for each in PLANTS if name == "thread")}
        if options.only not in wanted:
            continue
        status, text = run(build(f"sanitize-{name}", DRIVERS, flags), options.turns)
        failed += status != 0
        print(f"{name}: {'clean, ' + text.strip() if status == 0 else text[-6000:]}", flush=True)
    for plant in PLANTS:
        if options.only not in (None, plant.name):
            continue
        name = f"sanitize-{plant.name}"
        program = build(
            name,
            DRIVERS,
            THREAD,
            native=planted(name, plant),
            like="sanitize-thread",
            but=plant.file,
        )
        status, text = run(program, options.turns)
        is_found = status == 66 and "WARNING: ThreadSanitizer: data race" in text
        failed += not is_found
        print(f"planted, {plant.name}: {'found' if is_found else 'MISSED'}")
        if not is_found:
            print(text[-6000:])
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
