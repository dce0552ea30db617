"""Runs ranks as threads of one process under ThreadSanitizer, then under AddressSanitizer.

    make sanitize

tests/sanitize/ranks.cpp with the engine's sources, each time in a build folder of its own. The
sources as they are must be clean. To show that a race would be seen, each of a few stores that hand
something over is weakened in a copy of the sources, alone, and ThreadSanitizer must report it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from native_programs import BUILD, NATIVE, ROOT, build, needs

COMPILER = os.environ.get("SANITIZE_CXX", "g++")
# -Wno-tsan: that it does not know fences; what the engine needs them for says ranks.cpp.
THREAD = [COMPILER, "-O1", "-fsanitize=thread", "-Wno-tsan"]
ADDRESS = [COMPILER, "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
DRIVERS = [ROOT / "tests" / "sanitize" / "ranks.cpp"]
SECONDS = 300


@dataclass(frozen=True)
class Plant:
    """A release that is taken away."""

    name: str
    file: str
    store: str  # up to the order


PLANTS = [
    Plant("message", "engine_steps.cpp", "descriptor.sequence.store(index + 1, "),
    Plant("release", "engine_steps.cpp", "acks.released.store(++peers_[peer].released, "),
    Plant("packet", "lane.hpp", "descriptor.sequence.store(++sent_, "),
    Plant("packet-release", "lane.hpp", "released.store(++taken_, "),
]


def planted(plant: Plant) -> Path:
    """A copy of the sources with one order changed, and exactly one."""
    folder = BUILD / f"sanitize-{plant.name}" / "native"
    folder.mkdir(parents=True, exist_ok=True)
    found = 0
    for source in [*NATIVE.glob("*.cpp"), *NATIVE.glob("*.hpp")]:
        copy = folder / source.name
        text = source.read_text()
        if source.name == plant.file:
            strong = f"{plant.store}std::memory_order_release"
            found = text.count(strong)
            text = text.replace(strong, f"{plant.store}std::memory_order_relaxed")
        # Only what differs is written, so that only that is compiled again.
        if not copy.exists() or copy.read_text() != text:
            copy.write_text(text)
    if found != 1:
        sys.exit(f"{plant.file}: expected one `{plant.store}… release`, found {found}")
    return folder


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
        program = build(
            f"sanitize-{plant.name}",
            DRIVERS,
            THREAD,
            native=planted(plant),
            like="sanitize-thread",
            but=plant.file,
        )
        status, text = run(program, options.turns)
        is_found = status == 66 and "WARNING: ThreadSanitizer: data race" in text
        failed += not is_found
        print(f"planted, {plant.name} without release: {'found' if is_found else 'MISSED'}")
        if not is_found:
            print(text[-6000:])
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
