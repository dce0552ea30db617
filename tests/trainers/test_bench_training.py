"""`collectives bench train`: ways of training in turns, put together from their ranks' times."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from harness.batches import Batch

from launch.bench import training
from launch.bench.training import WARM_UP, default_cases, find_way
from launch.bench.training_results import (
    TrainingResult,
    head_of,
    read_training,
    row_of,
    training_markdown,
    training_table,
)
from launch.command_line import main
from trainers.bench import stepping
from trainers.bench.rank_program import _answer
from trainers.configuration import config_from
from trainers.errors import DataError

FAIL = 2


@pytest.fixture
def file(text_settings, tmp_path):
    text_settings["optimizer"] = {"kind": "adam"}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(text_settings))
    return path


@pytest.mark.timeout(300)
def test_ways_take_turns_and_agree(file, tmp_path, capsys, full):
    record = tmp_path / "run.jsonl"
    against = ["ddp-gloo", *(["sharded", "bfloat16", "one-bucket"] if full else [])]
    code = main(
        ["bench", "train", str(file), "-n", "2", "--against", ",".join(against),
         "--rounds", "2", "--round-ms", "1", "--json", str(record)]
    )  # fmt: skip
    said = capsys.readouterr()
    assert code == 0, said.out + said.err
    header, *lines = map(json.loads, record.read_text().splitlines())
    assert header["kind"] == "training"
    assert (header["ranks"], header["rounds"]) == (2, 2)
    assert header["contenders"]["ddp-gloo"]["gradient_as_bucket_view"] == "True"
    assert [line["who"] for line in lines] == ["ours", *against]
    for line in lines:
        assert line["case"] == str(file)
        assert not line["problem"]
        assert line["steps"] >= 8
        assert len(line["rounds"]) == 2
        assert len(line["losses"]) == WARM_UP
        assert line["losses"] == pytest.approx(lines[0]["losses"], rel=1e-2)
        assert all(seconds > 0 for name, seconds in line["parts"].items() if name != "late")
        assert line["step"] > line["parts"]["compute"]
        assert line["spread"][0] <= line["parts"]["exposed"] <= line["spread"][1]
        assert line["who"] in said.out
    assert "medians of all steps; steps/s of the best of 2 rounds" in " ".join(said.out.split())
    assert "bucket" in lines[0]["facts"]["buckets"]
    _, results = read_training(record)
    assert [each.who for each in results] == ["ours", *against]
    assert main(["bench", "--report", str(record)]) == 0
    text = training_markdown(record)
    assert capsys.readouterr().out == f"{text}\n"
    assert main(["bench", "--report", str(record), "--plot", str(tmp_path / "x.png")]) == FAIL
    assert "training has no plot" in capsys.readouterr().err
    assert text.startswith("2 ranks on ")
    assert "Against DDP over gloo, torch" in text
    assert text.count("\n| ") == 2 + len(results)


@pytest.mark.full
@pytest.mark.timeout(300)
def test_who_does_not_start_is_told_of(file, capsys):
    words = ["bench", "train", str(file), "-n", "1", "--rounds", "1", "--round-ms", "1"]
    assert main([*words, "--against", "ddp-nothing"]) == 1
    said = capsys.readouterr().out
    assert "did not take part: ddp-nothing: " in said
    assert "ours" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--against", "horovod"],
            "unknown contender 'horovod' for training; expected one of ddp-",
        ),
        (["--rounds", "0"], "--rounds must be positive, found 0"),
        (["-n", "0"], "the number of ranks must be at least 1, not 0"),
        (["-n", "8"], "at least one sample for each of the 8 ranks, found 7"),
        (["--plot", "x.png"], "--plot: training has no plot"),
        (["/nowhere.yaml"], "cannot read the configuration /nowhere.yaml"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_started(file, capsys, words, message):
    assert main(["bench", "train", str(file), *words]) == FAIL
    assert message in capsys.readouterr().err


def test_only_training_takes_files(file, capsys):
    assert main(["bench", "allreduce", str(file)]) == FAIL
    assert f"only `train` takes files, found {file}" in capsys.readouterr().err


def test_the_usual_cases_are_those_of_the_readme():
    cases = default_cases(2)
    model = config_from(cases["language model, 10 M"], "usual")
    assert model.train.batch * model.model.context == 2 * 64
    assert config_from(cases["example network"], "usual").train.batch == 8


@pytest.mark.parametrize("spec", ["ddp-", "ddp", "", "ours"])
def test_ways_that_do_not_exist(spec):
    with pytest.raises(ValueError, match="expected one of ddp-gloo, ddp-BACKEND, sharded, bfloat1"):
        find_way(spec)


def result(
    who="ours", exposed=0.001, best=0.1, losses=(1.0, 2.0), norms=((3.0, 4.0), (3.0, 4.0)), **more
):
    parts = {"data": 0.0, "compute": 0.05, "late": 0.0, "exposed": exposed, "optimizer": 0.01}
    return TrainingResult(
        case="c", who=who, rounds=(best, 2 * best), parts=parts, losses=losses, norms=norms, **more
    )


def test_a_step_is_the_median_of_all_steps():
    """Not the best round's: of three rounds a step takes 10, 20 and 30 ms, on each of two ranks."""

    def turn(seconds, steps=4):
        began = seconds * np.arange(steps)
        columns = [0 * began, began, 0 * began, began, began, began + seconds, 0 * began]
        return np.stack([np.stack(columns, axis=1)] * 2)

    runner = training._Runner(SimpleNamespace(contender=find_way("sharded")))
    runner.turns = [turn(0.020), turn(0.010), turn(0.030)]
    runner.first, runner.norms = turn(0.020), np.ones((2, 4))
    found = training._result("c", runner)
    assert found.step == pytest.approx(0.020)
    assert found.best == pytest.approx(100)


