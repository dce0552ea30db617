"""The preflight names every missing piece at once, with one line that installs them all."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "preflight.sh"
COREUTILS = ["cat", "grep", "head", "id", "mktemp", "rm", "sh", "uname"]


class Machine:
    """A PATH that holds just what a test puts there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in COREUTILS:
            self.link(name)

    def link(self, name: str) -> None:
        (self.folder / name).symlink_to(str(shutil.which(name)))

    def write(self, name: str, script: str) -> None:
        path = self.folder / name
        path.unlink(missing_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def python(self, fails_on: str = "nothing that occurs") -> None:
        """Our own interpreter, but for programs that contain a word."""
        self.write(
            "python3", f'case "$*" in *"{fails_on}"*) exit 1;; esac\nexec "{sys.executable}" "$@"'
        )

    def compiler(self) -> None:
        # A compiler finds its linker through PATH: hence a wrapper that restores ours.
        self.write("c++", f'PATH="{os.environ["PATH"]}" exec c++ "$@"')

    def preflight(self, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.folder / "sh"), str(SCRIPT)],
            env={"PATH": str(self.folder), **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )


@pytest.fixture
def machine(tmp_path):
    folder = tmp_path / "bin"
    folder.mkdir()
    return Machine(folder)


def install_lines(output: str) -> list[str]:
    return [line.strip() for line in output.splitlines() if " install -y " in line]


def test_a_complete_machine_passes_in_silence(machine):
    machine.python()
    machine.compiler()
    machine.link("make")
    done = machine.preflight()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_bare_debian_is_told_everything_in_one_line(machine):
    machine.write("apt-get", "exit 1")
    done = machine.preflight()
    assert done.returncode == 1
    assert "Python 3.11 or newer" in done.stderr
    assert "C++20 compiler" in done.stderr
    [line] = install_lines(done.stderr)
    assert line.endswith("apt-get install -y python3 python3-venv python3-dev g++ make")


def test_a_bare_fedora_has_names_of_its_own(machine):
    machine.write("dnf", "exit 1")
    [line] = install_lines(machine.preflight().stderr)
    assert line.endswith("dnf install -y python3 python3-devel gcc-c++ make")


def test_an_unknown_distribution_is_shown_both(machine):
    assert len(install_lines(machine.preflight().stderr)) == 2


def test_a_missing_venv_module_alone(machine):
    machine.python(fails_on="ensurepip")
    machine.compiler()
    machine.link("make")
    machine.write("apt-get", "exit 1")
    done = machine.preflight()
    assert done.returncode == 1
    [line] = install_lines(done.stderr)
    assert line.endswith("install -y python3-venv")


def test_missing_headers_alone(machine, tmp_path):
    machine.write(
        "python3",
        f'case "$*" in *sysconfig*) echo "{tmp_path}";; *) exec "{sys.executable}" "$@";; esac',
    )
    machine.compiler()
    machine.link("make")
    machine.write("apt-get", "exit 1")
    done = machine.preflight()
    assert f"no {tmp_path}/Python.h" in done.stderr
    [line] = install_lines(done.stderr)
    assert line.endswith("install -y python3-dev")


def test_an_old_python_is_named_with_its_version(machine):
    machine.write("python3", 'case "$*" in *--version*) echo Python 3.9.2;; *) exit 1;; esac')
    machine.compiler()
    machine.link("make")
    machine.write("apt-get", "exit 1")
    done = machine.preflight()
    assert "python3 is Python 3.9.2" in done.stderr
    [line] = install_lines(done.stderr)
    assert line.endswith("install -y python3.12 python3.12-venv python3.12-dev")


def test_a_chosen_python_has_packages_of_its_own(machine):
    machine.compiler()
    machine.link("make")
    machine.write("apt-get", "exit 1")
    [line] = install_lines(machine.preflight(PYTHON="python3.13").stderr)
    assert line.endswith("install -y python3.13 python3.13-venv python3.13-dev")


def test_a_compiler_that_cannot_do_it_says_why(machine):
    machine.python()
    machine.link("make")
    machine.write("c++", "echo 'fatal error: span: No such file' >&2; exit 1")
    done = machine.preflight()
    assert done.returncode == 1
    assert "c++ does not compile" in done.stderr
    assert "span: No such file" in done.stderr


def test_a_compiler_that_was_asked_for_and_is_not_there(machine):
    machine.python()
    machine.compiler()
    machine.link("make")
    assert "looked for clang++-99" in machine.preflight(CXX="clang++-99").stderr


@pytest.mark.parametrize(
    ("system", "processor", "found"),
    [("Darwin", "arm64", "Darwin"), ("Linux", "riscv64", "riscv64")],
)
def test_other_machines_are_refused(machine, system, processor, found):
    machine.write("uname", f'case "$1" in -s) echo {system};; -m) echo {processor};; esac')
    done = machine.preflight()
    assert done.returncode == 1
    assert f"this is {found}" in done.stderr
    assert not install_lines(done.stderr)
