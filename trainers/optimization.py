"""How gradients become steps: Adam, or momentum made orthogonal beside it, and a changing rate.

`muon` is for the inner weights of a network: the momentum of a weight, seen as a matrix of outputs
x inputs, is replaced by the nearest orthogonal matrix before it is applied, so that every direction
moves alike and none is starved (K. Jordan et al. 2024, after Bernstein & Newhouse 2024). Which
weights are inner ones is the task's to say; the first and last layer and all vectors go by Adam, as
the authors advise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from trainers.errors import ConfigurationError
from trainers.sharded import gather_memories, own_memory

if TYPE_CHECKING:
    from trainers.data_parallel import DataParallel


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How parameters follow their gradients.

    Attributes:
        kind: adam, or muon for inner weights with adam for the rest.
        rate: learning rate of Adam at its highest.
        matrix_rate: learning rate of muon at its highest.
        betas: how slowly Adam's first and second moment forget: the part of each that a step keeps.
        momentum: the same of muon's momentum.
        warmup: the part of all steps during which rates grow from zero.
        final: what the rates end with, as a part of the highest.
        clip: limit of the global norm of gradients; 0 for none.
    """

    kind: Literal["adam", "muon"] = "adam"
    rate: float = 1e-3
    matrix_rate: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.99)
    momentum: float = 0.95
    warmup: float = 0.03
    final: float = 0.0
    clip: float = 0.0

    def __post_init__(self) -> None:
        if self.rate <= 0 or self.matrix_rate <= 0:
            raise ConfigurationError(
                "optimizer.rate and optimizer.matrix_rate: expected numbers above 0, "
                f"found {self.rate} and {self.matrix_rate}"
            )
        for name, value in (("warmup", self.warmup), ("final", self.final)):
            if not 0 <= value <= 1:
                raise ConfigurationError(
                    f"optimizer.{name}: expected a part from 0 to 1, found {value}"
                )
        if not all(0 <= value < 1 for value in (*self.betas, self.momentum)):
            raise ConfigurationError(
                "optimizer.betas and optimizer.momentum: expected numbers from 0 to below 1, "
                f"found {list(self.betas)} and {self.momentum}"
            )
        if self.clip < 0:
            raise ConfigurationError(f"optimizer.clip: expected 0 or more, found {self.clip}")


def rate_factor(step: int, steps: int, config: OptimizerConfig) -> float:
    """What the highest rate is multiplied with at `step`: linear up, then a cosine down."""
    warmup = max(1, round(config.warmup * steps))
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return config.final + (1 - config.final) * 0.5 * (1 + math.cos(math.pi * done))


class OrthogonalMomentum(torch.optim.Optimizer):
    """The `muon` step, for parameters of two or more dimensions."""

    def __init__(self, parameters: Iterable[nn.Parameter], rate: float, momentum: float) -> None:
        super().__init__(list(parameters), {"lr": rate, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Moves every parameter by its orthogonalized momentum."""
        if closure is not None:
            raise NotImplementedError("OrthogonalMomentum takes no closure")
        for group in self.param_groups:
            keep = group["momentum"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum = state["momentum"].lerp_(parameter.grad, 1 - keep)
                ahead = parameter.grad.lerp(momentum, keep)  # Nesterov: as the next gradient has it
                parameter.add_(orthogonalized(ahead), alpha=-group["lr"])


def orthogonalized(weight: Tensor, iterations: int = 5) -> Tensor:
    """Nearly the orthogonal matrix nearest to `weight`, seen as (first axis) x (all others).

    A Newton-Schulz iteration on singular values: its quintic takes any of them in (0, 1] into
    0.7–1.2 within five rounds. Needs no exactness, only the same bits on every rank. All factors
    are polynomials of one small square matrix, so they are multiplied among themselves, and only
    once with the wide one.
    """
    rows = weight.reshape(weight.shape[0], -1).float()
    matrix = rows if rows.shape[0] <= rows.shape[1] else rows.T
    matrix = matrix / (matrix.norm() + 1e-7)
    square = matrix @ matrix.T
    product = factor = _quintic(square)
    for _ in range(iterations - 1):
        square = factor @ square @ factor
        factor = _quintic(square)
        product = factor @ product
    matrix = product @ matrix
    if rows.shape[0] > rows.shape[1]:
        matrix = matrix.T
    shaped: Tensor = matrix.reshape(weight.shape).to(weight.dtype)
    return shaped


def _quintic(square: Tensor) -> Tensor:
    """3.4445 - 4.7750 A + 2.0315 A², which times X is the quintic of X where A = X Xᵀ."""
    factor = torch.addmm(square, square, square, beta=-4.7750, alpha=2.0315)
    factor.diagonal().add_(3.4445)
    return factor


class Optimization:
    """The optimizers of one model, with their rates following the schedule.

    Args:
        model: whose parameters are moved; of those that are sharded, this rank's pieces.
        config: how.
        steps: of the whole run.
        matrices: the model's inner weights.
    """

    def __init__(
        self,
        model: DataParallel,
        config: OptimizerConfig,
        steps: int,
        matrices: Iterable[nn.Parameter],
    ) -> None:
        self.config = config
        self.steps = steps
        self._model = model
        pieces = model.pieces
        self._names: dict[Tensor, str] = {piece: name for name, piece in pieces.items()}
        inner_names = (
            {model.names[parameter] for parameter in matrices} if config.kind == "muon" else set()
        )
        inner = [piece for name, piece in pieces.items() if name in inner_names]
        rest = [piece for name, piece in pieces.items() if name not in inner_names]
        self._optimizers: list[tuple[torch.optim.Optimizer, float]] = []
        if rest:
            adam = torch.optim.Adam(rest, lr=config.rate, betas=config.betas, fused=True)
            self._optimizers.append((adam, config.rate))
        if inner:
            matrix = OrthogonalMomentum(inner, config.matrix_rate, config.momentum)
            self._optimizers.append((matrix, config.matrix_rate))

    def step(self, step: int) -> float:
        """Moves the parameters by their gradients; returns the factor of the rates.

        A collective call where they are sharded.
        """
        factor = rate_factor(step, self.steps, self.config)
        for optimizer, rate in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            optimizer.step()
        self._model.gather_parameters()
        return factor

    def state(self) -> dict[str, Tensor]:
        """What the optimizers of all ranks remember, as `kind/parameter` -> tensor, on rank 0.

        A collective call where parameters are sharded; else the same on every rank.
        """
        found: dict[str, Tensor] = {}
        for optimizer, _ in self._optimizers:
            for piece, memories in optimizer.state.items():
                for kind, memory in memories.items():
                    found[f"{kind}/{self._names[piece]}"] = memory
        return gather_memories(self._model, found)

    def load_state(self, saved: dict[str, Tensor]) -> None:
        """Takes back what `state` gave on rank 0, on any number of ranks, sharded or not."""
        pieces = {name: piece for piece, name in self._names.items()}
        homes: dict[Tensor, torch.optim.Optimizer] = {
            piece: optimizer
            for optimizer, _ in self._optimizers
            for group in optimizer.param_groups
            for piece in group["params"]
        }
        for key, memory in saved.items():
            kind, _, name = key.partition("/")
            if name not in pieces:  # another rank's
                continue
            piece = pieces[name]
            state: dict[str, Any] = homes[piece].state[piece]
            state[kind] = own_memory(self._model, name, memory)
