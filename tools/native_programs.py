"""Programs of the engine without Python: its C++ sources and a driver, instrumented by a compiler.

The fuzzer (tools/fuzz.py) and the sanitizers (tools/sanitize.py) build with it, each into a folder
of its own, so that the module everybody uses is never an instrumented one. Only what changed is
compiled again. Copies of the sources with something changed are made here, for tools/unchecked.py
too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NATIVE = ROOT / "transports" / "native"
BUILD = ROOT / "build"

# What only Python calls, or what needs its headers.
BOUND = {"module.cpp", "rank.cpp", "known_calls.cpp", "repeatable.cpp"}
# As in CMakeLists.txt: the kernels for wider vectors, chosen at run time.
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
WIDE = {
    "kernels_avx2.cpp": AVX2,
    "kernels_avx512.cpp": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", *AVX2],
}


@dataclass(frozen=True)
class Plant:
    """A mistake that a tool must find."""

    name: str
    file: str
    sound: str  # what stands there, once
    wrong: str


def planted(build_name: str, *plants: Plant) -> Path:
    """A copy of the engine's sources, in the build folder, with exactly these things changed."""
    folder = BUILD / build_name / "native"
    folder.mkdir(parents=True, exist_ok=True)
    texts = {path.name: path.read_text() for path in (*NATIVE.glob("*.cpp"), *NATIVE.glob("*.hpp"))}
    for plant in plants:
        found = texts[plant.file].count(plant.sound)
        if found != 1:
            sys.exit(f"{plant.file}: expected `{plant.sound}` once, found it {found} times")
        texts[plant.file] = texts[plant.file].replace(plant.sound, plant.wrong)
    for name, text in texts.items():
        copy = folder / name
        # Only what differs is written, so that only that is compiled again.
        if not copy.exists() or copy.read_text() != text:
            copy.write_text(text)
    return folder


def sources(folder: Path = NATIVE) -> list[Path]:
    """The engine's sources that need no Python."""
    found = sorted(folder.glob("*.cpp"))
    wide = set(WIDE) if os.uname().machine != "x86_64" else set()
    return [
        path
        for path in found
        if path.name not in BOUND | wide and not path.name.startswith("bind_")
    ]


def needs(compiler: str, package: str) -> None:
    """Ends the program with what to install if there is no such compiler."""
    if shutil.which(compiler) is None:
        sys.exit(
            f"{compiler} is missing. On Debian and Ubuntu: apt-get install {package}; "
            f"on Fedora: dnf install {'clang compiler-rt' if 'clang' in compiler else 'gcc-c++'}"
        )


def is_newer(made: Path) -> bool:
    """Whether an object is newer than all that it was made of, as the compiler wrote that down."""
    listed = made.with_suffix(".d")
    if not made.exists() or not listed.exists():
        return False
    origins = listed.read_text().split(":", 1)[1].replace("\\\n", " ").split()
    written = made.stat().st_mtime
    return all(Path(each).exists() and Path(each).stat().st_mtime < written for each in origins)


def build(
    name: str,
    drivers: list[Path],
    compile_: list[str],
    *,
    native: Path = NATIVE,
    like: str = "",
    but: str = "",
) -> Path:
    """Compiles `native` and the drivers into build/`name`/; returns the program.

    `compile_` is the compiler and its flags. Where `native` differs from the sources that
    build/`like`/ was made of in the file `but` alone, what does not
    include that is taken from there.
    """
    folder = BUILD / name
    folder.mkdir(parents=True, exist_ok=True)
    base = [*compile_, "-std=c++20", "-g", "-pthread", "-I", str(native)]
    # The same bits on every dispatch path, as CMakeLists.txt has it.
    base += ["-Wall", "-Wextra", "-ffp-contract=off", "-fno-math-errno"]
    base += ["-Wno-missing-field-initializers"]  # the rest has its defaults

    def compiled(source: Path) -> tuple[Path, bool]:
        made = folder / f"{source.stem}.o"
        same = BUILD / like / made.name
        if like and f"/{but}" not in same.with_suffix(".d").read_text():
            return same, False
        if is_newer(made):
            return made, False
        command = [*base, *WIDE.get(source.name, []), "-MMD", "-c", str(source), "-o", str(made)]
        subprocess.run(command, check=True)
        return made, True

    program = folder / name
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, [*drivers, *sources(native)]))
    if not program.exists() or any(is_new for _, is_new in objects):
        subprocess.run([*base, *(str(path) for path, _ in objects), "-o", str(program)], check=True)
    return program
