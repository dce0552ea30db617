"""The orthogonal step keeps directions and evens out their lengths."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainers.__main__ import main as rank_program
from trainers.averaging import WeightAverage
from trainers.optimization import OrthogonalMomentum, orthogonalized
from trainers.precision import agreed_precision, has_native_bfloat16, subnormals_flushed


@pytest.mark.parametrize("shape", [(8, 8), (4, 16), (16, 4), (8, 2, 3, 3)])
def test_singular_values_become_nearly_one(shape):
    torch.manual_seed(1)
    weight = torch.randn(shape)
    left, _, right = torch.linalg.svd(weight.reshape(shape[0], -1), full_matrices=False)
    result = orthogonalized(weight)
    assert result.shape == weight.shape
    along = left.T @ result.reshape(shape[0], -1) @ right.T
    lengths = along.diagonal()
    assert lengths.min() > 0.3
    assert lengths.max() < 1.4
    assert (along - torch.diag(lengths)).abs().max() < 1e-4


def test_no_gradient_no_step_and_no_closure():
    parameter = nn.Parameter(torch.ones(2, 2))
    optimizer = OrthogonalMomentum([parameter], 0.1, 0.9)
    optimizer.step()
    assert torch.equal(parameter.detach(), torch.ones(2, 2))
    with pytest.raises(NotImplementedError, match="no closure"):
        optimizer.step(lambda: 0.0)


def test_the_average_follows_slowly_and_takes_buffers_as_they_are():
    model = nn.BatchNorm1d(1)
    average = WeightAverage(model, 0.9)
    with torch.no_grad():
        model.weight.fill_(11.0)
    model.running_mean.fill_(5.0)
    average.update(0)
    assert average.model.weight.item() == pytest.approx(10.0)  # at first it follows quickly
    average.update(10**6)
    assert average.model.weight.item() == pytest.approx(10.1)
    assert average.model.running_mean.item() == 5.0


@pytest.mark.parametrize(
    ("text", "native"), [("flags : avx avx512_bf16", True), ("flags : avx2 bf16x", False)]
)
def test_what_the_processor_can_do(tmp_path, text, native):
    (tmp_path / "cpuinfo").write_text(text)
    assert has_native_bfloat16(tmp_path / "cpuinfo") is native


def test_no_description_of_the_processor(tmp_path):
    assert not has_native_bfloat16(tmp_path / "none")


def test_ranks_agree_on_the_least(alone):
    class OneIsOld:
        def allgather_object(self, mine):
            return [True, False]

    assert agreed_precision(OneIsOld(), "auto", fast=True) == torch.float32
    assert agreed_precision(OneIsOld(), "bfloat16", fast=False) == torch.bfloat16
    assert agreed_precision(alone, "float32", fast=True) == torch.float32
    assert agreed_precision(alone, "auto", fast=True) == torch.bfloat16
    assert agreed_precision(alone, "auto", fast=False) == torch.float32


def test_subnormals_are_zero_while_they_are_flushed():
    tiny = torch.full((64,), 1e-40)
    with pytest.raises(LookupError), subnormals_flushed():
        assert (tiny * 0.5 == 0).all()
        raise LookupError
    assert (tiny * 0.5 > 0).all()


def test_a_rank_flushes_them(monkeypatch, tmp_path):
    seen = []

    def look(config, comm, **how):
        seen.append(bool((torch.full((64,), 1e-40) * 0.5 == 0).all()))
        raise LookupError

    file = tmp_path / "run.yaml"
    file.write_text("task: super_resolution")
    monkeypatch.setattr("trainers.run.carry_out", look)
    with pytest.raises(LookupError):
        rank_program([str(file)])
    assert seen == [True]
