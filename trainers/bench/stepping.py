"""One way of training data-parallel, made ready to take steps whose times are noted.

Every way runs the same loop, over the same model, samples and optimizer; only how gradients are
averaged differs. The two moments that matter are taken alike for all: the last gradient is there
when the last parameter's hook has run, and all is averaged when `backward` returns.
"""

from __future__ import annotations

import math
import os
import time
import weakref
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from trainers.configuration import config_from
from trainers.data_parallel import DataParallel
from trainers.precision import has_native_bfloat16, precision_of
from trainers.sharded import ShardedOptimizer
from trainers.sharing import share_of
from trainers.step_times import BackwardTimes, StepRecord

if TYPE_CHECKING:
    from collectives import Communicator
    from trainers.run_config import RunConfig
    from trainers.task import Task

VARIANTS: dict[str, dict[str, Any]] = {
    "": {},
    "sharded": {"shard": "elements"},
    "bfloat16": {"wire": torch.bfloat16},
    "one-bucket": {"bucket_bytes": 1 << 40},
}
"""Our own ways, by name: options of `DataParallel`."""

RATE = 1e-4  # what the steps lead to does not matter, but for the losses, which must agree


class Way(ABC):
    """How one contender trains.

    Attributes:
        rank: this rank.
        size: how many there are.
    """

    rank: int
    size: int

    @abstractmethod
    def wrap(self, network: nn.Module) -> tuple[nn.Module, torch.optim.Optimizer]:
        """The model whose backward averages, and an optimizer for it."""

    @abstractmethod
    def meet(self) -> None:
        """Returns when all ranks have come here."""

    @abstractmethod
    def describe(self) -> dict[str, str]:
        """What it is, with its settings."""

    @abstractmethod
    def close(self) -> None:
        """Leaves the other ranks."""

    def about(self, model: nn.Module) -> dict[str, Any]:
        """What is to be known of a model it has wrapped."""
        return {}

    def gradient_norm(self, model: nn.Module) -> float:
        """The global norm of the averaged gradients: wrong ones, or local ones, have another."""
        return float(nn.utils.clip_grad_norm_(model.parameters(), math.inf))

    def gather_seconds(self, model: nn.Module) -> float:
        """What gathering parameters took in the last step."""
        return 0.0


class Ours(Way):
    """Our `DataParallel`: as it is, or otherwise as `variant` says."""

    def __init__(self, comm: Communicator, variant: str) -> None:
        self.rank, self.size = comm.rank, comm.size
        self._comm = comm
        self._variant = variant

    def wrap(self, network: nn.Module) -> tuple[nn.Module, torch.optim.Optimizer]:
        """With buckets by the cost model."""
        model = DataParallel(network, self._comm, **VARIANTS[self._variant])
        if model.shard is not None:
            return model, ShardedOptimizer(model, torch.optim.AdamW, lr=RATE, fused=True)
        return model, _adam(network)

    def meet(self) -> None:
        """By a barrier."""
        self._comm.barrier()

    def describe(self) -> dict[str, str]:
        """This package."""
        import collectives

        return {"library": f"collectives {collectives.__version__}"}

    def close(self) -> None:
        """Leaves the communicator."""
        self._comm.close()

    def about(self, model: nn.Module) -> dict[str, Any]:
        """The plan of its buckets."""
        return {"buckets": str(cast("DataParallel", model).plan)}

    def gradient_norm(self, model: nn.Module) -> float:
        """Of all ranks' parts, where they are sharded."""
        return cast("DataParallel", model).clip_gradients(math.inf)

    def gather_seconds(self, model: nn.Module) -> float:
        """Of a sharded model."""
        return cast("DataParallel", model).gather_seconds


