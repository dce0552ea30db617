"""The trainer: steps over a task's batches on all ranks, with checkpoints to resume from.

Everything random follows from (seed, step, rank), and a checkpoint holds all the rest: a run that
was broken off and resumed ends with the same bits as one that was not.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor, nn

from trainers.averaging import WeightAverage
from trainers.checkpoints import (
    Checkpoint,
    checkpoint_path,
    load_weights,
    read_checkpoint,
    write_checkpoint,
)
from trainers.clocks import passed
from trainers.configuration import as_data
from trainers.data_parallel import DataParallel
from trainers.errors import CheckpointError, DivergedError, RecordError
from trainers.optimization import Optimization
from trainers.placement import placement_of
from trainers.precision import agreed_precision
from trainers.progress import METRICS, MetricsFile, ProgressLine, speed_key
from trainers.run_config import RunConfig, check_ranks
from trainers.sharing import share_of
from trainers.step_times import Interval, StepMoments, StepTimes
from trainers.stopping import StopRequest

if TYPE_CHECKING:
    from collectives import Communicator
    from trainers.task import Task

_Losses: TypeAlias = tuple[tuple[Tensor, float], ...]
_Spans: TypeAlias = tuple[tuple[Any, Any], ...]
_WIRES = {"as they are": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


KEPT = 20
"""Steps that are kept at least, to see when buckets were whole."""


class Trainer:
    """One run on all ranks of `comm`; every rank makes one and calls `fit`.

    Args:
        config: equal on every rank.
        task: what to train.
        comm: the ranks.
        checkpoint: what to go on from.

    Attributes:
        step: how many steps have been done.
        stopped: the signal that has ended `fit` before the run's end, or 0.
        intervals: where the time went, since this was made; the same on every rank.
        times: of this rank's steps.
    """

    def __init__(
        self,
        config: RunConfig,
        task: Task,
        comm: Communicator,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        check_ranks(config, comm.size)
        self.config = config
        self.task = task
        self.comm = comm
        self.placement = placement_of(comm, config.train.device)
        self.precision = agreed_precision(
            comm, config.train.precision, fast=self.placement.has_native_bfloat16
        )
        self.step = 0
        self.stopped = 0
        self._saved = 0 if checkpoint is None else checkpoint.step
        torch.manual_seed(_mixed(config.seed))
        self.network = task.new_model()
        if checkpoint is not None:
            task.check_attachments(checkpoint.attachments, "the checkpoint")
            load_weights(self.network, checkpoint.part("model"), "the checkpoint")
            self.step = checkpoint.step
        elif config.start is not None and comm.rank == 0:  # whose weights all ranks get
            load_start(self.network, task, config.start)
        self.network.to(self.placement.device)
        self.model = DataParallel(
            self._compiled(self.network),
            comm,
            bucket_bytes=config.parallel.bucket_bytes or None,
            unused=config.parallel.unused,
            wire=_WIRES[config.parallel.wire],
            shard=_shard(config),
        )
        self.average = WeightAverage(self.network, config.train.average)
        self.optimization = Optimization(
            self.model, config.optimizer, config.train.steps, task.matrices(self.network)
        )
        if checkpoint is not None:
            self.optimization.load_state(checkpoint.part("optimizer"))
            if averaged := checkpoint.part("average"):
                load_weights(self.average.model, averaged, "the checkpoint's average")
        self.times = StepTimes(comm, self.model.clock, max(KEPT, config.train.trace))
        self.intervals: list[Interval] = []

    def fit(self) -> dict[str, float]:
        """Trains to the end, or until a signal stops it; returns the last evaluation.

        A collective call.
        """
        train = self.config.train
        first = self.comm.rank == 0
        line = ProgressLine(
            steps=train.steps,
            start=self.step,
            epoch=train.steps_per_epoch,
            unit=self.task.unit,
            shown=first,
        )
        metrics = MetricsFile(self.config.run / METRICS if first else None, self.step)
        share = share_of(train.batch, self.comm.rank, self.comm.size)
        speed = _Speed(train.batch * self.task.units_per_sample)
        result: dict[str, float] = {}
        if self.step >= train.steps:
            result = self._evaluate()
        stop = StopRequest(self.comm)
        with stop.listening(), self._telling_what_is_left():
            if self.step == 0 and self.config.start is not None:
                # What its weights are worth on this data, before they are moved.
                before = self._evaluate()
                metrics.write({"step": 0, **before})
                speed.restart()
            while self.step < train.steps and not self.stopped:
                self.times.note(self.one_step(share))
                self.stopped = stop.agreed_after(self.step)
                evaluates = train.is_due(train.evaluate_every, self.step)
                saves = train.is_due(train.save_every, self.step) or self.stopped
                if evaluates or saves or self.step % train.log_every == 0:
                    facts = self._facts(speed)
                    metrics.write({"step": self.step, **facts})
                    if not evaluates or self.stopped:  # else it is left standing, below
                        line.update(self.step, facts)
                    stop.expect(sum(self.intervals[-1].mean().values()))
                if evaluates and not self.stopped:
                    result = self._evaluate()
                    metrics.write({"step": self.step, **result})
                if saves:
                    self.save()
                    # Else the others waited in their next step, and it looked like a late rank.
                    self.comm.barrier()
                if evaluates and not self.stopped:
                    line.leave(self.step, facts, self.task.summary(result))
                if evaluates or saves:
                    speed.restart()
        return result

    def _evaluate(self) -> dict[str, float]:
        return self.task.evaluate(self.placement.from_host(self.average.model), self.comm)

    def save(self) -> Path | None:
        """Writes a checkpoint, on rank 0; a collective call.

        Returns:
            Its path, on rank 0.

        Raises:
            DivergedError: a weight is not a number; the checkpoints before stay.
        """
        remembered = self.optimization.state()
        if self.comm.rank != 0:
            self._saved = self.step
            return None
        tensors = {f"model/{n}": t for n, t in self.network.state_dict().items()}
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise DivergedError(
                    f"rank {self.comm.rank}: after step {self.step} {name} holds what is not a "
                    f"number. {self._advice()}"
                )
        tensors |= {f"optimizer/{n}": t for n, t in remembered.items()}
        if self.average.decay:
            tensors |= {f"average/{n}": t for n, t in self.average.model.state_dict().items()}
        checkpoint = Checkpoint(
            task=self.task.name,
            step=self.step,
            config=as_data(self.config),
            tensors=tensors,
            attachments=self.task.attachments(),
        )
        written = write_checkpoint(self.config.run, checkpoint, self.config.train.keep)
        self._saved = self.step
        return written

    def one_step(self, share: range) -> StepMoments:
        """One optimizer step on this rank's `share` of the global batch; a collective call."""
        clock, step = self.model.clock, self.step
        began = clock.moment()
        self.model.zero_grad()
        losses, data = self._gradients(step, share)
        backward = self.model.moments
        assert backward is not None, "the last part has averaged"
        if self.config.optimizer.clip:
            self.model.clip_gradients(self.config.optimizer.clip)
        self.optimization.step(step)
        self.average.update(step)
        self.step += 1
        return StepMoments(
            step, losses, began, data, self._forward_ended, backward, clock.moment(),
            self.model.gathered,
        )  # fmt: skip

    def compute_seconds(self, step: int, share: range) -> float:
        """Adds up a step's gradients and says what that took, getting the samples left out."""
        clock = self.model.clock
        began = clock.moment()
        _, data = self._gradients(step, share)
        ended = clock.moment()
        clock.settle()
        return passed(clock, began, ended) - sum(passed(clock, *each) for each in data)

    def _gradients(self, step: int, share: range) -> tuple[_Losses, _Spans]:
        """Forwards and backwards of a step.

        Returns:
            The loss of each, and what it counts for in the global batch's mean; and when the
            getting of samples for each began and ended.
        """
        self.placement.seed(_mixed(self.config.seed, step, self.comm.rank))
        clock = self.model.clock
        losses: list[tuple[Tensor, float]] = []
        data: list[tuple[Any, Any]] = []
        parts = self.config.train.accumulate
        for part in range(parts):
            begin = clock.moment()
            own = share_of(len(share), part, parts)
            samples = self.task.samples(step, share[own.start : own.stop])
            samples = self.placement.put(samples)
            data.append((begin, clock.moment()))
            weight = self.model.weight(len(own), self.config.train.batch)
            last = part == parts - 1
            with contextlib.nullcontext() if last else self.model.no_sync():
                loss = self._backward(samples, weight)
            losses.append((loss, weight / self.comm.size))
        return tuple(losses), tuple(data)

    def _backward(self, samples: Any, weight: float) -> Tensor:
        """Forward and backward; returns the mean loss of these samples."""
        narrow = self.precision != torch.float32
        with torch.autocast(self.placement.device.type, self.precision, enabled=narrow):
            loss: Tensor = self.task.loss(self.model, samples)
        self._forward_ended = self.model.clock.moment()
        (loss * weight).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _compiled(self, network: nn.Module) -> nn.Module:
        """The network that trains; the weights are those of `network`."""
        if not self.config.train.compile:
            return network
        return cast("nn.Module", torch.compile(network))

    @contextlib.contextmanager
    def _telling_what_is_left(self) -> Iterator[None]:
        try:
            yield
        except (CheckpointError, RecordError) as error:
            raise type(error)(f"{error}; {self._left()}") from error

    def _left(self) -> str:
        """What a run that has failed can go on from."""
        if self._saved == 0:
            return "no checkpoint has been written, so --resume has nothing to go on from"
        return f"--resume goes on from {checkpoint_path(self.config.run, self._saved)}"

    def _advice(self) -> str:
        """What to try where the run has diverged."""
        muon = self.config.optimizer.kind == "muon"
        rates = "optimizer.rate" + " and optimizer.matrix_rate" * muon
        return f"Try a smaller {rates}, or optimizer.clip; {self._left()}"

    def _facts(self, speed: _Speed) -> dict[str, float]:
        """Loss and speed since the last call, over all ranks; stops a run that has diverged."""
        interval = self.times.exchange()
        if (bad := interval.not_a_number()) is not None:
            step, ranks = bad
            where = "rank " + ", ".join(map(str, ranks))
            raise DivergedError(
                f"the loss of step {step + 1} is {interval.losses[step - interval.first].sum()}, "
                f"on {where}. {self._advice()}",
                told_elsewhere=self.comm.rank != 0,
            )
        self.intervals.append(interval)
        milliseconds = {f"{part}_ms": 1e3 * each for part, each in interval.mean().items()}
        return {
            "loss": float(interval.losses.sum(1).mean()),
            speed_key(self.task.unit): speed.read(interval.steps),
            **milliseconds,
        }


class _Speed:
    """Units a second of all ranks, evaluations and checkpoints left out."""

    def __init__(self, units_per_step: int) -> None:
        self._units_per_step = units_per_step
        self.restart()

    def restart(self) -> None:
        self._began = time.perf_counter()

    def read(self, steps: int) -> float:
        passed = time.perf_counter() - self._began
        self.restart()
        return steps * self._units_per_step / passed


def load_start(model: nn.Module, task: Task, start: Path) -> None:
    """Puts the best weights of another run's checkpoint into a model.

    Raises:
        CheckpointError: there is none, or it is of another task, model or attachments.
    """
    checkpoint = read_checkpoint(start)
    checkpoint.check_task(task.name, start)
    task.check_attachments(checkpoint.attachments, str(start))
    load_weights(model, task.start_weights(model, checkpoint), str(start))


def _shard(config: RunConfig) -> Literal["elements", "parameters"] | None:
    """How parameters are shared out: muon looks at a parameter as a matrix, so needs it whole."""
    if not config.parallel.shard:
        return None
    return "parameters" if config.optimizer.kind == "muon" else "elements"


def _mixed(*numbers: Any) -> int:
    """A random seed of its own for every tuple of numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
