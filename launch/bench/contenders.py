"""Who takes part, as named on the command line, and how each is started with its best settings.

    gloo, nccl, torch:NAME   a backend of torch.distributed
    mpi                      the MPI that mpi4py finds here
    deepspeed                DeepSpeed's allreduce over shared memory
    symmetric, ring, …       our own, by an algorithm, or over symmetric memory
    ours=PYTHON              the package of another environment: an engine before or after a change

All but our own may name another Python, whose environment has them: mpi=/opt/impi/bin/python. So
several MPI libraries can take part at once, of which an environment holds only one.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import collectives
from collectives.settings import emulates_devices
from collectives.specs import nearest
from launch.bench.devices import CPU, CUDA, shown_gpus
from launch.mpi_library import PROBE, mpi_family, mpiexec_beside

_PACKAGE = Path(collectives.__file__).parent
PROGRAM = _PACKAGE / "bench" / "rank_program.py"
PROBE_SECONDS = 60.0
OLDEST_PYTHON = (3, 11)


class ContenderMissing(Exception):
    """A contender cannot take part; the text says why, and what would help."""


class NotPythonError(Exception):
    """What a contender names as its Python is none: a slip, as an unknown contender is."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One group of ranks to start.

    Attributes:
        name: short, for tables: gloo, MPICH.
        library: the file in collectives/bench/libraries that its ranks load.
        python: which runs its ranks.
        program: what its ranks run.
        mpiexec: the command that starts them, if it is not we who do.
        typed: how that is typed for so many ranks of a program, if it is on other hosts.
        options: what its library's `connect` wants to know.
        settings: what it is told beyond its defaults, to be shown.
        environment: further variables of its ranks.
        inherited: file descriptors its ranks find.
        start_seconds: how long it may take until its ranks have met.
    """

    name: str
    library: str
    python: str = sys.executable
    program: str = str(PROGRAM)
    mpiexec: Sequence[str] = ()
    typed: Callable[[int, Sequence[str]], list[str]] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    inherited: Sequence[int] = ()
    start_seconds: float = 0.0

    def command(self, ranks: int, options: str) -> list[str]:
        """What starts a rank, or with mpiexec all of them."""
        # -P: the program's folder is no place to import from.
        program = [self.python, "-P", "-u", self.program, options]
        if self.typed is not None:
            return self.typed(ranks, program)
        return [*self.mpiexec, "-n", str(ranks), *program] if self.mpiexec else program


OURS = Contender(name="ours", library="ours")

_TORCH = ("gloo", "nccl")
_KINDS = (*_TORCH, "mpi", "deepspeed", "ours")
_NEEDED = {
    "mpi": ("numpy", "mpi4py"),
    "deepspeed": ("numpy", "torch", "deepspeed", "ninja"),
    "ours": ("numpy", "collectives"),
}
_HOW = {
    "mpi": "pip install 'collectives-runtime[mpi]' (mpi4py and MPICH), or mpi=PYTHON for the "
    "Python of an environment that has mpi4py",
    "deepspeed": "pip install deepspeed ninja, in an environment of its own, and "
    "deepspeed=PYTHON for its Python",
    "ours": "pip install collectives-runtime there",
}
_HOW_TORCH = "pip install torch, or {kind}=PYTHON for the Python of an environment that has it"


def is_foreign(spec: str) -> bool:
    """Whether a contender's name is that of another library, rather than one of our algorithms."""
    kind = spec.partition("=")[0]
    return kind in _KINDS or kind.startswith("torch:")


def ours_on(device: str) -> Contender:
    """Our own, on arrays of the host or of devices."""
    return OURS if device == CPU else replace(OURS, library="ours_on_devices")


def find_contender(spec: str, ranks: int = 1, device: str = CPU) -> Contender:
    """The contender that `spec` names, once its environment has been looked at.

    Args:
        spec: as on the command line.
        ranks: how many it is to have.
        device: what its arrays are to lie on; nccl's always lie on GPUs.

    Raises:
        ContenderMissing: it is not installed, or cannot take part.
        NotPythonError: after `=` stands something else than a Python, or nothing where `ours` is
            to be another one.
    """
    kind, _, python = spec.partition("=")
    if kind == "ours" and not python:
        raise NotPythonError(f"{spec}: expected ours=PYTHON, of an environment with another build")
    if kind in ("mpi", "deepspeed") and device != CPU:
        raise ContenderMissing(f"{spec}: is measured in host memory only, not with --device cuda")
    python = _program(spec, python) if python else sys.executable
    needed = _NEEDED.get(kind, ("numpy", "torch"))
    how = _HOW.get(kind, _HOW_TORCH.format(kind=kind))
    found = _probed(spec, python, needed, how)
    here = {"PATH": os.pathsep.join([str(Path(python).parent), os.environ.get("PATH", "")])}
    if kind == "mpi":
        return _mpi(spec, python, found["mpi"], here)
    if kind == "ours":
        program = Path(found["places"]["collectives"]).parent / PROGRAM.relative_to(_PACKAGE)
        library = ours_on(device).library
        if not (program.parent / "libraries" / f"{library}.py").exists():
            raise ContenderMissing(f"{spec}: that build cannot measure with --device {device}")
        return Contender(name="other build", library=library, python=python, program=str(program))
    backend = kind.removeprefix("torch:")
    if kind == "deepspeed":
        return Contender(
            name="DeepSpeed",
            library="deepspeed",
            python=python,
            environment={**here, "DS_ACCELERATOR": "cpu"},
            settings={"LOCAL_SIZE": "the number of ranks, which turns shared memory on"},
            start_seconds=600.0,  # the first time it compiles
        )
    if device == CUDA and emulates_devices():
        raise ContenderMissing(f"{spec}: needs a GPU of NVIDIA, and devices are emulated here")
    if backend == "nccl":
        device = CUDA
    if device == CUDA:
        _check_gpus(spec, ranks if backend == "nccl" else 1)
    settings = {"GLOO_SOCKET_IFNAME": "lo"} if backend == "gloo" else {}
    return Contender(
        name=backend,
        library="torch_distributed",
        python=python,
        options={"backend": backend, "device": device},
        environment={**here, **settings},
        settings=settings,
    )


