"""The stage of `gpu_check.py` that trains models."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from gpu_check_parts import EMULATED, PYTEST, leave, left, shown


def training() -> dict[str, Any]:
    """The example network and the language model, two ranks of one device; the trainer's tests."""
    from launch.commands.train import NEEDED

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
            failed, _ = shown([sys.executable, "-m", "launch", "train", f"configs/{name}.yaml",
                                "-n", "2", *words], min(30.0, left()))  # fmt: skip
            failures.append(failed)
            if not failed:
                rows.append({"model": name, **_trained(run)})
            found["found"] = f"{len(rows)} of {len(models)} models trained"
            leave(found)  # should the rest take too long
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if not EMULATED:
        os.environ["COLLECTIVES_TEST_DEVICES"] = "torch cuda"
        failures.append(shown([*PYTEST, "tests/trainers/test_on_devices.py"], left())[0])
    return found | {"failed": any(failures)}


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
