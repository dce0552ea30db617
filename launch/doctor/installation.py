"""The package itself: its version, its native module, what it runs on, whether it is tuned."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from typing import Any

from launch.doctor.asking import NoAnswer
from launch.doctor.findings import Finding, fine, problem

MACHINES = ("x86_64", "aarch64")

Runtime = Callable[[], dict[str, Any]]
"""What `launch.doctor.runtime_probe` has answered; raises NoAnswer where it has not."""


def value_of(answers: dict[str, Any], name: str) -> Any:
    """One of the runtime's answers.

    Raises:
        NoAnswer: it met an error instead, which is the text.
    """
    answer = answers[name]
    if "error" in answer:
        raise NoAnswer(answer["error"])
    return answer["value"]


def check_package(runtime: Runtime) -> list[Finding]:
    """Version, native module, Python, kernel, architecture."""
    from collectives.version import __version__

    where = f"Python {platform.python_version()}, Linux {platform.release()}, {platform.machine()}"
    if sys.platform != "linux" or platform.machine() not in MACHINES:
        found = f"{sys.platform} on {platform.machine()}"
        return [problem("package", found, "Use Linux on x86_64 or aarch64: nothing else runs.")]
    try:
        kernels = value_of(runtime(), "kernels")
    except NoAnswer as error:
        found = f"collectives {__version__}: the native module does not load: {error}; {where}"
        advice = "Build it again for this Python and this machine, by `make build` or pip."
        return [problem("package", found, advice)]
    return [fine("package", f"collectives {__version__}, {kernels} kernels; {where}")]


def check_tuning(runtime: Runtime) -> list[Finding]:
    """Whether `collectives tune` has been run for this machine."""
    try:
        found = value_of(runtime(), "tuning")
    except NoAnswer as error:
        advice = "Mend what the text names: no rank starts before."
        return [problem("tuning", str(error), advice)]
    if found["folder"] is None:
        return [fine("tuning", "off (COLLECTIVES_TUNING); the package's own table is taken")]
    if not found["there"]:
        text = "not tuned, the package's own table is taken; `collectives tune` measures yours"
        return [fine("tuning", text)]
    return [fine("tuning", f"tuned: {found['folder']}")]