def distinct(contenders: Sequence[Contender]) -> list[Contender]:
    """The same contenders with names that differ."""
    names = [contender.name for contender in contenders]
    return [
        contender
        if names.count(contender.name) == 1
        else replace(contender, name=f"{contender.name} #{names[: i + 1].count(contender.name)}")
        for i, contender in enumerate(contenders)
    ]


def _mpi(spec: str, python: str, version: str, here: dict[str, str]) -> Contender:
    """An MPI, with the options of its own mpiexec."""
    mpiexec = mpiexec_beside(python) or shutil.which("mpiexec")
    if mpiexec is None:
        raise ContenderMissing(
            f"{spec}: no mpiexec beside {python} and none on PATH; expected the one of the MPI "
            "that its mpi4py uses"
        )
    name, options, settings = "MPI", ["-bind-to", "none"], {}
    # Binding is ours for all contenders, so that it is equal; theirs is turned off.
    family = mpi_family(version)
    if family == "Open MPI":
        name = family
        options = ["--bind-to", "none", "--map-by", ":OVERSUBSCRIBE"]
        if os.getuid() == 0:
            options.append("--allow-run-as-root")
    elif family == "Intel MPI":
        name, options = family, ["-bootstrap", "fork"]
        settings = {"I_MPI_PIN": "0", "I_MPI_FABRICS": "shm"}
    elif family == "MPICH":
        name, options = family, ["-launcher", "fork", "-bind-to", "none"]
    return Contender(
        name=name,
        library="mpi",
        python=python,
        mpiexec=[mpiexec, *options],
        environment={**here, **settings},
        settings={"mpiexec": " ".join(options), **settings},
        options={"settings": {"mpiexec": " ".join(options), **settings}},
    )


def _check_gpus(spec: str, needed: int) -> None:
    gpus, why = shown_gpus()
    if not gpus:
        raise ContenderMissing(f"{spec}: needs a GPU of NVIDIA, and this machine shows none{why}")
    if len(gpus) < needed:
        raise ContenderMissing(
            f"{spec}: {needed} ranks need {needed} GPUs, this machine has {len(gpus)}"
        )


def _program(spec: str, python: str) -> str:
    path = shutil.which(python)
    if path is None:
        raise NotPythonError(f"{spec}: no program {python!r}; expected a Python's path")
    return str(Path(path).absolute())  # not resolved: an environment's Python is a link


def _probed(spec: str, python: str, needed: Sequence[str], how: str) -> dict[str, Any]:
    try:
        done = subprocess.run(
            [python, "-P", "-c", PROBE, *needed],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PROBE_SECONDS,
        )
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError) as error:
        raise NotPythonError(
            f"{spec}: {python} is no Python that runs here ({type(error).__name__}); expected "
            f"{'.'.join(map(str, OLDEST_PYTHON))} or newer"
        ) from None
    if tuple(found["python"]) < OLDEST_PYTHON:
        raise ContenderMissing(
            f"{spec}: expected Python {'.'.join(map(str, OLDEST_PYTHON))} or newer, found "
            f"{'.'.join(map(str, found['python']))}"
        )
    if found["missing"]:
        raise ContenderMissing(
            f"{spec}: {', '.join(found['missing'])} not installed in {python}: {how}"
        )
    if "broken" in found:
        raise ContenderMissing(
            f"{spec}: mpi4py finds no MPI in {python} ({found['broken']}): {how}"
        )
    return found


def unknown_contender(spec: str, algorithms: Sequence[str]) -> str:
    """What to say of a contender that is neither a library nor one of our algorithms."""
    known = (*_KINDS, "torch:BACKEND", "symmetric", *algorithms)
    return f"unknown contender {spec!r}; expected one of {', '.join(known)}" + nearest(spec, known)
