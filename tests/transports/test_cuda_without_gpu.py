"""What can be known of the NVIDIA device without one: what is missing is said, names exist."""

from __future__ import annotations

import ast
import ctypes
import subprocess
import sys
from operator import attrgetter
from pathlib import Path

import pytest

from collectives.settings import kernel_folder
from transports.cuda_ipc import driver, nvidia
from transports.cuda_ipc.compiling import architecture_for, compiled
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
    for name in ("Device", "function.Module", "nvrtc.getCUBIN", "driver.CUDADriverError"):
        assert attrgetter(name)(cupy.cuda)
    assert {"load", "get_function"} <= set(dir(cupy.cuda.function.Module))


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
    assert [len(batch) for batch in batches] == [255, 45]
    first, second = batches[0][0], batches[0][1]
    assert (first.operation, first.address, first.value, first.flags) == (1, 4096, 2, 2)
    assert (second.operation, second.address, second.value, second.flags) == (2, 4160, 2, 0)
    assert driver.operations_of([]) == []


def test_the_driver_says_what_is_wrong():
    wrong = "cuDeviceGet" if has_driver() else "there is no NVIDIA driver"
    with pytest.raises(DeviceError, match=wrong):
        driver.call_driver("cuDeviceGet", ctypes.byref(ctypes.c_int()), ctypes.c_int(1 << 20))


@pytest.mark.parametrize("code, done", [(0, True), (driver.NOT_READY, False), (700, None)])
def test_a_streams_status_is_read(monkeypatch, code, done):
    def call(name, *arguments):
        assert name == "cuStreamQuery"
        if code:
            raise driver.DriverError(name, code, "said")

    monkeypatch.setattr(driver, "call_driver", call)
    if done is None:
        with pytest.raises(DeviceError, match="700"):
            driver.is_done(0)
    else:
        assert driver.is_done(0) is done


def test_kernels_are_compiled_by_cupys_compiler_and_kept(tmp_path, monkeypatch):
    """As they are written: subnormal numbers stay what they are."""
    from cupy.cuda import nvrtc

    float32, total = 2, 0
    ptx = compiled(nvrtc, float32, total, "compute_90", None)
    assert b"add.rn.f32" in ptx and b".ftz" not in ptx
    folder = tmp_path / "kernels"
    binary = compiled(nvrtc, float32, total, "sm_90", folder)
    assert binary.startswith(b"\x7fELF")
    (file,) = folder.iterdir()
    file.write_bytes(b"kept")
    assert compiled(nvrtc, float32, total, "sm_90", folder) == b"kept"
    assert compiled(nvrtc, float32, total, "sm_80", folder) not in (b"kept", binary)
    assert compiled(nvrtc, float32, total, "sm_90", folder, anew=True) == binary
    assert file.read_bytes() == binary
    file.write_bytes(b"")  # no kernel, whatever has left it
    assert compiled(nvrtc, float32, total, "sm_90", folder) == binary
    assert len(list(folder.iterdir())) == 2, "no drafts"
    barred = tmp_path / "file"
    barred.touch()
    assert compiled(nvrtc, float32, total, "sm_90", barred / "below") == binary
    with pytest.raises(DeviceError, match=r"cannot be compiled with -arch=sm_11: .*invalid value"):
        compiled(nvrtc, float32, total, "sm_11", None)


@pytest.mark.parametrize(
    "environment, folder",
    [
        ({"XDG_CACHE_HOME": "/cache", "HOME": "/home"}, "/cache/collectives/kernels"),
        ({"HOME": "/home"}, "/home/.cache/collectives/kernels"),
        ({"HOME": "/home", "COLLECTIVES_KERNELS": "/own"}, "/own"),
        ({"HOME": "/home", "COLLECTIVES_KERNELS": "off"}, None),
        ({}, None),
    ],
)
def test_where_kernels_are_kept(environment, folder):
    assert kernel_folder(environment) == (None if folder is None else Path(folder))


def test_a_device_newer_than_the_compiler_gets_what_its_driver_assembles():
    from cupy.cuda import nvrtc

    newest = max(map(int, nvrtc.getSupportedArchs()))
    assert architecture_for(90, nvrtc) == "sm_90"
    assert architecture_for(newest + 7, nvrtc) == f"compute_{newest}"
