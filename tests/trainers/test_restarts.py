"""A restarted run goes on from its own checkpoints, and from nobody else's."""

from __future__ import annotations

import pytest

from trainers.checkpoints import all_checkpoints
from trainers.configuration import config_from
from trainers.restarts import FILE, Start
from trainers.run import carry_out


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, Start()),
        (
            {"TORCHELASTIC_RUN_ID": "a1", "TORCHELASTIC_RESTART_COUNT": "2"},
            Start("a1", 2),
        ),
        ({"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "1"}, Start("", 1)),
    ],
)
def test_the_start_is_known_by_torchruns_variables(variables, expected):
    assert Start.from_environment(variables) == expected


def test_a_run_has_its_folder_until_another_claims_it(tmp_path):
    Start("a").claim(tmp_path)
    assert Start("a", 1).owns(tmp_path)
    assert not Start("b", 1).owns(tmp_path)
    assert not Start("a", 1).goes_on(tmp_path)  # nothing is there to go on from
    (tmp_path / "checkpoint-00000002.safetensors").touch()
    assert Start("a", 1).goes_on(tmp_path)
    assert not Start("a", 0).goes_on(tmp_path)
    assert not Start("", 1).goes_on(tmp_path)
    Start().claim(tmp_path)  # by hand, without a launcher that names it
    assert not (tmp_path / FILE).exists()
    assert not Start("", 1).owns(tmp_path)


def test_a_run_killed_before_its_first_checkpoint_begins_anew(settings, alone, capsys):
    settings["train"]["epochs"] = 1
    config = config_from(settings, "settings")
    config.run.mkdir()
    (config.run / "checkpoint-00000009.safetensors").touch()
    Start("earlier").claim(config.run)
    # The first start was killed before it had moved the earlier run aside.
    carry_out(config, alone, resume=False, start=Start("own", 1))
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == [
        "restart 1 of this run",
        "there is no checkpoint of this run yet: beginning anew",
    ]
    aside = config.run.with_name("run.1")
    assert said[2].startswith(f"{config.run} held an earlier run, which is now in {aside};")
    assert Start("earlier").owns(aside)
    trainer = carry_out(config, alone, resume=False, start=Start("own", 2))
    assert trainer.step == 2
    (checkpoint,) = all_checkpoints(config.run)
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == ["restart 2 of this run", f"resuming from {checkpoint}"]
    assert not config.run.with_name("run.2").exists()
