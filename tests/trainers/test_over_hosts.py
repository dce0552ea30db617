"""Training on two hosts of two ranks: the same bits on every rank, and the losses of one host."""

from __future__ import annotations

import json

import pytest
import torch
from harness.tiny_runs import tiny, tiny_text, train_whole
from harness.under_mpi import mpi_spawn

import launch


def losses(run):
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [record["loss"] for record in records if "loss" in record]


@pytest.mark.parametrize("task", ["super_resolution", "language_model"])
@pytest.mark.full
def test_two_hosts_train_what_one_does(task, photographs, texts, tmp_path):
    plans = {}
    for place in ("one", "two"):
        run = tmp_path / place
        plans[place] = (
            tiny(photographs, run)
            if task == "super_resolution"
            else tiny_text(texts, tmp_path / "cache", run)
        )
    alone = launch.spawn(train_whole, 4, plans["one"])
    ranks = mpi_spawn(train_whole, 4, plans["two"], hosts="aabb")
    for weights in ranks[1:]:
        assert all(torch.equal(weights[name], ranks[0][name]) for name in ranks[0])
    for name, tensor in alone[0].items():  # added up in another order
        torch.testing.assert_close(ranks[0][name], tensor, rtol=1e-3, atol=1e-4)
    found, wanted = losses(tmp_path / "two"), losses(tmp_path / "one")
    assert len(found) == len(wanted) > 3
    assert found == pytest.approx(wanted, rel=1e-4)
