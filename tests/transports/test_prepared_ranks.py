"""Forked ranks of the quick run are what started ones would be; else tests would show little."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest
from harness import prepared
from harness.processes import Ranks

import launch


@pytest.fixture
def forks(monkeypatch):
    """Ranks are forked in the long run, too."""
    monkeypatch.setattr(prepared, "IN_USE", [True])


def facts(*_):
    """What a rank is, by its own account."""
    return {
        "program": Path("/proc/self/cmdline").read_text().split("\0")[1],
        "parent": os.getppid(),
        "leads": os.getsid(0) == os.getpid(),
        "main thread": threading.main_thread().native_id == os.getpid(),
        "told": os.environ.get("TOLD"),
        "folder": str(Path.cwd()),
        "ctrl-c": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
    }


def test_forked_ranks_are_as_started_ones(forks, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    spawned = launch.spawn(facts, 2, environment={"TOLD": "yes"})
    with Ranks(facts, 2, environment={"TOLD": "yes"}) as job:
        started = [outcome.value for outcome in job.outcomes()]
    for found, leads in ((spawned, True), (started, False)):
        assert found == [{
            "program": prepared.__file__, "parent": os.getpid(), "leads": leads,
            "main thread": True, "told": "yes", "folder": str(tmp_path), "ctrl-c": True,
        }] * 2  # fmt: skip


def test_else_ranks_are_fresh(monkeypatch):
    monkeypatch.setattr(prepared, "IN_USE", [False])
    assert "prepared" not in launch.spawn(facts, 1)[0]["program"]
