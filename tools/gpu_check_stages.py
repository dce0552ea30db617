"""The stages of `gpu_check.py`, each a program of its own, by its name; it leaves what it found."""

from __future__ import annotations

import contextlib
import multiprocessing
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from gpu_check_parts import EMULATED, KIND, PATIENCE, PYTEST, leave, left, shown
from gpu_check_racing import shared_memory, sweep
from gpu_check_training import training

SIZES = (2, 3, 4, 8) if not EMULATED else (2, 3)


def environment() -> dict[str, Any]:
    """What there is, and what it refuses."""
    from transports import _native

    rows = [
        {"what": "python", "found": sys.version.split()[0]},
        {"what": "our native module", "found": str(_native.__file__)},
    ]
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


def _first(comm: Any) -> float:
    from harness import device_arrays as arrays

    comm.timeout = PATIENCE
    begun = time.monotonic()
    for kind in _kinds():
        x = arrays.to_device(np.full(1000, comm.rank + 1.0, np.float32), kind)
        found = arrays.to_host(comm.allreduce(x), kind)
        assert (found == comm.size * (comm.size + 1) / 2).all(), found[:5]
    return time.monotonic() - begun


def first_call() -> dict[str, Any]:
    """Two ranks connect, add up and part: what everything else needs."""
    import launch

    seconds = launch.spawn(_first, 2, timeout=left())
    return {"found": f"two ranks connect and add up in {max(seconds):.1f} s"}


def _kinds() -> tuple[str, ...]:
    """Of arrays here; torch's too where it has CUDA."""
    if EMULATED:
        return ("emulated", "torch emulated")
    with contextlib.suppress(ImportError):
        import torch

        if torch.cuda.is_available():
            return (KIND, "torch cuda")
    return (KIND,)


def _compile(pair: tuple[int, int], architecture: str) -> None:
    import cupy

    from collectives.settings import kernel_folder
    from transports.cuda_ipc.compiling import compiled

    compiled(cupy.cuda.nvrtc, *pair, architecture, kernel_folder())


def kernels() -> dict[str, Any]:
    """Compiles all of them at once, where each rank would do so one after the other."""
    if EMULATED:
        return {"found": "an emulated device needs none"}
    import cupy

    from transports import _native
    from transports.cuda_ipc.compiling import architecture_for

    capability = int(cupy.cuda.Device(0).compute_capability)
    architecture = architecture_for(capability, cupy.cuda.nvrtc)
    pairs = [(d, o) for d in range(13) for o in range(10) if _native.supports(d, o)]
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(partial(_compile, architecture=architecture), pairs))
    return {"found": f"{len(pairs)} for {architecture}"}


def _conform(
    comm: Any, counts: tuple[int, ...], kinds: tuple[str, ...], one_sided: bool = True
) -> Any:
    from harness.conformance import sweep

    comm.timeout = PATIENCE
    return sweep(comm, counts, kinds, full=False, one_sided=one_sided)


def conformance() -> dict[str, Any]:
    """Every algorithm, type and operation against numpy."""
    import launch

    rows: list[dict[str, Any]] = []
    found = {"found": "nothing yet", "table": rows}
    for size in SIZES:
        begun = time.monotonic()
        kinds = _kinds() if size == 2 else (KIND,)
        ranks = launch.spawn(_conform, size, (0, 1, 11, 70001), kinds, timeout=left())
        failures = [problem for problems, _ in ranks for problem in problems]
        passed = sum(good for _, tally in ranks for good, _ in tally.values())
        rows.append({"ranks": size, "arrays": " and ".join(kinds), "passed": passed,
                     "failed": len(failures),
                     "seconds": round(time.monotonic() - begun, 1)})  # fmt: skip
        print(*failures[:10], rows[-1], sep="\n", flush=True)
        found["found"] = f"{sum(row['failed'] for row in rows)} failed"
        leave(found)
    return found | {"failed": any(row["failed"] for row in rows)}


def _between_hosts(comm: Any, counts: tuple[int, ...]) -> tuple[Any, dict[int, float]]:
    """What the suite finds, and seconds of an allreduce of so many bytes."""
    from harness import device_arrays as arrays

    found = _conform(comm, counts, (KIND,), one_sided=False)
    seconds = {}
    for nbytes in (1 << 20, 1 << 26) if not EMULATED else (1 << 16,):
        x = arrays.to_device(np.ones(nbytes // 4, np.float32), KIND)
        rounds = []
        for _ in range(5):
            arrays.finish(KIND)
            comm.barrier()
            begun = time.perf_counter()
            comm.allreduce(x, out=x, op="max")
            arrays.finish(KIND)
            rounds.append(time.perf_counter() - begun)
        seconds[nbytes] = min(rounds)
    return found, seconds


def hosts() -> dict[str, Any]:
    """Two "hosts" of two ranks, all on this machine's devices: memory in a host, MPI across.

    Emulated, the second has one.
    """
    try:
        from harness.under_mpi import mpi_spawn
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        return {"failed": True, "found": f"no MPI to carry them: {error}"}
    counts, places = ((11, 70001), "aabb") if not EMULATED else ((11, 300), "aab")
    ranks = mpi_spawn(_between_hosts, len(places), counts, hosts=places, timeout=left())
    failures = [problem for (problems, _), _ in ranks for problem in problems]
    passed = sum(good for (_, tally), _ in ranks for good, _ in tally.values())
    print(*failures[:10], sep="\n", flush=True)
    rows = [
        {"bytes": nbytes, "allreduce ms": round(1e3 * max(each[nbytes] for _, each in ranks), 3)}
        for nbytes in ranks[0][1]
    ]
    library = MPI.Get_library_version().split("\n")[0].strip()
    return {
        "found": f"{passed} passed, {len(failures)} failed, over {library}",
        "table": rows,
        "failed": bool(failures),
    }


def contract() -> dict[str, Any]:
    """The tests of calls on devices and of what goes wrong, on this machine's devices."""
    names = ("devices", "devices_by_the_host", "devices_in_graphs", "devices_in_trouble")
    files = [f"tests/collectives/test_{name}.py" for name in names]
    failed, lines = shown([*PYTEST, *files], left())
    return {"found": lines[-1] if lines else "nothing", "failed": failed}


def _stress(comm: Any, seconds: float) -> int:
    from harness import device_arrays as arrays

    comm.timeout = PATIENCE
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
    rounds = launch.spawn(_stress, size, 8.0, timeout=left())
    return {"found": f"{rounds[0]} rounds of 36 calls among {size} ranks, all right"}


def _probe(comm: Any) -> dict[str, float]:
    """Handoffs between two ranks' streams, and copies on the device alone."""
    from harness import device_arrays as arrays

    from transports.cuda_ipc.device import Signal, State

    comm.timeout = PATIENCE
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

    found = launch.spawn(_probe, 2, timeout=left())[0]
    return {
        "found": f"handoff {found['handoff'] * 1e6:.1f} us (median "
        f"{found['handoff_median'] * 1e6:.1f}), copy {found['copy'] / 1e9:.0f} GB/s",
        "handoff_seconds": found["handoff"],
        "copy_bytes_per_second": found["copy"],
    }


STAGES = {
    stage.__name__.replace("_", " "): stage
    for stage in (
        environment, first_call, kernels, conformance, hosts, probe, sweep, training, contract,
        stress, shared_memory,
    )
}  # fmt: skip


def main() -> int:
    """Run one stage."""
    found = STAGES[sys.argv[1]]()
    failed = found.pop("failed", False)
    leave(found)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