def test_what_was_kept_without_the_whole_step_has_no_column_of_it():
    assert head_of([result()])[:2] == ["steps/s", "data"]
    assert head_of([result(problem="gone"), result(step=0.1)])[:2] == ["steps/s", "ms"]
    assert row_of(result(), result())[:3] == ["ours", "10.00", "0.000"]


def test_ratios_are_to_ours():
    ours, other = result(step=0.15), result("ddp-gloo", exposed=0.004, best=0.2, step=0.25)
    assert row_of(other, ours)[:4] == ["ddp-gloo", "5.00", "250.00", "0.000"]
    assert row_of(other, ours)[-2:] == ["4.0", "0.50"]
    assert row_of(ours, ours)[-2:] == ["", ""]
    for wrong in (
        result("ddp-gloo", losses=(1.0, 2.1)),
        result("ddp-gloo", norms=((3.0, 4.2), (3.0, 4.2))),
        result("ddp-gloo", norms=((3.0, 4.0), (3.01, 4.0))),
    ):
        assert row_of(wrong, ours)[0] == "ddp-gloo (other gradients!)"
    assert row_of(TrainingResult(case="c", who="x", problem="gone\nfar"), ours) == ["x", "gone"]
    assert training_table([ours, other, wrong]).row_count == 3


class Lonely(stepping.Ours):
    """A way that averages nothing."""

    def wrap(self, network):
        return network, stepping._adam(network)

    def about(self, model):
        return {}

    def gradient_norm(self, model):
        return stepping.Way.gradient_norm(self, model)

    def gather_seconds(self, model):
        return 0.0


ranks = Batch({"OMP_NUM_THREADS": "1"})
CASE = {
    "task": "language_model",
    "model": {"layers": 1, "width": 32, "context": 16},
    "data": {"tokenizer": "bytes"},
    "train": {"batch": 4, "precision": "float32"},
}


@ranks(2)
def test_a_way_that_does_not_average_is_found(comm):
    folder = Path(comm.broadcast_object(tempfile.mkdtemp() if comm.rank == 0 else None))
    if comm.rank == 0:
        (folder / "text.txt").write_text("".join(f"{n * n} is {n} squared\n" for n in range(400)))
    comm.barrier()
    case = {
        **CASE,
        "data": {**CASE["data"], "path": str(folder / "text.txt"), "cache": str(folder)},
    }
    norms = {}
    for way in (Lonely(comm, ""), *(stepping.Ours(comm, variant) for variant in stepping.VARIANTS)):
        name = getattr(way, "_variant", "") if type(way) is stepping.Ours else "lonely"
        _, mine = stepping.Training(way, case).first_steps(2)
        norms[name] = comm.allgather_object(mine)
    for variant in stepping.VARIANTS:
        assert norms[variant][0] == norms[variant][1]
        assert norms[variant][0] == pytest.approx(norms[""][0], rel=1e-2)
    assert norms["lonely"][0] != pytest.approx(norms[""][0], rel=0.05)
    comm.barrier()
    if comm.rank == 0:
        shutil.rmtree(folder)


class Alone(stepping.Way):
    """One rank that averages with nobody."""

    rank, size = 0, 1
    met = 0

    def wrap(self, network):
        return network, stepping._adam(network)

    def meet(self):
        self.met += 1

    def describe(self):
        return {}

    def close(self):
        pass


def test_a_rank_answers(text_settings):
    way, prepared = Alone(), {}
    made = _answer({"do": "prepare", "key": 1, "config": text_settings}, way, prepared)
    assert made["facts"]["parameters"] > 10_000
    assert made["facts"]["precision"] == "float32"
    rows = np.array(_answer({"do": "steps", "key": 1, "count": 3}, way, prepared)["rows"])
    assert rows.shape == (3, 7)
    assert way.met == 1
    loss, began, data, ready, done, ended, _ = rows.T
    assert (began + data < ready).all() and (ready < done).all() and (done < ended).all()
    assert np.log(256) * 0.9 < loss[0] < np.log(256) * 1.2
    first = _answer({"do": "first", "key": 1, "count": 2}, way, prepared)
    assert len(first["rows"]) == len(first["norms"]) == 2
    assert _answer({"do": "release", "key": 1}, way, prepared) == {}
    assert not prepared
    with pytest.raises(
        ValueError, match="unknown request 'dance'; expected prepare, first, steps or rel"
    ):
        _answer({"do": "dance", "key": 1}, way, prepared)
    text_settings["data"]["path"] = "/nowhere"
    with pytest.raises(DataError, match="nowhere"):
        _answer({"do": "prepare", "key": 1, "config": text_settings}, way, prepared)
