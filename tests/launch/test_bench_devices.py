"""`collectives bench --device cuda` as a user runs it, on emulated devices; what it refuses."""

from __future__ import annotations

import sys

import pytest

from launch.bench import contenders, devices
from launch.bench.agenda import parse_agenda
from launch.bench.contenders import ContenderMissing, find_contender, ours_on
from launch.bench.devices import check_on_devices, counted, shown_gpus
from launch.bench.results import read_results
from launch.command_line import main
from launch.doctor.asking import NoAnswer

QUICK = ("--device", "cuda", "--min", "600", "--max", "600", "--rounds", "1", "--round-ms", "1")
ONE = {"COLLECTIVES_EMULATED_DEVICES": "1"}


def test_every_collective_is_right_on_devices_and_has_a_row(launcher):
    done = launcher("bench", "all", "-n", "2", *QUICK, "--algorithm", "auto,symmetric",
                    "--places", "out,in", "--json", "run.jsonl", environment=ONE)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for line in ("arrays on devices, the ranks' in turn: 1 × emulated device", "cuda_ipc",
                 "methods device copy"):  # fmt: skip
        assert line in done.stdout
    header, results = read_results(launcher.folder / "run.jsonl")
    assert header["devices"] == ["emulated device"]
    mine = [result for result in results if result.role == "ours"]
    assert len(mine) == 2 * (9 + 3)
    assert all(result.rounds and not result.wrong for result in mine), done.stdout
    # A barrier is the hosts', as it is without devices; for those there is no model.
    assert {each.case.collective for each in mine if each.predicted is not None} <= {"barrier"}
    chosen = {(each.case.collective, each.variant): each.chosen for each in mine}
    assert chosen["allgather", "auto"] == "direct"
    assert chosen["allgather", "symmetric"] == "one_sided"
    refused = {each.case.collective: each.problem for each in results if each.problem}
    assert refused == {
        "reduce": "reduce reads more than it writes",
        "reduce_scatter": "reduce_scatter reads more than it writes",
        "barrier": "barrier moves nothing on devices",
    }
    report = launcher("bench", "--report", "run.jsonl")
    assert "cache, arrays on 1 × emulated device, " in report.stdout, report.stderr


def test_a_planted_error_on_devices_is_counted_and_fails_the_run(launcher):
    done = launcher("bench", "allreduce", "-n", "2", *QUICK, "--no-limit", "--plant", "3",
                    "--dtype", "bfloat16", environment=ONE)  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    (row,) = (line.split() for line in done.stdout.splitlines() if " bfloat16 " in line)
    assert row[11] == "6"


def test_who_cannot_take_part_on_devices_is_named_and_the_rest_goes_on(launcher):
    done = launcher("bench", "allreduce", "-n", "2", *QUICK, "--no-limit", "--against",
                    f"mpi,deepspeed,ours={sys.executable}",
                    environment={"COLLECTIVES_EMULATED_DEVICES": "2"})  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for who in ("mpi", "deepspeed"):
        assert f"{who}: is measured in host memory only, not with --device cuda" in done.stdout
    assert "2 × emulated device" in done.stdout
    (row,) = (line.split() for line in done.stdout.splitlines() if " float32 " in line)
    assert row[-1].endswith("x")  # the other build's


REFUSED = {
    "pingpong with --device cuda: point-to-point is not carried on arrays of devices": ["p2p"],
    "stream with --device cuda: point-to-point is not carried on arrays of devices": ["stream"],
    "overlap with --device cuda: waiting for a call does not block the host there": ["overlap"],
    "--caches cold with --device cuda: the caches that are swept are the host's": [
        *("allreduce", "--caches", "hot,cold"),
    ],
    "train is measured with --device cpu only, found cuda": ["train"],
    "--device must be one of cpu, cuda, found 'cudda'; did you mean cuda?": [
        *("allreduce", "--device", "cudda"),
    ],
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_makes_no_sense_on_devices_is_refused_and_starts_nothing(text, capsys, monkeypatch):
    monkeypatch.setenv("COLLECTIVES_EMULATED_DEVICES", "1")
    assert main(["bench", "--device", "cuda", *REFUSED[text]]) == 2
    streams = capsys.readouterr()
    assert text in streams.err and streams.out == ""


@pytest.mark.parametrize(
    "answer, cupy, text",
    [
        (
            {},
            False,
            "needs cupy, which is not installed: pip install 'collectives-runtime[cuda13]'",
        ),
        ({"why": "no libcuda"}, True, "GPU of NVIDIA, and this machine shows none (no libcuda);"),
        (NoAnswer("no answer within 20 s"), True, "this machine shows none (no answer within 20 s"),
    ],
)
def test_without_a_device_nothing_starts(answer, cupy, text, capsys, monkeypatch):
    def ask(module, seconds):
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.delenv("COLLECTIVES_EMULATED_DEVICES", raising=False)
    monkeypatch.setattr(devices, "ask", ask)
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: cupy or None)
    assert main(["bench", "allreduce", "--device", "cuda"]) == 2
    streams = capsys.readouterr()
    assert text in streams.err and streams.out == ""


