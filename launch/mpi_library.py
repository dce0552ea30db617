"""Which MPI a Python has, and which mpiexec belongs to it.

An mpiexec of one library that starts ranks of another makes each of them a world of one, so that
both are named and compared.
"""

from __future__ import annotations

import re
from pathlib import Path

PROBE = """
import importlib.util, json, os, sys
found = {"python": list(sys.version_info[:3])}
specs = {name: importlib.util.find_spec(name) for name in sys.argv[1:]}
found["missing"] = [name for name, spec in specs.items() if spec is None]
found["places"] = {name: spec.origin for name, spec in specs.items() if spec is not None}
if "mpi4py" in sys.argv[1:] and not found["missing"]:
    import mpi4py
    mpi4py.rc.initialize = False
    try:
        from mpi4py import MPI
        found["mpi"] = MPI.Get_library_version()
    except Exception as error:
        found["broken"] = f"{type(error).__name__}: {error}"
print(json.dumps(found))
"""
"""Asks a Python which packages of its command line it has, where, and of its MPI; JSON."""

_FAMILIES = {
    "Intel MPI": r"^Intel\(R\) MPI",
    "Open MPI": r"^Open MPI|\((Open MPI|OpenRTE|Open RTE)\)",
    "MPICH": r"^MPICH|^HYDRA build details",
}


def mpi_family(version: str) -> str:
    """Whose MPI it is, by what the library or its mpiexec say of themselves; empty if unknown."""
    return next((name for name, said in _FAMILIES.items() if re.search(said, version)), "")


def mpiexec_beside(python: str) -> str | None:
    """The mpiexec in the folder of `python`, where an environment with an MPI has its own."""
    beside = Path(python).parent / "mpiexec"
    return str(beside) if beside.exists() else None
