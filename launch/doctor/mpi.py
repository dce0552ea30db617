"""Whether the mpiexec that would start ranks is of the MPI that they would load."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass

from launch.doctor.asking import NoAnswer, last_object, output_of
from launch.doctor.findings import Finding, fine, problem, warning
from launch.mpi_library import PROBE, mpi_family, mpiexec_beside

SECONDS = 8.0  # for each of the programs that are asked

_NEEDED_FOR = "needed only for --against mpi and the mpi transport"
_INSTALL = "pip install 'collectives-runtime[mpi]' (mpi4py and MPICH)"


@dataclass(frozen=True, kw_only=True)
class Mpiexec:
    """A program that starts ranks, and whose it is; an empty family is unknown."""

    path: str
    family: str

    def __str__(self) -> str:
        return f"{self.path} of {self.family or 'an unknown MPI'}"


def check_mpi() -> list[Finding]:
    """Compares the mpiexec on PATH, and the one beside Python, with mpi4py's library."""
    python = sys.executable
    on_path, beside = shutil.which("mpiexec"), mpiexec_beside(python)
    try:
        answers = last_object(output_of([python, "-P", "-c", PROBE, "mpi4py"], SECONDS))
    except NoAnswer as error:
        advice = f"Install mpi4py again for an MPI that runs here: {_INSTALL}."
        return [problem("MPI", f"mpi4py does not load its MPI: {error}", advice)]
    if "broken" in answers:
        advice = f"Install an MPI that mpi4py finds: {_INSTALL}."
        found = f"mpi4py finds no MPI ({answers['broken'].splitlines()[0]})"
        return [warning("MPI", found, advice)]
    try:
        programs = [_identified(path) for path in dict.fromkeys((on_path, beside)) if path]
    except NoAnswer as error:
        advice = "Take that mpiexec from PATH, or mend its MPI."
        return [problem("MPI", str(error), advice)]
    if answers["missing"]:
        if not programs:
            return [fine("MPI", f"not installed ({_NEEDED_FOR})")]
        shown = ", ".join(map(str, programs))
        return [fine("MPI", f"{shown}; mpi4py is not installed ({_NEEDED_FOR})")]
    return [_compared(answers["mpi"], programs, beside)]


def _compared(library: str, programs: list[Mpiexec], beside: str | None) -> Finding:
    line = library.replace("\0", "").split("\n")[0].split(",")[0]
    family, name = mpi_family(library), " ".join(line.split())
    found = f"mpi4py has {name}; mpiexec: {', '.join(map(str, programs)) or 'none'}"
    if not programs:
        return warning("MPI", found, f"Put the mpiexec of {family or 'that MPI'} on PATH.")
    others = [each for each in programs if family and each.family and each.family != family]
    if not others:
        return fine("MPI", found)
    path, other = others[0].path, others[0].family
    lone = "ranks that it starts do not find each other"
    if any(each.path == beside and each not in others for each in programs):
        return warning("MPI", found, f"Call {beside} rather than {path}: {lone}.")
    advice = (
        f"Put the mpiexec of {family} in place of {path}, or install mpi4py for {other}: {lone}."
    )
    return problem("MPI", found, advice)


def _identified(path: str) -> Mpiexec:
    try:
        said = output_of([path, "--version"], SECONDS)
    except NoAnswer as error:
        raise NoAnswer(f"{path} --version: {error}") from None
    return Mpiexec(path=path, family=mpi_family(said))