class TorchDDP(Way):
    """DistributedDataParallel over a backend of torch.distributed.

    Gradients are views of its buckets, which saves it a copy, and buffers are not sent, as no model
    here has any that change. Buckets are of the 25 MiB that it has by default.
    """

    def __init__(self, backend: str) -> None:
        import torch.distributed as dist

        self._backend = backend
        dist.init_process_group(backend)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def wrap(self, network: nn.Module) -> tuple[nn.Module, torch.optim.Optimizer]:
        """In DDP."""
        from torch.nn.parallel import DistributedDataParallel

        model = DistributedDataParallel(
            network, gradient_as_bucket_view=True, broadcast_buffers=False
        )
        return model, _adam(network)

    def meet(self) -> None:
        """By a barrier."""
        import torch.distributed as dist

        dist.barrier()

    def describe(self) -> dict[str, str]:
        """Torch, and the settings."""
        return {
            "library": f"DDP over {self._backend}, torch {torch.__version__}",
            "gradient_as_bucket_view": "True",
            "broadcast_buffers": "False",
            **{name: os.environ[name] for name in ("GLOO_SOCKET_IFNAME",) if name in os.environ},
        }

    def close(self) -> None:
        """Destroys the process group."""
        import torch.distributed as dist

        dist.destroy_process_group()


def connect(options: dict[str, Any]) -> Way:
    """The way that a rank's options name."""
    torch.set_num_threads(options["threads"])
    if options["library"] == "ddp":
        return TorchDDP(options["backend"])
    import collectives

    return Ours(collectives.init(timeout=options["timeout"]), options["variant"])


class Training:
    """A model made ready to take steps.

    Args:
        way: who averages.
        config: plain data of a run's configuration.
    """

    def __init__(self, way: Way, config: dict[str, Any]) -> None:
        self._way = way
        self._config: RunConfig = config_from(config, "the benchmark")
        self._task: Task = self._config.build()
        torch.manual_seed(self._config.seed)
        network = self._task.new_model()
        self._ready = 0.0
        # Weak: else a model would live until a collection, and hold its buckets.
        weak = weakref.ref(self)

        def note(parameter: Tensor) -> None:
            if (training := weak()) is not None:
                training._ready = time.perf_counter()

        for parameter in network.parameters():
            # Before the wrapper's own: what that does then counts as communication.
            parameter.register_post_accumulate_grad_hook(note)  # type: ignore[no-untyped-call]
        self._model, self._optimizer = way.wrap(network)
        share = share_of(self._config.train.batch, way.rank, way.size)
        self._share = share
        self._weight = len(share) * way.size / self._config.train.batch
        # The ranks are of one machine.
        self._precision = precision_of(self._config.train.precision, fast=has_native_bfloat16())
        self._step = 0
        self.facts: dict[str, Any] = {
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "precision": str(self._precision).removeprefix("torch."),
            **way.about(self._model),
        }

    def steps(self, count: int) -> list[tuple[float, ...]]:
        """Takes steps, all ranks beginning together; the rows of `StepRecord.as_row`."""
        self._way.meet()
        return [self._one().as_row() for _ in range(count)]

    def first_steps(self, count: int) -> tuple[list[tuple[float, ...]], list[float]]:
        """The same, and the norm of the gradients in each."""
        norms: list[float] = []
        return [self._one(norms).as_row() for _ in range(count)], norms

    def _one(self, norms: list[float] | None = None) -> StepRecord:
        began = time.perf_counter()
        samples = self._task.samples(self._step, self._share)
        data = time.perf_counter() - began
        narrow = self._precision != torch.float32
        with torch.autocast("cpu", self._precision, enabled=narrow):
            loss: Tensor = self._task.loss(self._model, samples)
        forward = time.perf_counter()
        (loss * self._weight).backward()  # type: ignore[no-untyped-call]
        done = time.perf_counter()
        if norms is not None:
            norms.append(self._way.gradient_norm(self._model))
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._step += 1
        part = loss.item() * self._weight / self._way.size
        times = BackwardTimes(self._ready, done, ())
        gathered = self._way.gather_seconds(self._model)
        return StepRecord(
            self._step - 1, part, began, data, forward, times, time.perf_counter(), gathered
        )


def _adam(network: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(network.parameters(), lr=RATE, fused=True)
