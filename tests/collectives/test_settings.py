"""The environment, read in one place: who we are, and how much memory channels have."""

from __future__ import annotations

import os
import re
from dataclasses import fields
from pathlib import Path

import pytest

import collectives
from collectives import settings
from collectives.settings import Place
from transports import _native
from transports.caches import usable_cache_bytes
from transports.shm.connection import Geometry

OURS = {"RANK": "1", "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3", "LOCAL_RANK": "1",
        "COLLECTIVES_JOB": "job", "COLLECTIVES_SECRET": "abc"}  # fmt: skip
TORCHRUN = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500",
            "TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "0"}  # fmt: skip


def test_nobody_started_us():
    assert settings.place_in_job({}) == Place(job=f"alone-{os.getpid()}")
    assert settings.place_in_job({"COLLECTIVES_JOB": "stray"}).size == 1


def test_our_launcher_started_us():
    place = settings.place_in_job(OURS)
    assert place == Place(
        rank=1, size=3, local_size=3, job="job", secret="abc", launcher="collectives"
    )


def test_torchrun_started_us():
    place = settings.place_in_job(TORCHRUN)
    assert (place.rank, place.size, place.launcher) == (0, 2, "torchrun")
    jobs = {place.job}
    for name in ("MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"):
        jobs.add(settings.place_in_job({**TORCHRUN, name: "7"}).job)
    assert len(jobs) == 4  # each makes another job of it
    only_master = {name: TORCHRUN[name] for name in ("RANK", "WORLD_SIZE", "MASTER_PORT")}
    assert settings.place_in_job(only_master).size == 2


@pytest.mark.parametrize(
    "change, words",
    [
        ({"RANK": "3"}, ["RANK must be below WORLD_SIZE = 3", "found 3"]),
        ({"RANK": "-1"}, ["RANK must be an integer of at least 0", "'-1'"]),
        ({"RANK": "one"}, ["RANK must be an integer", "'one'"]),
        ({"WORLD_SIZE": "0"}, ["WORLD_SIZE must be an integer of at least 1", "'0'"]),
        ({"WORLD_SIZE": None}, ["the environment has no WORLD_SIZE"]),
        ({"RANK": None}, ["the environment has no RANK"]),
        ({"LOCAL_WORLD_SIZE": "x"}, ["LOCAL_WORLD_SIZE", "'x'"]),
        ({"COLLECTIVES_JOB": None}, ["nothing to find each other by", "MASTER_PORT"]),
    ],
)
def test_what_makes_no_sense_is_refused(change, words):
    environment = {name: text for name, text in {**OURS, **change}.items() if text is not None}
    with pytest.raises(ValueError) as caught:
        settings.place_in_job(environment)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_lone_rank_needs_nothing_to_be_found_by():
    assert settings.place_in_job({"RANK": "0", "WORLD_SIZE": "1"}).size == 1


def test_what_is_taken_for_the_cache():
    assert settings.cache_bytes({}) == usable_cache_bytes()
    assert settings.cache_bytes({"COLLECTIVES_CACHE_BYTES": "0"}) == 0
    with pytest.raises(ValueError, match=r"COLLECTIVES_CACHE_BYTES must be .* 0, found '-1'"):
        settings.cache_bytes({"COLLECTIVES_CACHE_BYTES": "-1"})
    with pytest.raises(ValueError, match=rf"COLLECTIVES_CACHE_BYTES must be at most {2**63 - 1}, "):
        settings.cache_bytes({"COLLECTIVES_CACHE_BYTES": str(2**63)})


def test_from_when_on_a_peer_is_far():
    assert settings.far_ns(60, {}) == 60
    assert settings.far_ns(60, {"COLLECTIVES_FAR_NS": "0"}) == 0
    with pytest.raises(ValueError, match=r"COLLECTIVES_FAR_NS must be .* 0, found 'near'"):
        settings.far_ns(60, {"COLLECTIVES_FAR_NS": "near"})
    with pytest.raises(ValueError, match=rf"COLLECTIVES_FAR_NS must be at most {2**32 - 1}, "):
        settings.far_ns(60, {"COLLECTIVES_FAR_NS": str(2**32)})


def test_when_messages_are_lent():
    assert [settings.lend({"COLLECTIVES_LEND": text}) for text in ("never", "auto", "always")] == [
        0, 1, 2,
    ]  # fmt: skip
    assert settings.lend({}) == 1
    with pytest.raises(ValueError, match=r"COLLECTIVES_LEND must be one of never, .*found 'yes'"):
        settings.lend({"COLLECTIVES_LEND": "yes"})


