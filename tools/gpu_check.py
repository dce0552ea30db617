"""Proves the collectives on a machine with a GPU: what is right, what it refuses, what it costs.

    python tools/gpu_check.py --out build/gpu-check             # make gpu-check
    python tools/gpu_check.py --emulated --out build/dry-run    # the same program without a GPU

Each stage is a program of its own with a time limit; one that fails or is refused is named, and the
rest goes on. Writes report.md and results.json, and a plot of the sweep. Needs no network.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
STAGES = {
    # name: seconds it may take, less than eight minutes in all
    "environment": 20,
    "first call": 25,
    "kernels": 25,
    "conformance": 80,
    "hosts": 40,
    "probe": 20,
    "sweep": 75,
    "training": 70,
    "contract": 70,
    "stress": 20,
    "shared memory": 35,
}
CONNECTS = "first call"
"""Without which no other stage finds anything, but for those of the host."""
ON_THE_HOST = ("environment", "shared memory")


def run_stage(name: str, seconds: int, kind: str, folder: Path) -> dict[str, Any]:
    """What a stage found, or why it found nothing."""
    program = Path(__file__).with_name("gpu_check_stages.py")
    result = folder / f"{name.replace(' ', '-')}.json"
    result.unlink(missing_ok=True)
    environment = dict(os.environ, COLLECTIVES_TEST_DEVICES=kind, PYTHONUNBUFFERED="1")
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    if kind == "emulated":
        environment.setdefault("COLLECTIVES_EMULATED_DEVICES", "1")
    begun = time.monotonic()
    stage = subprocess.Popen(
        [sys.executable, str(program), name, str(result), str(seconds)], env=environment, cwd=ROOT,
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        said, _ = stage.communicate(timeout=seconds)
        outcome = "passed" if stage.returncode == 0 else "failed"
    except subprocess.TimeoutExpired:
        os.killpg(stage.pid, signal.SIGKILL)  # its ranks too, which would hold the device
        said, _ = stage.communicate()
        outcome = f"took more than {seconds} s"
    found = json.loads(result.read_text()) if result.exists() else {}
    took = time.monotonic() - begun
    result.unlink(missing_ok=True)
    print(f"{name}: {outcome}, {took:.0f} s", flush=True)
    if outcome != "passed":
        print("  " + "\n  ".join(said.splitlines()[-30:]), flush=True)
    return {"outcome": outcome, "seconds": round(took, 1), "said": said.strip()[-6000:], **found}


def main() -> int:
    """Run the stages and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu-check")
    parser.add_argument("--emulated", action="store_true", help="a dry run on emulated devices")
    parser.add_argument("--only", action="append", choices=tuple(STAGES))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    kind = "emulated" if options.emulated else "cupy"
    results: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "machine": platform.platform(),
        "cores": os.cpu_count(),
        "arrays": kind,
        "stages": {},
    }
    stages = results["stages"]
    for name, seconds in STAGES.items():
        if options.only and name not in options.only:
            continue
        connects = stages.get(CONNECTS, {}).get("outcome", "passed") == "passed"
        if connects or name in ON_THE_HOST:
            stages[name] = run_stage(name, seconds, kind, options.out)
        else:
            stages[name] = {"outcome": "not run", "seconds": 0, "said": f"{CONNECTS} did not pass"}
        # Written each time: what has been found is kept, whatever comes.
        (options.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        (options.out / "report.md").write_text(report(results))
    failed = [name for name, stage in stages.items() if stage["outcome"] != "passed"]
    print(f"report: {options.out / 'report.md'}")
    return 1 if failed else 0


def report(results: dict[str, Any]) -> str:
    """The page."""
    lines = [
        f"# GPU check, {results['date']}",
        "",
        f"{results['machine']}, {results['cores']} cores, arrays of {results['arrays']}.",
        *(["", "**A dry run on emulated devices: it says nothing of a GPU.**"]
          if results["arrays"] == "emulated" else []),
        "",
        "| stage | outcome | seconds | found |",
        "|---|---|---|---|",
    ]  # fmt: skip
    for name, stage in results["stages"].items():
        lines.append(
            f"| {name} | {stage['outcome']} | {stage['seconds']} | {stage.get('found', '')} |"
        )
    for name, stage in results["stages"].items():
        if table := stage.get("table"):
            lines += ["", f"## {name}", "", *stage.get("words", []), "", *_table(table)]
        if stage["outcome"] != "passed":
            lines += ["", f"## {name}: what it said", "", "```", stage["said"][-3000:], "```"]
    return "\n".join(lines) + "\n"


def _table(rows: list[dict[str, Any]]) -> list[str]:
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [
        "| " + " | ".join(names) + " |",
        "|" + "---|" * len(names),
        *("| " + " | ".join(str(row.get(name, "")) for name in names) + " |" for row in rows),
    ]


if __name__ == "__main__":
    sys.exit(main())
