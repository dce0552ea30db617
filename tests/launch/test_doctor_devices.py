"""What `collectives doctor` says of what a machine may have: MPI, GPUs, Ray, a network."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest

from launch.doctor import asking, gpus, mpi, network, ray_cluster
from launch.doctor.asking import NoAnswer

GPU = {"name": "Fast 9000", "bytes": 80 << 30}
MPICH = "MPICH Version:      5.0.2\nMPICH ABI: 18\0"
HYDRA = "HYDRA build details:\n    Version: 5.0.2"
OPEN_MPI = "mpiexec (OpenRTE) 4.1.4"


def brief(finding: dict) -> tuple[str, str]:
    return finding["verdict"], finding["found"]


def with_mpi(on_path, beside, said, library=MPICH):
    """Answers of mpi4py with that library, and of mpiexecs by their path."""
    mpi4py = json.dumps({"missing": [], "mpi": library})
    return {sys.executable: mpi4py, on_path: said.get("path", ""), beside: said.get("beside", "")}


@pytest.mark.parametrize(
    ("on_path", "beside", "answers", "verdict", "text"),
    [
        ("/b/mpiexec", None, {"path": HYDRA}, "ok", "Version: 5.0.2; mpiexec: /b/mpiexec of MPICH"),
        ("/b/mpiexec", None, {"path": OPEN_MPI}, "problem", "in place of /b/mpiexec, or install"),
        (
            "/b/mpiexec", "/v/mpiexec", {"path": OPEN_MPI, "beside": HYDRA},
            "warning", "Call /v/mpiexec rather than /b/mpiexec",
        ),
        (
            "/b/mpiexec", "/v/mpiexec", {"path": HYDRA, "beside": OPEN_MPI},
            "problem", "Put the mpiexec of MPICH in place of /v/mpiexec",
        ),
        ("/b/mpiexec", None, {"path": "Slurm"}, "ok", "/b/mpiexec of an unknown MPI"),
        (
            "/b/mpiexec", None, {"path": "Intel(R) MPI Library for Linux", "library": "Open MPI"},
            "problem", "of Intel MPI",
        ),
        (None, None, {}, "warning", "Put the mpiexec of MPICH on PATH"),
    ],
)  # fmt: skip
def test_the_mpiexec_must_be_of_mpi4pys_library(
    doctor, monkeypatch, on_path, beside, answers, verdict, text
):
    library = answers.get("library", MPICH)
    monkeypatch.setattr(mpi.shutil, "which", lambda name: on_path)
    monkeypatch.setattr(mpi, "mpiexec_beside", lambda python: beside)
    found = doctor(mpi=with_mpi(on_path, beside, answers, library))["MPI"]
    assert found["verdict"] == verdict
    assert text in found["found"] + found["advice"]


def test_an_mpi_may_be_missing_in_part_or_broken(doctor, monkeypatch):
    monkeypatch.setattr(mpi.shutil, "which", lambda name: "/b/mpiexec")
    found = doctor(mpi={"/b/mpiexec": OPEN_MPI})["MPI"]
    assert found["verdict"] == "ok"
    assert found["found"].startswith("/b/mpiexec of Open MPI; mpi4py is not installed")
    broken = json.dumps({"missing": [], "broken": "RuntimeError: no libmpi\nfurther"})
    found = doctor(mpi={sys.executable: broken})["MPI"]
    assert brief(found) == ("warning", "mpi4py finds no MPI (RuntimeError: no libmpi)")
    for said in (NoAnswer("killed by SIGSEGV"), "no JSON"):
        found = doctor(mpi={sys.executable: said})["MPI"]
        assert found["verdict"] == "problem" and "mpi4py does not load" in found["found"]


def test_an_mpiexec_that_hangs_or_fails_is_a_problem(doctor, monkeypatch, tmp_path):
    mpiexec = tmp_path / "mpiexec"
    monkeypatch.setattr(mpi.shutil, "which", lambda name: str(mpiexec))
    for script, text in (
        ("sleep 600", "no answer within 0.3 s"),
        ("echo ORTE >&2; exit 3", "ORTE"),
    ):
        mpiexec.write_text(f"#!/bin/sh\n{script}\n")
        mpiexec.chmod(0o755)
        with pytest.raises(NoAnswer) as said:
            asking.output_of([str(mpiexec), "--version"], 0.3 if "sleep" in script else 20.0)
        found = doctor(mpi={**with_mpi(None, None, {}), str(mpiexec): said.value})["MPI"]
        assert found["verdict"] == "problem"
        assert f"{mpiexec} --version: " in found["found"] and text in found["found"]


def test_gpus_are_listed_with_what_reaches_what(doctor, monkeypatch, tmp_path):
    monkeypatch.setattr(gpus, "DRIVER_VERSION", tmp_path / "version")
    shown = {"driver": "CUDA 12.4", "gpus": [GPU, GPU], "apart": []}
    found = doctor(gpus=shown)["GPUs"]
    assert brief(found) == ("ok", "2, driver for CUDA 12.4; all reach each other")
    assert found["details"] == ["GPU 0: Fast 9000, 80 GiB", "GPU 1: Fast 9000, 80 GiB"]
    (tmp_path / "version").write_text("550.54\n")
    for apart, text in (([[0, 1], [1, 0]], "0 and 1"), ([[1, 0]], "1 to 0")):
        found = doctor(gpus={**shown, "apart": apart})["GPUs"]
        assert brief(found) == (
            "warning", f"2, driver 550.54 for CUDA 12.4; no peer access between {text}",
        )  # fmt: skip
    for failed in (NoAnswer("no answer within 10 s"), {"failed": "cuInit: unknown error (999)"}):
        found = doctor(gpus=failed)["GPUs"]
        assert found["verdict"] == "problem" and "the driver does not work: " in found["found"]


def test_a_gpu_that_cannot_be_used_is_a_warning(doctor, monkeypatch, tmp_path):
    monkeypatch.setattr(gpus, "DEVICES", tmp_path)
    assert brief(doctor()["GPUs"]) == ("ok", "no GPU")
    (tmp_path / "nvidia0").touch()
    found = doctor(gpus={"driver": None, "why": "no libcuda", "gpus": [], "apart": []})["GPUs"]
    assert found["verdict"] == "warning" and "no libcuda" in found["found"]


LIBCUDA = """
#include <string.h>
#include <unistd.h>
int cuInit(unsigned flags) { if (INIT < 0) for (;;) pause(); return INIT; }
int cuGetErrorString(int code, const char** text) { *text = "no such luck"; return 0; }
int cuDriverGetVersion(int* version) { *version = 12040; return 0; }
int cuDeviceGetCount(int* count) { *count = 2; return 0; }
int cuDeviceGet(int* device, int index) { *device = 7 + index; return 0; }
int cuDeviceGetName(char* name, int size, int device) { strcpy(name, "Fast 9000"); return 0; }
int cuDeviceTotalMem_v2(size_t* bytes, int device) { *bytes = 80ul << 30; return 0; }
int cuDeviceCanAccessPeer(int* can, int device, int peer) { *can = device < peer; return 0; }
"""


@pytest.mark.parametrize(
    ("init", "answer"),
    [
        (0, {"driver": "CUDA 12.4", "gpus": [GPU, GPU], "apart": [[1, 0]]}),
        (100, {"driver": None, "why": "cuInit: no such luck (100)", "gpus": [], "apart": []}),
        (999, {"failed": "cuInit: no such luck (999)"}),
        (-1, None),
    ],
)
def test_the_driver_is_asked_in_a_process_of_its_own(monkeypatch, tmp_path, init, answer):
    """A made-up driver: it works, has no device, fails, hangs."""
    (tmp_path / "cuda.c").write_text(LIBCUDA)
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    library, source = str(tmp_path / "libcuda.so.1"), str(tmp_path / "cuda.c")
    subprocess.run(
        [compiler, f"-DINIT={init}", "-shared", "-fPIC", "-o", library, source], check=True
    )
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    if answer is not None:
        assert asking.ask("launch.doctor.gpu_probe", seconds=20) == answer
        return
    with pytest.raises(NoAnswer, match=r"no answer within 0.5 s"):
        asking.ask("launch.doctor.gpu_probe", seconds=0.5)


def test_ray_is_looked_at_from_afar(doctor, monkeypatch, tmp_path):
    assert "not installed" in doctor()["Ray"]["found"] or ray_cluster.metadata.version("ray")
    monkeypatch.setattr(ray_cluster.metadata, "version", lambda name: "2.40.0")
    monkeypatch.setattr(ray_cluster, "PROC", tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for name in ("7", "8", "9", "sys"):
        (tmp_path / name).mkdir()
    assert brief(doctor()["Ray"]) == ("ok", "2.40.0, no node runs here")
    (tmp_path / "8" / "comm").write_text("raylet\n")
    (tmp_path / "9" / "comm").write_text("python\n")
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    found = doctor()["Ray"]["found"]
    assert found == "2.40.0, a node runs here (raylet 8), RAY_ADDRESS=head:6379"


def up(speed=0, isup=True):
    return SimpleNamespace(isup=isup, speed=speed)


def at(*addresses):
    family = {True: socket.AF_INET6, False: socket.AF_INET}
    return [SimpleNamespace(family=family[":" in each], address=each) for each in addresses]


@pytest.fixture
def interfaces(monkeypatch):
    """A machine with one interface besides loopback, and a name."""
    names = {"eth0": at("192.0.2.7", "fe80::1%eth0"), "lo": at("127.0.0.1", "::1"), "off": at()}
    states = {"eth0": up(25000), "lo": up(), "off": up(isup=False)}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: names)
    monkeypatch.setattr(psutil, "net_if_stats", lambda: states)
    monkeypatch.setattr(network.socket, "gethostname", lambda: "here")
    monkeypatch.setattr(network, "_resolved", lambda name: ["192.0.2.7"])
    return names, states


def test_interfaces_are_listed(doctor, interfaces):
    _, states = interfaces
    found = doctor()
    assert brief(found["interfaces"]) == ("ok", "2 up")
    shown = ["eth0: 192.0.2.7, fe80::1%eth0, 25 Gb/s", "lo (loopback): 127.0.0.1, ::1"]
    assert found["interfaces"]["details"] == shown
    assert brief(found["host name"]) == ("ok", "here is 192.0.2.7")
    states["eth0"] = up(100)
    assert doctor()["interfaces"]["details"][0].endswith(", 100 Mb/s")


def test_a_name_that_is_loopback_only_is_a_warning(doctor, interfaces, monkeypatch):
    names, _ = interfaces
    monkeypatch.setattr(network, "_resolved", lambda name: ["127.0.1.1"])
    found = doctor()["host name"]
    assert brief(found) == ("warning", "here is 127.0.1.1, loopback only")
    assert "would be told 127.0.1.1" in found["advice"]
    del names["eth0"]  # no other host to tell
    found = doctor()
    assert found["host name"]["verdict"] == "ok"
    assert found["interfaces"]["found"] == "none up but loopback: ranks on this host only"


def test_a_name_that_does_not_resolve_is_a_warning(doctor, interfaces, monkeypatch):
    def unknown(name):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(network, "_resolved", unknown)
    found = doctor()["host name"]
    assert brief(found) == ("warning", "here does not resolve: Name or service not known")
    monkeypatch.setattr(network, "RESOLVING_SECONDS", 0.05)
    monkeypatch.setattr(network, "_resolved", lambda name: time.sleep(0.3))
    assert "no answer within 0.05 s" in doctor()["host name"]["found"]
