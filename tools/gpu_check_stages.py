"""The stages of `gpu_check.py`, each a program of its own, by its name; it leaves what it found."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
KIND = os.environ.get("COLLECTIVES_TEST_DEVICES", "emulated")
EMULATED = KIND == "emulated"
SIZES = (2, 3, 4, 8) if not EMULATED else (2, 3)


def environment() -> dict[str, Any]:
    """What there is, and what it refuses."""
    rows = [{"what": "python", "found": sys.version.split()[0]}]
    if EMULATED:
        return {"found": "emulated", "table": rows}
    import cupy

    from transports.cuda_ipc.nvidia import nvidia_count, nvidia_device

    runtime = cupy.cuda.runtime
    rows += [
        {"what": "cupy", "found": cupy.__version__},
        {"what": "driver", "found": runtime.driverGetVersion()},
        {"what": "runtime", "found": runtime.runtimeGetVersion()},
    ]
    for ordinal in range(nvidia_count()):
        device = nvidia_device(ordinal)
        with cupy.cuda.Device(ordinal):
            free, total = runtime.memGetInfo()
        rows.append({"what": f"device {ordinal}", "found": f"{device.name}, {device.identity}, "
                     f"{free >> 20} of {total >> 20} MiB free"})  # fmt: skip
        address = device.allocate(1 << 21)
        try:
            device.export(address)
            rows.append({"what": "memory handles", "found": "given"})
        except Exception as error:
            rows.append({"what": "memory handles", "found": f"refused: {error}"})
        device.free(address)
    return {"found": f"{nvidia_count()} device(s)", "table": rows}


def conformance() -> dict[str, Any]:
    """Every algorithm, type and operation against numpy."""
    from harness.conformance import sweep

    import launch

    rows, wrong = [], []
    for size in SIZES:
        begun = time.monotonic()
        kinds = (KIND,)
        ranks = launch.spawn(sweep, size, (0, 1, 11, 70001), kinds, False, timeout=140)
        failures = [problem for problems, _ in ranks for problem in problems]
        passed = sum(good for _, tally in ranks for good, _ in tally.values())
        rows.append({"ranks": size, "passed": passed, "failed": len(failures),
                     "seconds": round(time.monotonic() - begun, 1)})  # fmt: skip
        wrong += failures[:10]
    for line in wrong:
        print(line)
    return {"found": f"{sum(row['failed'] for row in rows)} failed", "table": rows,
            "failed": bool(wrong)}  # fmt: skip


def contract() -> dict[str, Any]:
    """The tests of calls on devices and of what goes wrong, on this machine's devices."""
    files = ["tests/collectives/test_devices.py", "tests/collectives/test_devices_in_trouble.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    print(done.stdout[-4000:], done.stderr[-2000:])
    return {"found": done.stdout.strip().splitlines()[-1], "failed": done.returncode != 0}


def _stress(comm: Any, seconds: float) -> int:
    from harness import device_arrays as arrays

    dice = np.random.default_rng(5)  # the same on every rank
    until, rounds = time.monotonic() + seconds, 0
    sizes = [int(dice.integers(1, 200_000)) for _ in range(12)]
    mine = [arrays.symmetric(comm, np.full(n, comm.rank + 1.0, np.float32), KIND) for n in sizes]
    total = float(comm.size * (comm.size + 1) / 2)
    while comm.allreduce(np.array([time.monotonic() < until]), op="min")[0]:
        works = []
        for n, window in zip(sizes, mine, strict=True):
            x = arrays.to_device(np.full(n, comm.rank + 1.0, np.float32), KIND)
            _busy(x)  # on the caller's stream, before and beside the calls
            works.append((comm.allreduce(x, async_op=True), total))
            works.append((comm.allreduce(window, out=x, async_op=True), total))
            works.append((comm.broadcast(x, root=rounds % comm.size, async_op=True), total))
        for work, wanted in works:
            found = arrays.to_host(work.wait(), KIND)
            if not (found == wanted).all():
                raise AssertionError(f"round {rounds}: {found[found != wanted][:5]} for {wanted}")
        rounds += 1
    return rounds


def _busy(x: Any) -> None:
    """Work of the user's on the current stream, that leaves x as it was."""
    if EMULATED:
        return
    import cupy

    a = cupy.ones((1024, 1024), cupy.float32)
    for _ in range(3):
        a = a @ a * 1e-3
    if KIND == "cupy":
        x *= 1 + 0 * a[0, 0]


def stress() -> dict[str, Any]:
    """Random lengths, many at once, beside busy streams."""
    import launch

    size = 2 if EMULATED else 4
    rounds = launch.spawn(_stress, size, 10.0, timeout=50)
    return {"found": f"{rounds[0]} rounds of 36 calls among {size} ranks, all right"}


def _probe(comm: Any) -> dict[str, float]:
    """Handoffs between two ranks' streams, and copies on the device alone."""
    from harness import device_arrays as arrays

    from transports.cuda_ipc.device import Signal, State

    comm.allreduce(arrays.to_device(np.ones(4, np.float32), KIND))
    engine, device = comm._connected.engine, comm._connected.device
    ping, pong = engine.wiring.note_flag(0, 1), engine.wiring.note_flag(1, 0)
    turns = 50
    first = (Signal(ping, State.FULL, False), Signal(pong, State.FULL, True),
             Signal(pong, State.EMPTY, False))  # fmt: skip
    second = (Signal(ping, State.FULL, True), Signal(ping, State.EMPTY, False),
              Signal(pong, State.FULL, False))  # fmt: skip
    found = []
    for _ in range(7):
        arrays.finish(KIND)
        comm.barrier()
        begun = time.perf_counter()
        with device.activated():
            for _ in range(turns):
                device.signal(engine.stream, first if comm.rank == 0 else second)
        arrays.finish(KIND)
        found.append((time.perf_counter() - begun) / (2 * turns))
    nbytes = (1 << 30) if not EMULATED else 1 << 20
    copies = []
    if comm.rank == 0:
        a, b = device.allocate(nbytes), device.allocate(nbytes)
        for _ in range(6):
            arrays.finish(KIND)
            begun = time.perf_counter()
            with device.activated():
                for _ in range(8):
                    device.copy(engine.stream, a, b, nbytes)
            arrays.finish(KIND)
            copies.append(8 * nbytes / (time.perf_counter() - begun))
        device.free(a)
        device.free(b)
    comm.barrier()
    return {"handoff": min(found), "handoff_median": statistics.median(found),
            "copy": max(copies, default=0.0)}  # fmt: skip


def probe() -> dict[str, Any]:
    """What a handoff between two processes on the device takes, and what it copies in a second."""
    import launch

    found = launch.spawn(_probe, 2, timeout=40)[0]
    return {
        "found": f"handoff {found['handoff'] * 1e6:.1f} us (median "
        f"{found['handoff_median'] * 1e6:.1f}), copy {found['copy'] / 1e9:.0f} GB/s",
        "handoff_seconds": found["handoff"],
        "copy_bytes_per_second": found["copy"],
    }


def _sweep(comm: Any, sizes: list[int]) -> list[dict[str, Any]]:
    from harness import device_arrays as arrays

    gloo = _gloo(comm)
    rows = []
    for nbytes in sizes:
        zeros = np.zeros(nbytes // 4, np.float32)
        x, window = arrays.to_device(zeros, KIND), arrays.symmetric(comm, zeros, KIND)
        ways: dict[str, Any] = {
            "symmetric": lambda window=window: comm.allreduce(window, out=window),
            "private": lambda x=x: comm.allreduce(x, out=x),
        }
        if gloo is not None:
            ways["gloo"] = gloo(nbytes)
        best = dict.fromkeys(ways, float("inf"))
        for _ in range(4):  # in turn: the machine changes
            for way, call in ways.items():
                calls = max(1, min(50, (64 << 20) // nbytes)) if way != "gloo" else 1
                call()
                arrays.finish(KIND)
                comm.barrier()
                begun = time.perf_counter()
                for _ in range(calls):
                    call()
                arrays.finish(KIND)
                took = np.array([(time.perf_counter() - begun) / calls])
                best[way] = min(best[way], float(comm.allreduce(took, op="max")[0]))
        rows.append({"bytes": nbytes, **best})
    return rows


def _gloo(comm: Any) -> Any:
    """Allreduce of CUDA tensors by gloo, if torch has CUDA."""
    try:
        import torch
        import torch.distributed as dist

        if EMULATED or not torch.cuda.is_available():
            return None
        import socket

        port = 0
        if comm.rank == 0:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
        port = comm.broadcast_object(port)
        dist.init_process_group(
            "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=comm.rank, world_size=comm.size
        )
    except Exception as error:
        print(f"gloo cannot take part: {error}")
        return None

    def prepare(nbytes: int) -> Any:
        x = torch.zeros(nbytes // 4, device="cuda")
        return lambda: dist.all_reduce(x)

    return prepare


def sweep() -> dict[str, Any]:
    """Allreduce of two ranks, 1 KiB to 1 GiB."""
    import launch

    most = 18 if EMULATED else 30
    sizes = [1 << power for power in range(10, most + 1, 2)]
    rows = launch.spawn(_sweep, 2, sizes, timeout=85)[0]
    found = _probe_of_run()
    table = []
    for row in rows:
        nbytes = row["bytes"]
        line = {"bytes": nbytes}
        for way in ("symmetric", "private", "gloo"):
            if way in row:
                line[f"{way} us"] = round(row[way] * 1e6, 1)
        # Each of two ranks reads n bytes and writes n bytes; a copy of m bytes reads and writes m.
        if found:
            bound = 2 * nbytes / found["copy_bytes_per_second"]
            line["bound us"] = round(bound * 1e6, 1)
            line["symmetric of bound"] = f"{bound / row['symmetric']:.0%}"
        if "gloo" in row:
            line["x gloo"] = round(row["gloo"] / min(row["symmetric"], row["private"]), 1)
        table.append(line)
    best = max(row["bytes"] / row["symmetric"] for row in rows)
    return {"found": f"symmetric at most {best / 1e9:.1f} GB/s", "table": table, "rows": rows,
            "words": ["Best of four rounds in turn, float32 sum in place, two ranks."]}  # fmt: skip


def _probe_of_run() -> dict[str, float]:
    """What the probe of the same check has found, if it came before."""
    file = Path(sys.argv[2]).with_name("results.json")
    if not file.exists():
        return {}
    found = json.loads(file.read_text())["stages"].get("probe", {})
    return found if "copy_bytes_per_second" in found else {}


def shared_memory() -> dict[str, Any]:
    """Allreduce in host memory among as many ranks as there are cores for, against gloo."""
    cores = os.cpu_count() or 2
    rows = []
    for size in [each for each in (2, 4, 8, 16) if each <= cores]:
        lines = Path(sys.argv[2]).with_name(f"shm-{size}.jsonl")
        done = subprocess.run(
            [sys.executable, "-m", "launch", "bench", "allreduce", "-n", str(size), "--min", "8",
             "--max", "16M", "--factor", "64", "--rounds", "3", "--against", "gloo", "--json",
             str(lines), "--no-limit"], capture_output=True, text=True, cwd=ROOT,
        )  # fmt: skip
        print(done.stdout[-3000:], done.stderr[-2000:])
        if done.returncode:
            raise SystemExit(1)
        from launch.bench.results import read_results

        _, results = read_results(lines)
        lines.unlink()
        for result in results:
            if result.rounds:
                rows.append({"ranks": size, "bytes": result.case.nbytes, "who": result.who,
                             "us": round(min(result.rounds) * 1e6, 2)})  # fmt: skip
    return {"found": f"{len(rows)} rows", "table": rows}


def main() -> int:
    """Run one stage."""
    name, file = sys.argv[1], Path(sys.argv[2])
    found = globals()[name.replace(" ", "_")]()
    failed = found.pop("failed", False)
    file.write_text(json.dumps(found) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