def test_the_channels_memory():
    assert settings.geometry({}) == Geometry()
    assert settings.geometry({"COLLECTIVES_SLOTS": "2", "COLLECTIVES_SLOT_BYTES": "128"}) == (
        Geometry(slots=2, slot_bytes=128)
    )
    found = settings.geometry(
        {"COLLECTIVES_DEPTH": "4", "COLLECTIVES_LANE_SLOTS": "3", "COLLECTIVES_LANE_BYTES": "64"}
    )
    assert found == Geometry(depth=4, lane_slots=3, lane_bytes=64)
    assert found.for_ranks(5) == {
        "ranks": 5, "depth": 4, "slots": Geometry().slots, "slot_bytes": Geometry().slot_bytes,
        "lane_slots": 3, "lane_bytes": 64,
    }  # fmt: skip


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("COLLECTIVES_SLOTS", "1", "at least 2, found '1'"),
        ("COLLECTIVES_DEPTH", "many", "at least 2, found 'many'"),
        ("COLLECTIVES_SLOTS", "6", "power of two, found 6"),
        ("COLLECTIVES_DEPTH", "3", "power of two, found 3"),
        ("COLLECTIVES_SLOT_BYTES", "32", "at least 64, found '32'"),
        ("COLLECTIVES_SLOT_BYTES", "100", "multiple of 64, found 100"),
        ("COLLECTIVES_LANE_BYTES", "65", "multiple of 64, found 65"),
        ("COLLECTIVES_SLOT_BYTES", str(1 << 40), f"at most {1 << 30}, found {1 << 40}"),
        ("COLLECTIVES_LANE_BYTES", str(1 << 31), f"at most {1 << 30}, found {1 << 31}"),
        ("COLLECTIVES_SLOTS", str(1 << 24), f"at most {1 << 23}, found {1 << 24}"),
        ("COLLECTIVES_LANE_SLOTS", str(1 << 40), f"at most {1 << 23}, found {1 << 40}"),
        ("COLLECTIVES_DEPTH", str(1 << 24), f"at most {1 << 23}, found {1 << 24}"),
    ],
)
def test_memory_that_no_engine_can_use_is_refused(name, text, words):
    with pytest.raises(ValueError, match=f"{name} must be .*{words}"):
        settings.geometry({name: text})


def test_the_host_may_be_named():
    assert settings.host_id_override({}) is None
    assert settings.host_id_override({"COLLECTIVES_HOST_ID": "a"}) == "a"


def test_the_real_environment_is_read_by_default(monkeypatch):
    for name, text in OURS.items():
        monkeypatch.setenv(name, text)
    monkeypatch.setenv("COLLECTIVES_HOST_ID", "this one")
    monkeypatch.setenv("COLLECTIVES_SLOTS", "4")
    assert settings.place_in_job().job == "job"
    assert settings.host_id_override() == "this one"
    assert settings.geometry().slots == 4


def test_every_variable_that_is_read_is_in_the_document():
    text = (Path(settings.__file__).parents[1] / "docs" / "settings.md").read_text()
    named = set(re.findall(r"`([A-Z_]{4,})`", text))
    read = set(re.findall(r"\"([A-Z][A-Z_]{3,})\"", Path(settings.__file__).read_text()))
    read -= {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "XDG_CACHE_HOME", "HOME"}
    read |= {f"COLLECTIVES_{each.name.upper()}" for each in fields(Geometry)}
    assert named == read | {"COLLECTIVES_LAUNCHER"}  # which `collectives doctor` reads
    for each in fields(Geometry):
        assert str(each.default) in text


def test_the_largest_slots_are_what_the_engine_takes(monkeypatch):
    for name in ("SLOTS", "DEPTH", "LANE_SLOTS"):
        found = settings.geometry({f"COLLECTIVES_{name}": str(1 << 23)})
        assert _native.region_bytes(**found.for_ranks(2)) > 1 << 23
    largest = {"COLLECTIVES_SLOT_BYTES": str(1 << 30), "COLLECTIVES_LANE_BYTES": str(1 << 30)}
    assert _native.region_bytes(**settings.geometry(largest).for_ranks(2)) > 1 << 33
    monkeypatch.setenv("COLLECTIVES_SLOT_BYTES", str(1 << 40))
    with pytest.raises(ValueError, match=r"COLLECTIVES_SLOT_BYTES must be at most 1073741824"):
        collectives.init()
