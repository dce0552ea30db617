"""The stages of `gpu_check.py`, each a program of its own, by its name; it leaves what it found."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from launch.bench.results import Comparison, Result

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
    names = ("devices", "devices_in_graphs", "devices_in_trouble")
    files = [f"tests/collectives/test_{name}.py" for name in names]
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


def sweep() -> dict[str, Any]:
    """Allreduce in place from 1 KiB on: our own, against gloo, and nccl where there are GPUs."""
    from launch.bench.results import compared

    ranks, most, against = 2, "1G", "gloo"
    if EMULATED:
        most, against = "256K", ""
    elif (gpus := _gpus()) > 1:
        ranks, against = min(8, gpus), "gloo,nccl"
        most = "1G" if ranks == 2 else "256M"  # of more ranks gloo takes too long
    plot = ["--plot", str(Path(sys.argv[2]).with_name("sweep.png"))]
    results, failed = _raced(
        ranks, "--device", "cuda", "--algorithm", "symmetric,auto", "--against", against,
        "--places", "in", "--min", "1K", "--max", most, "--factor", "4", "--rounds", "3",
        "--round-ms", "5", *(plot if importlib.util.find_spec("matplotlib") else []),
    )  # fmt: skip
    table = [_row(comparison) for comparison in compared(results)]
    rates = [row["bytes"] / row["symmetric us"] / 1e3 for row in table if "symmetric us" in row]
    words = f"Best of three rounds in turn, float32 sum in place, {ranks} ranks; bound: what every "
    return {"found": f"symmetric at most {max(rates, default=0):.1f} GB/s", "table": table,
            "failed": failed or not rates,
            "words": [words + "rank's copy of as many bytes takes, all at once."]}  # fmt: skip


def _row(comparison: Comparison) -> dict[str, Any]:
    """A size: what each way takes, our best share of the bound, how many times others take it."""
    best = {
        result.variant.replace("auto", "private") or result.who: result.best
        for result in comparison.results
        if result.role != "limit" and result.rounds
    }
    row: dict[str, Any] = {"bytes": comparison.case.nbytes}
    row |= {f"{way} us": round(seconds * 1e6, 1) for way, seconds in best.items()}
    own = min((best[way] for way in ("symmetric", "private") if way in best), default=None)
    if own and comparison.limit is not None:
        bound = comparison.limit.best
        row |= {"bound us": round(bound * 1e6, 1), "of bound": f"{bound / own:.0%}"}
    if own:
        row |= {f"x {who}": round(best[who] / own, 1) for who in ("gloo", "nccl") if who in best}
    return row


def _gpus() -> int:
    from transports.cuda_ipc.nvidia import nvidia_count

    return nvidia_count()


def _raced(ranks: int, *options: str) -> tuple[list[Result], bool]:
    """What `collectives bench allreduce` finds, and whether it failed."""
    from launch.bench.results import read_results

    lines = Path(sys.argv[2]).with_name("bench.jsonl")
    done = subprocess.run(
        [sys.executable, "-m", "launch", "bench", "allreduce", "-n", str(ranks), *options,
         "--json", str(lines)], capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    print(done.stdout[-3000:], done.stderr[-2000:])
    if not lines.exists() or not lines.stat().st_size:
        raise SystemExit(1)
    _, results = read_results(lines)
    lines.unlink()
    return results, done.returncode != 0


def training() -> dict[str, Any]:
    """The example network and the language model, two ranks of one device; the trainer's tests."""
    from launch.commands.train import NEEDED

    until = time.monotonic() + 85
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        print(f"refused: training needs {', '.join(missing)}")
        return {"found": f"refused: no {', '.join(missing)}", "failed": True}
    rows, failures = [], []
    found = {"found": "no model trained", "table": rows}
    folder = Path(tempfile.mkdtemp(prefix="gpu-check-"))
    try:
        _draw_photographs(folder / "photographs")
        models = {
            # name: steps, and settings; as much data as every machine has
            "espcn": (600, [f"data.path={folder}/photographs", "data.held_out=[image0]"]),
            "llm_small": (150, ["data.tokenizer=bytes", "data.vocabulary=0",
                                f"data.path={Path(json.__file__).parent}",
                                f"data.cache={folder}/tokens"]),
        }  # fmt: skip
        for name, (steps, settings) in models.items():
            run = folder / name
            steps = 10 if EMULATED else steps
            settings += ["train.device=cuda", f"run={run}", "train.epochs=2",
                         f"train.steps_per_epoch={steps // 2}",
                         f"train.log_every={steps // 5}"]  # fmt: skip
            words = [word for setting in settings for word in ("--set", setting)]
            failed = _fails([sys.executable, "-m", "launch", "train", f"configs/{name}.yaml",
                             "-n", "2", *words], 35)  # fmt: skip
            failures.append(failed)
            if not failed:
                rows.append({"model": name, **_trained(run)})
            found["found"] = f"{len(rows)} of {len(models)} models trained"
            _leave(found)  # should the rest take too long
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if not EMULATED:
        os.environ["COLLECTIVES_TEST_DEVICES"] = "torch cuda"
        failures.append(_fails([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
                                "tests/trainers/test_on_devices.py"],
                               until - time.monotonic()))  # fmt: skip
    return found | {"failed": any(failures)}


