"""Builds an engine that makes none of the contract's checks, to race against: what they cost.

    .venv/bin/python tools/unchecked.py
    .venv/bin/collectives bench allreduce -n 2 --max 8 --against ours=build/unchecked/bin/python

For measuring only: with it a mismatch is a wrong result, and who is lost or late is not said. An
environment of its own in the build folder holds the packages, as they are when this is run, and an
engine compiled from a copy of the sources in which every check in the way of a call that succeeds
is taken out, and all that is written for others to check. What a wait does once it has become slow
stays.
"""

from __future__ import annotations

import shutil
import site
import subprocess
import sys
import venv
from pathlib import Path

from native_programs import BUILD, ROOT, Plant, planted

NAME = "unchecked"
PACKAGES = ("collectives", "transports", "launch", "trainers")
DESCRIPTION = ("pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE")


def never(name: str, file: str, condition: str) -> Plant:
    """A branch, told by the beginning of its condition, that is never taken."""
    return Plant(name, file, f"if ({condition}", f"if constexpr (false)\n    if ({condition}")


def nothing(name: str, file: str, statement: str) -> Plant:
    """A statement that is gone."""
    return Plant(name, file, statement, "")


CHECKS = [
    Plant(
        "forked child",
        "engine.cpp",
        "void Engine::refuse_in_child() const {",
        "void Engine::refuse_in_child() const {\n  return;",
    ),
    Plant(
        "closed, broken, or others in trouble",
        "engine.cpp",
        "void Engine::check_usable() const {",
        "void Engine::check_usable() const {\n  return;",
    ),
    never("two calls at once", "engine.cpp", "busy_.exchange(true, std::memory_order_acquire)"),
    nothing("... its end", "engine.cpp", "busy_.store(false, std::memory_order_release);"),
    never(
        "another communicator's call", "engine.cpp", "call.size() != region_.geometry().ranks ||"
    ),
    never("call in the background", "engine.cpp", "is_background_ != background"),
    nothing("which call this is", "engine.cpp", "enter(call, number_, stamp_);"),
    nothing(
        "which call is over",
        "engine.cpp",
        "region_.standing(rank()).completed.store(number_, std::memory_order_release);",
    ),
    nothing(
        "messages not taken",
        "engine.cpp",
        "for (const auto peer : call.silent_peers()) look_for_untaken(peer);",
    ),
    never("faults on purpose", "engine.cpp", "fault_.is_due"),
    never("... at the end", "engine.cpp", "steps_to_fault_ != 0) [[unlikely]] {"),
    never(
        "... in the middle", "engine_steps.cpp", "steps_to_fault_ != 0 && --steps_to_fault_ == 0"
    ),
    never(
        "whose message it is",
        "engine_steps.cpp",
        "descriptor.fingerprint != begun.fingerprint || length != begun.bytes",
    ),
    never(
        "bytes that damage",
        "engine_steps.cpp",
        "place.index >= region_.geometry().slots || place.shift >= kLine ||",
    ),
    nothing("fingerprint", "engine_steps.cpp", "descriptor.fingerprint = begun.fingerprint;"),
    nothing(
        "call's number",
        "engine_steps.cpp",
        "descriptor.number = static_cast<std::uint32_t>(number_);",
    ),
]


def copy_project(folder: Path) -> None:
    """The source tree, but for the checks; what has not changed keeps its time."""
    native = planted(NAME, *CHECKS)
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package,
            folder / package,
            ignore=shutil.ignore_patterns("__pycache__", "native", "*.so"),
            dirs_exist_ok=True,
        )
    shutil.copytree(native, folder / "transports" / "native", dirs_exist_ok=True)
    for name in DESCRIPTION:
        shutil.copy2(ROOT / name, folder / name)


def main() -> int:
    """Makes the environment, or brings it up to date; the path of its Python is printed."""
    target = BUILD / NAME
    copy_project(target / "source")
    venv.create(target, symlinks=True)
    python = target / "bin" / "python"
    # Before our own site-packages, where numpy is; what they install as editable stays unknown.
    (packages,) = (target / "lib").glob("python*/site-packages")
    (packages / "unchecked.pth").write_text(
        "\n".join([str(target / "installed"), *site.getsitepackages()])
    )
    shutil.rmtree(target / "installed", ignore_errors=True)
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
    ]
    command += [
        f"--config-settings=build-dir={target / 'cmake'}",
        "--target",
        str(target / "installed"),
    ]
    subprocess.run([*command, str(target / "source")], check=True)
    print(python)
    return 0


if __name__ == "__main__":
    sys.exit(main())
