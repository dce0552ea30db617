"""`collectives train` and `collectives upscale` as users start them, killed ranks included."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import yaml
from PIL import Image

import collectives
import launch
from launch.command_line import main
from launch.commands import train
from trainers.__main__ import main as rank_program
from trainers.checkpoints import Checkpoint, read_checkpoint, write_checkpoint
from trainers.super_resolution.network import Net
from trainers.super_resolution.upscaling import trained_network

SOURCES = str(Path(launch.__file__).parents[1])
FAIL = 2


@pytest.fixture
def file(settings, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture
def start(tmp_path):
    """Starts `collectives train` as a process of its own."""
    started = []

    def start_it(*words):
        environment = {**os.environ, "PYTHONPATH": SOURCES, "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(
            [sys.executable, "-m", "launch", "train", *map(str, words)],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start_it
    for process in started:
        process.terminate()
        process.communicate()


def rank_of(job: subprocess.Popen[str], rank: int) -> psutil.Process:
    (found,) = (
        child
        for child in psutil.Process(job.pid).children(recursive=True)
        if child.environ().get("RANK") == str(rank) and "trainers" in child.cmdline()
    )
    return found


REMOTE_SHELL = """\
#!/bin/sh
while [ "${1#-}" != "$1" ]; do shift; done
export COLLECTIVES_HOST_ID="$1"
shift
exec sh -c "$*"
"""


@pytest.mark.timeout(300)
def test_ranks_of_two_hosts_train(start, file, tmp_path, settings):
    shell = tmp_path / "remote_shell"  # which stays here, and lets ranks think that it does not
    shell.write_text(REMOTE_SHELL)
    shell.chmod(0o755)
    job = start(file, "--launcher", "mpi", "--hosts", "a,b", "-n", "2", "--remote-shell", shell,
                "--set", "train.epochs=1")  # fmt: skip
    said, errors = job.communicate(timeout=250)
    assert job.returncode == 0, errors
    assert "2 ranks on a:1, b:1, by" in errors
    assert re.search("parameters [0-9a-f]{16}, the same bits on all 2 ranks", said)
    assert "parameters on 2 ranks" in said
    assert (Path(settings["run"]) / "checkpoint-00000002.safetensors").exists()
    job = start(file, "--hosts", "a,b")
    assert "--hosts is for --launcher mpi" in job.communicate(timeout=60)[1]
    assert job.returncode == FAIL


@pytest.mark.timeout(300)
@pytest.mark.parametrize("fault", [pytest.param("diverges", marks=pytest.mark.full), "full disk"])
def test_what_the_user_can_put_right_is_one_message(start, file, settings, fault):
    run = Path(settings["run"])
    words = ["--set", "optimizer.rate=1e30"]
    expected = "the loss of step "
    if fault == "full disk":
        run.mkdir()
        (run / ".checkpoint-00000002.safetensors.part").symlink_to("/dev/full")
        words, expected = [], f"cannot write {run}/checkpoint-00000002.safetensors ("
    job = start(file, "-n", 2, *words)
    _, errors = job.communicate()
    assert job.returncode == 1
    assert "Traceback" not in errors
    said = [line for line in errors.splitlines() if expected in line]
    assert said[0].startswith(f"[0] collectives train: {expected}")
    assert said[0].endswith("no checkpoint has been written, so --resume has nothing to go on from")
    assert said[1:] == [said[0].removeprefix("[0] ")], "once more as the cause, by nobody else"
    assert "rank 0 (pid " in errors
    if fault == "full disk":
        assert "AbortedError: rank 0 raised CheckpointError" in errors


@pytest.mark.full  # the restarted run below is killed, too
@pytest.mark.timeout(300)
def test_a_killed_rank_ends_the_job_and_leaves_a_checkpoint(start, file, settings):
    run = Path(settings["run"])
    job = start(file, "-n", 2, "--set", "train.epochs=100000")
    for line in job.stdout:  # until a checkpoint has been written
        if "gain" in line:
            break
    rank_of(job, 1).send_signal(signal.SIGKILL)
    _, errors = job.communicate()
    assert job.returncode == 128 + signal.SIGKILL
    assert "rank 1" in errors
    assert "SIGKILL" in errors
    left = read_checkpoint(run)
    assert left.step >= 2
    assert not list(run.glob(".*"))


@pytest.mark.timeout(300)
@pytest.mark.full
def test_a_restarted_run_ends_with_the_bits_of_one_that_never_failed(
    start, file, settings, whole_run
):
    run = Path(settings["run"])
    # Rank 0 cannot write its last checkpoint: to open a pipe that nobody reads is to wait.
    run.mkdir()
    pipe = run / ".checkpoint-00000006.safetensors.part"
    os.mkfifo(pipe)
    job = start(file, "-n", 2, "--threads", 1, "--max-restarts", 1)
    for line in job.stdout:
        if "step 4/6" in line:  # the checkpoint before that has been written
            break
    rank_of(job, 1).send_signal(signal.SIGKILL)
    pipe.unlink()
    output, errors = job.communicate()
    assert job.returncode == 0, errors
    assert "rank 1 (pid " in errors
    assert "failed first, killed by SIGKILL" in errors
    assert errors.endswith("\ncollectives: restart 1 of 1\n")
    assert output.startswith("[0] restart 1 of this run\n[0] resuming from ")
    expected, found = read_checkpoint(whole_run[0]), read_checkpoint(run)
    assert found.step == expected.step == 6
    assert found.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        assert found.tensors[name].numpy().tobytes() == tensor.numpy().tobytes(), name


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("number", "to"),
    [
        (signal.SIGINT, "launcher"),
        pytest.param(signal.SIGTERM, "launcher", marks=pytest.mark.full),
        pytest.param(signal.SIGTERM, 1, marks=pytest.mark.full),
    ],
)
def test_a_signal_lets_the_step_end_and_saves(start, file, settings, number, to):
    """Whoever gets it, all stop after the same step, in the middle of an epoch as well."""
    longer = ("train.epochs=1", "train.steps_per_epoch=100000")
    job = start(file, "-n", 2, *(word for each in longer for word in ("--set", each)))
    for line in job.stdout:
        if "step " in line:
            break
    target = job if to == "launcher" else rank_of(job, to)
    target.send_signal(number)
    output, errors = job.communicate()
    assert "Traceback" not in errors
    name = signal.Signals(number).name
    assert f"[0] stopped by {name}: " in output
    saved = read_checkpoint(Path(settings["run"]))
    assert saved.step >= 1
    assert output.count("checkpoint") == 0  # the launcher says where it is
    assert job.returncode == 128 + number
    if to == "launcher":
        asked, said = errors.splitlines()[-2:]
        assert asked == f"{name}: ending rank 0, 1 (once more kills at once)"
        path = said.removeprefix("collectives train: stopped; --resume goes on from ")
        assert Path(path).parent == Path(settings["run"])
    if number == signal.SIGTERM:
        return
    at = f"train.epochs={saved.step + 2}"
    more = start(file, "-n", 1, "--resume", "--set", at, "--set", "train.steps_per_epoch=1")
    output, errors = more.communicate()
    assert more.returncode == 0, errors
    assert f"checkpoint-{saved.step:08d}.safetensors" in output
    assert f"2 of {saved.step + 2} steps" in output


def test_ctrl_c_while_a_rank_prepares(monkeypatch):
    def interrupted(file, settings):
        raise KeyboardInterrupt

    monkeypatch.setattr("trainers.configuration.read_config", interrupted)
    assert rank_program(["any.yaml"]) == 128 + signal.SIGINT


def test_a_rank_that_lost_another_awaits_its_own_ctrl_c(file, monkeypatch):
    def another_is_gone(config, comm, **how):
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        raise collectives.AbortedError("rank 1 was interrupted")

    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        monkeypatch.setattr("trainers.run.carry_out", another_is_gone)
        assert rank_program([str(file)]) == 128 + signal.SIGINT
        monkeypatch.setattr("trainers.__main__.ALL_ARE_INTERRUPTED_WITHIN", 0)
        with pytest.raises(collectives.AbortedError):
            rank_program([str(file)])
        signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_print_config_is_a_configuration(file, capsys):
    assert main(["train", str(file), "--print_config", "--set", "train.epochs=4"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["train"]["epochs"] == 4
    assert shown["optimizer"]["betas"] == [0.9, 0.99]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "train.epoch=3"], "unknown key 'train.epoch' (did you mean 'train.epochs'?)"),
        (["--set", "train.device=gpu"], "expected 'cpu' or 'cuda', found 'gpu'"),
        (["-n", "8"], "at least one sample for each of the 8 ranks, found 7"),
        (["-n", "0"], "the number of ranks must be at least 1, not 0"),
        (["--max-restarts", "-1"], "the number of restarts must be at least 0, not -1"),
        (["--resume"], "expected a file checkpoint-*.safetensors in "),
        (["--set", "data.path=/nowhere"], "expected a folder of images, found nothing at /nowhere"),
        (["--set", "data.crop=40"], "expected at least 88 x 88 pixels"),
        (["--set", "run=/proc/run"], "cannot write into the run's folder /proc/run"),
    ],
)
def test_what_is_wrong_is_said_before_a_rank_starts(file, capsys, words, message):
    assert main(["train", str(file), *words]) == FAIL
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("collectives train: error: ")
    assert message in output.err


def test_an_unreadable_image_is_named(file, photographs, tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("first.png", "grey.png"):
        (folder / name).write_bytes((photographs / name).read_bytes())
    (folder / "broken.jpg").write_text("no image")
    assert main(["train", str(file), "--set", f"data.path={folder}"]) == FAIL
    assert "broken.jpg: expected an image" in capsys.readouterr().err


def test_missing_packages_are_named(file, monkeypatch, capsys):
    monkeypatch.setattr(train, "NEEDED", ("torch", "no_such_package"))
    assert main(["train", str(file)]) == FAIL
    assert "(no_such_package): pip install 'collectives-runtime[train]'" in capsys.readouterr().err


@pytest.fixture
def checkpoint(tmp_path):
    """Of an untrained network that enlarges by 2."""
    torch.manual_seed(0)
    weights = {f"model/{name}": value for name, value in Net(2).state_dict().items()}
    config = {"model": {"upscale_factor": 2}}
    saved = Checkpoint(task="super_resolution", step=1, config=config, tensors=weights)
    return write_checkpoint(tmp_path, saved, keep=1)


def test_upscale_a_picture(checkpoint, photographs, tmp_path, capsys):
    target = tmp_path / "large.png"
    source = photographs / "first.png"
    for origin in (checkpoint, checkpoint.parent):
        assert main(["upscale", str(origin), str(source), "-o", str(target)]) == 0
        assert Image.open(target).size == (144, 120)
        target.unlink()
    assert "(72 x 60) -> " in capsys.readouterr().out
    assert trained_network(checkpoint).upscale_factor == 2


@pytest.mark.parametrize(
    ("image", "output", "message"),
    [
        ("none.png", "out.png", "none.png: cannot be read as an image: No such file"),
        ("text.png", "out.png", "text.png: expected an image"),
        ("first.png", "out", "expected a name that ends as an image's does"),
        ("first.png", "nowhere/out.png", "the folder "),
        ("clear.png", "out.jpg", "cannot hold an image of mode RGBA"),
    ],
)
def test_what_cannot_be_upscaled(checkpoint, photographs, tmp_path, capsys, image, output, message):
    (tmp_path / "text.png").write_text("words")
    source = next((f / image for f in (photographs, tmp_path) if (f / image).exists()), image)
    words = ["upscale", str(checkpoint), str(source), "-o", str(tmp_path / output)]
    assert main(words) == FAIL
    assert message in capsys.readouterr().err
    assert not (tmp_path / output).exists()


def test_a_checkpoint_of_something_else(photographs, tmp_path, capsys):
    other = Checkpoint(task="cooking", step=1, config={}, tensors={"model/x": torch.ones(1)})
    path = write_checkpoint(tmp_path, other, keep=1)
    words = [str(photographs / "first.png"), "-o", str(tmp_path / "out.png")]
    assert main(["upscale", str(path), *words]) == FAIL
    assert "expected 'super_resolution', found 'cooking'" in capsys.readouterr().err
    np.save(tmp_path / "x.npy", np.ones(1))
    assert main(["upscale", str(tmp_path / "x.npy"), *words]) == FAIL
    assert "expected a checkpoint" in capsys.readouterr().err
    assert main(["upscale", str(tmp_path / "empty"), *words]) == FAIL
    assert "cannot read the checkpoint" in capsys.readouterr().err