def _fails(command: list[str], seconds: float) -> bool:
    """Whether a program of ours does, or takes longer; its last words are in the report then."""
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
            timeout=seconds,
        )  # fmt: skip
    except subprocess.TimeoutExpired as late:
        print(str(late.stdout)[-3000:], f"not done after {seconds:.0f} s: {' '.join(command)}")
        return True
    print(done.stdout[-3000:])
    return done.returncode != 0


def _leave(found: dict[str, Any]) -> None:
    """What has been found so far."""
    Path(sys.argv[2]).write_text(json.dumps(found) + "\n")


def _draw_photographs(folder: Path) -> None:
    """Images of structure at several scales: samples of photographs are not on every machine."""
    from PIL import Image

    folder.mkdir()
    dice = np.random.default_rng(7)
    for number in range(6):
        image = sum(
            np.kron(dice.random((240 // side, 240 // side, 3)), np.ones((side, side, 1)))
            for side in (2, 6, 24, 60)
        )
        Image.fromarray((np.asarray(image) * 63).astype(np.uint8)).save(
            folder / f"image{number}.png"
        )


def _trained(run: Path) -> dict[str, Any]:
    """The losses of a run, its speed, and where the time of its steps went after the first."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if "loss" in record]
    found = {"first loss": round(steps[0]["loss"], 4), "last loss": round(steps[-1]["loss"], 4)}
    for key in steps[0]:
        if key.endswith("_per_second"):
            found[key.replace("_", " ")] = round(max(step[key] for step in steps[1:]), 1)
        elif key.endswith("_ms"):
            found[key.replace("_", " ")] = round(min(step[key] for step in steps[1:]), 3)
    return found


def shared_memory() -> dict[str, Any]:
    """Allreduce in host memory among as many ranks as there are cores for, against gloo."""
    cores = os.cpu_count() or 2
    rows, failures = [], []
    for size in [each for each in (2, 4, 8, 16) if each <= cores]:
        results, failed = _raced(
            size, "--min", "8", "--max", "16M", "--factor", "64", "--rounds", "3",
            "--against", "gloo", "--no-limit",
        )  # fmt: skip
        failures.append(failed)
        for result in results:
            if result.rounds:
                rows.append({"ranks": size, "bytes": result.case.nbytes, "who": result.who,
                             "us": round(result.best * 1e6, 2)})  # fmt: skip
    return {"found": f"{len(rows)} rows", "table": rows, "failed": any(failures)}


def main() -> int:
    """Run one stage."""
    found = globals()[sys.argv[1].replace(" ", "_")]()
    failed = found.pop("failed", False)
    _leave(found)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
