"""What can be known of the NVIDIA device without one: what is missing is said, names exist."""

from __future__ import annotations

import ast
import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from transports.cuda_ipc import driver, nvidia
from transports.cuda_ipc.device import Device, DeviceError, Signal, State

SOURCE = Path(nvidia.__file__)


def has_driver():
    try:
        ctypes.CDLL(driver.LIBRARY)
    except OSError:
        return False
    return True


def run_python(program):
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )


def test_without_cupy_all_but_devices_works():
    done = run_python("""
import sys
sys.modules["cupy"] = None
import numpy as np, collectives
with collectives.init() as comm:
    assert comm.allreduce(np.ones(2))[0] == 1
try:
    collectives.init(transport="cuda_ipc")
except ModuleNotFoundError as error:
    print(error)
""")
    assert "pip install 'collectives-runtime[cuda13]'" in done.stdout, done.stderr


def test_with_cupy_and_no_driver_all_but_devices_works():
    done = run_python("""
import cupy, numpy as np, collectives
with collectives.init() as comm:
    assert comm.allreduce(np.ones(2))[0] == 1
try:
    collectives.init(transport="cuda_ipc").close()
    print("connected")
except collectives.CollectiveError as error:
    print(error)
""")
    wanted = "connected" if has_driver() else "transport cuda_ipc: there is no CUDA device"
    assert wanted in done.stdout, done.stderr


def test_neither_cupy_nor_torch_is_imported_before_it_is_needed():
    done = run_python("""
import sys, collectives
collectives.init().close()
print([name for name in ("cupy", "torch") if name in sys.modules])
""")
    assert done.stdout.strip() == "[]", done.stderr


def names_of(attribute):
    """What nvidia.py asks of `self._runtime`, say."""
    tree = ast.parse(SOURCE.read_text())
    return sorted(
        {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Attribute)
            and node.value.attr == attribute
        }
    )


def test_cupy_has_what_is_asked_of_it():
    import cupy

    asked = names_of("_runtime")
    assert len(asked) > 15
    missing = [name for name in asked if not hasattr(cupy.cuda.runtime, name)]
    assert missing == []
    for name in ("RawModule",):
        assert hasattr(cupy, name)
    for name in ("Device", "ExternalStream"):
        assert hasattr(cupy.cuda, name)


def test_nothing_of_the_seam_is_missing():
    asked = {name for name in vars(Device) if not name.startswith("_")}
    assert {name for name in asked if not hasattr(nvidia.NvidiaDevice, name)} == set()


def test_an_operation_of_the_driver_is_a_union_of_48_bytes():
    """`CUstreamBatchMemOpParams` of cuda.h: six words of 64 bits; where its fields lie."""
    assert ctypes.sizeof(driver.MemoryOperation) == 48
    places = {
        name: getattr(driver.MemoryOperation, name).offset
        for name in ("operation", "address", "value", "flags", "alias")
    }
    assert places == {"operation": 0, "address": 8, "value": 16, "flags": 24, "alias": 32}


def test_signals_as_the_driver_reads_them():
    signals = [Signal(4096 + 64 * number, State.FULL, number % 2 == 0) for number in range(300)]
    batches = driver.operations_of(signals)
    assert [len(batch) for batch in batches] == [256, 44]
    first, second = batches[0][0], batches[0][1]
    assert (first.operation, first.address, first.value, first.flags) == (1, 4096, 2, 2)
    assert (second.operation, second.address, second.value, second.flags) == (2, 4160, 2, 0)
    assert driver.operations_of([]) == []


def test_the_driver_says_what_is_wrong():
    wrong = "cuDeviceGet" if has_driver() else "there is no NVIDIA driver"
    with pytest.raises(DeviceError, match=wrong):
        driver.call_driver("cuDeviceGet", ctypes.byref(ctypes.c_int()), ctypes.c_int(1 << 20))


def test_cupy_hands_a_streams_status_on():
    """Which `is_idle` reads: an int, whatever it says, never an exception."""
    import cupy

    assert isinstance(cupy.cuda.runtime.streamQuery(0), int)
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="cudaErrorNotReady"):
        raise cupy.cuda.runtime.CUDARuntimeError(nvidia._NOT_READY)
