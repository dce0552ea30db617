"""Asked in a process of its own: the GPUs that NVIDIA's driver shows, and which reach each other.

The driver alone is asked, by ctypes: it is there wherever a GPU can be used, cupy and torch need
not be. No context is made, so that this takes no memory of a GPU and disturbs nobody.
"""

from __future__ import annotations

import ctypes
import json
from typing import Any

NO_DEVICE = 100
_NAME_BYTES = 256


class DriverError(Exception):
    """A call of the driver has failed; the text is the driver's."""

    def __init__(self, call: str, code: int, text: str) -> None:
        super().__init__(f"{call}: {text or 'error'} ({code})")
        self.code = code


class Driver:
    """libcuda, as far as it is needed here."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libcuda.so.1")

    def call(self, name: str, *arguments: Any) -> None:
        """Makes a call; raises DriverError if it fails."""
        code = getattr(self._library, name)(*arguments)
        if code:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(code, ctypes.byref(text))
            raise DriverError(name, code, (text.value or b"").decode(errors="replace"))

    def number(self, name: str, *arguments: Any) -> int:
        """A call whose first argument takes an int."""
        found = ctypes.c_int()
        self.call(name, ctypes.byref(found), *arguments)
        return found.value

    def gpu(self, index: int) -> tuple[int, dict[str, Any]]:
        """A GPU's handle, name and memory."""
        device = self.number("cuDeviceGet", index)
        name = ctypes.create_string_buffer(_NAME_BYTES)
        self.call("cuDeviceGetName", name, _NAME_BYTES, device)
        memory = ctypes.c_size_t()
        self.call("cuDeviceTotalMem_v2", ctypes.byref(memory), device)
        return device, {"name": name.value.decode(errors="replace"), "bytes": memory.value}


def visible_gpus() -> dict[str, Any]:
    """All that the driver shows."""
    try:
        driver = Driver()
    except OSError as error:
        return {"driver": None, "why": str(error), "gpus": [], "apart": []}
    try:
        driver.call("cuInit", 0)
    except DriverError as error:
        if error.code != NO_DEVICE:
            raise
        return {"driver": None, "why": str(error), "gpus": [], "apart": []}
    found = [driver.gpu(index) for index in range(driver.number("cuDeviceGetCount"))]
    apart = [
        [here, there]
        for here, (device, _) in enumerate(found)
        for there, (peer, _) in enumerate(found)
        if here != there and not driver.number("cuDeviceCanAccessPeer", device, peer)
    ]
    version = driver.number("cuDriverGetVersion")
    shown = f"CUDA {version // 1000}.{version % 1000 // 10}"
    return {"driver": shown, "gpus": [about for _, about in found], "apart": apart}


if __name__ == "__main__":
    try:
        answer = visible_gpus()
    except DriverError as error:
        answer = {"failed": str(error)}
    print(json.dumps(answer))
