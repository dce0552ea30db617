"""GPUs: which there are, and whether each reaches the memory of each other."""

from __future__ import annotations

from pathlib import Path

from launch.doctor.asking import NoAnswer, ask
from launch.doctor.findings import Finding, fine, problem, size_text, warning

SECONDS = 10.0
DEVICES = Path("/dev")
DRIVER_VERSION = Path("/sys/module/nvidia/version")


def check_gpus() -> list[Finding]:
    """What NVIDIA's driver shows."""
    try:
        found = ask("launch.doctor.gpu_probe", seconds=SECONDS)
    except NoAnswer as error:
        found = {"failed": str(error)}
    if "failed" in found:
        advice = "Look for the driver's messages in `dmesg`, then load the driver anew or reboot."
        return [problem("GPUs", f"the driver does not work: {found['failed']}", advice)]
    if not found["gpus"]:
        if not list(DEVICES.glob("nvidia[0-9]*")):
            return [fine("GPUs", "no GPU")]
        text = f"there is /dev/nvidia0, but no GPU that can be used: {found.get('why', 'none')}"
        advice = "Install the driver's libcuda.so.1, or start the container with --gpus all."
        return [warning("GPUs", text, advice)]
    names = [f"{gpu['name']}, {size_text(gpu['bytes'])}" for gpu in found["gpus"]]
    details = [f"GPU {index}: {name}" for index, name in enumerate(names)]
    text = f"{len(names)}, driver {_driver_version()}for {found['driver']}"
    if found["apart"]:
        pairs = ", ".join(f"{here} and {there}" for here, there in found["apart"] if here < there)
        pairs = pairs or ", ".join(f"{here} to {there}" for here, there in found["apart"])
        text += f"; no peer access between {pairs}"
        advice = "Ask `nvidia-smi topo -p2p r` for the reason: copies there go by host memory."
        return [warning("GPUs", text, advice, details)]
    return [fine("GPUs", f"{text}{'; all reach each other' * (len(names) > 1)}", details)]


def _driver_version() -> str:
    try:
        return f"{DRIVER_VERSION.read_text().strip()} "
    except OSError:
        return ""