def test_an_emulated_machine_that_is_none_is_refused(capsys, monkeypatch):
    monkeypatch.setenv("COLLECTIVES_EMULATED_DEVICES", "many")
    assert main(["bench", "allreduce", "--device", "cuda"]) == 2
    assert "COLLECTIVES_EMULATED_DEVICES: expected a number" in capsys.readouterr().err


def test_gpus_are_those_that_the_driver_shows(monkeypatch):
    monkeypatch.delenv("COLLECTIVES_EMULATED_DEVICES", raising=False)
    two = [{"name": "Fast", "bytes": 1}, {"name": "Fast", "bytes": 1}]
    monkeypatch.setattr(devices, "ask", lambda *_, **__: {"driver": "CUDA 13.0", "gpus": two})
    assert shown_gpus() == (("Fast", "Fast"), "")
    assert devices.find_devices() == ("Fast", "Fast")
    assert counted(["Fast", "Slow", "Fast"]) == "2 × Fast, 1 × Slow"


@pytest.fixture
def gpus(monkeypatch):
    """A machine with so many, and a torch."""
    monkeypatch.delenv("COLLECTIVES_EMULATED_DEVICES", raising=False)

    def make(count, why=""):
        monkeypatch.setattr(contenders, "_probed", lambda *_: {})
        monkeypatch.setattr(contenders, "shown_gpus", lambda: (("Fast",) * count, why))

    return make


def test_torch_is_told_where_its_tensors_lie(gpus):
    gpus(2)
    assert find_contender("gloo", 4, "cuda").options == {"backend": "gloo", "device": "cuda"}
    for device in ("cpu", "cuda"):  # its tensors lie on GPUs in any case
        assert find_contender("nccl", 2, device).options == {"backend": "nccl", "device": "cuda"}


@pytest.mark.parametrize(
    "spec, count, text",
    [
        ("nccl", 1, "nccl: 2 ranks need 2 GPUs, this machine has 1"),
        ("nccl", 0, "nccl: needs a GPU of NVIDIA, and this machine shows none (no driver)"),
        ("gloo", 0, "gloo: needs a GPU of NVIDIA, and this machine shows none (no driver)"),
        ("torch:ucc", 0, "torch:ucc: needs a GPU of NVIDIA, and this machine shows none"),
    ],
)
def test_contenders_without_gpus_do_not_take_part(gpus, spec, count, text):
    gpus(count, " (no driver)")
    with pytest.raises(ContenderMissing) as error:
        find_contender(spec, 2, "cuda")
    assert text in str(error.value)


def test_torch_has_no_emulated_devices(gpus, monkeypatch):
    gpus(2)
    monkeypatch.setenv("COLLECTIVES_EMULATED_DEVICES", "2")
    with pytest.raises(ContenderMissing, match="gloo: needs a GPU of NVIDIA, and devices are emu"):
        find_contender("gloo", 2, "cuda")
    assert find_contender("nccl", 2, "cpu").options["device"] == "cuda"


def test_a_build_of_before_there_were_devices_does_not_take_part(monkeypatch, tmp_path):
    places = {"collectives": str(tmp_path / "__init__.py")}
    monkeypatch.setattr(contenders, "_probed", lambda *_: {"places": places})
    spec = f"ours={sys.executable}"
    with pytest.raises(ContenderMissing, match="that build cannot measure with --device cuda"):
        find_contender(spec, 2, "cuda")
    library = tmp_path / "bench" / "libraries" / "ours_on_devices.py"
    library.parent.mkdir(parents=True)
    library.touch()
    assert find_contender(spec, 2, "cuda").library == ours_on("cuda").library == "ours_on_devices"


def test_what_is_measured_on_devices_is_all_that_is_left():
    agenda = parse_agenda(
        what="all", ranks=2, least=8, most=8, factor=2.0, dtype="float32", op="sum",
        places="out,in", caches="hot", algorithms="symmetric", root=1,
    )  # fmt: skip
    check_on_devices(agenda)
