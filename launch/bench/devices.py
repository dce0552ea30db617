"""What devices there are to measure arrays on: GPUs that the driver shows, or emulated ones.

The driver is asked in a process of its own, so that this one, which starts ranks, has no CUDA.
"""

from __future__ import annotations

import importlib.util
import os
from collections import Counter
from collections.abc import Sequence

from collectives.bench.cases import POINT_TO_POINT
from collectives.bench.overlap import OVERLAP
from collectives.settings import emulates_devices
from collectives.specs import nearest
from launch.bench.agenda import Agenda
from launch.doctor.asking import NoAnswer, ask
from transports.cuda_ipc.emulation import SETTING, parse_machine

CPU, CUDA = "cpu", "cuda"
DEVICES = (CPU, CUDA)
PROBE_SECONDS = 20.0

NO_CUPY = (
    "--device cuda needs cupy, which is not installed: pip install 'collectives-runtime[cuda13]', "
    "or [cuda12] with a CUDA 12 driver"
)


def check_device(word: str) -> None:
    """Whether there is such a kind of memory.

    Raises:
        ValueError: there is none; it lists those there are.
    """
    if word not in DEVICES:
        raise ValueError(
            f"--device must be one of {', '.join(DEVICES)}, found {word!r}" + nearest(word, DEVICES)
        )


def check_on_devices(agenda: Agenda) -> None:
    """Whether all that is to be measured can be, on arrays of devices.

    Raises:
        ValueError: something cannot; says why.
    """
    for collective in agenda.collectives:
        if collective in POINT_TO_POINT:
            raise ValueError(
                f"{collective} with --device cuda: point-to-point is not carried on arrays of "
                "devices; expected a collective"
            )
        if collective == OVERLAP:
            raise ValueError(
                "overlap with --device cuda: waiting for a call does not block the host there, so "
                "nothing could be timed; expected a collective"
            )
    if "cold" in agenda.caches:
        raise ValueError(
            "--caches cold with --device cuda: the caches that are swept are the host's; expected "
            "hot"
        )


def find_devices() -> tuple[str, ...]:
    """The names of the devices that arrays of ours can lie on.

    Raises:
        ValueError: there are none, or nothing to use them with.
    """
    if emulates_devices():
        return ("emulated device",) * parse_machine(os.environ[SETTING]).devices
    if importlib.util.find_spec("cupy") is None:
        raise ValueError(NO_CUPY)
    gpus, why = shown_gpus()
    if not gpus:
        raise ValueError(
            f"--device cuda needs a GPU of NVIDIA, and this machine shows none{why}; expected one, "
            f"or {SETTING}=1, which emulates one"
        )
    return gpus


def shown_gpus() -> tuple[tuple[str, ...], str]:
    """The names of the GPUs that the driver shows; and where there are none, why, in brackets."""
    try:
        found = ask("launch.doctor.gpu_probe", seconds=PROBE_SECONDS)
    except NoAnswer as error:
        found = {"failed": str(error)}
    gpus = tuple(str(gpu["name"]) for gpu in found.get("gpus", ()))
    why = found.get("failed") or found.get("why")
    return gpus, f" ({why})" if why and not gpus else ""


def counted(names: Sequence[str]) -> str:
    """Devices as one says them."""
    return ", ".join(f"{count} × {name}" for name, count in Counter(names).items())
