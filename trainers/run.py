"""A run from its configuration to its report, on every rank; and what can be checked before it."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

from trainers.aftermath import write_aftermath
from trainers.checkpoints import unpacked
from trainers.configuration import as_data, as_yaml
from trainers.errors import ConfigurationError
from trainers.placement import check_placement
from trainers.progress import METRICS, judged_before
from trainers.replicas import check_replicas
from trainers.restarts import Start
from trainers.run_config import RunConfig, check_ranks
from trainers.run_folder import begin_folder, check_folder, checkpoint_to_resume
from trainers.sharing import share_of
from trainers.training import Trainer, load_start

if TYPE_CHECKING:
    from collectives import Communicator

FIRST_START = Start()


def check_run(config: RunConfig, ranks: int, *, resume: bool) -> None:
    """Raises what is wrong with a run before any rank of it is started."""
    check_ranks(config, ranks)
    check_placement(config.train.device)
    origin, data = checkpoint_to_resume(config)[:2] if resume else (None, None)
    check_folder(config.run)
    task = config.build()
    if origin is not None and data is not None:
        task.check_attachments(unpacked(data, origin).attachments, str(origin))
    elif config.start is not None:
        load_start(task.new_model(), task, config.start)


def carry_out(
    config: RunConfig, comm: Communicator, *, resume: bool, start: Start = FIRST_START
) -> Trainer:
    """Trains, judges and reports; a collective call.

    Args:
        config: equal on every rank.
        comm: the ranks.
        resume: go on from the latest checkpoint in the run's folder, whoever wrote it.
        start: which start of the run this is; a later one goes on from the run's own checkpoints.
    """
    began = time.monotonic()
    first = comm.rank == 0
    # Rank 0 reads files for all: they need not be on every rank's host, nor stay the same.
    origin: Path | None = None
    data: bytes | None = None
    aside: Path | None = None
    if first:
        if start.restart:
            _say(f"restart {start.restart} of this run")
        if resume or start.goes_on(config.run):
            origin, data = _continued(config)
        else:
            if start.restart:
                _say("there is no checkpoint of this run yet: beginning anew")
            aside = begin_folder(config.run)
            if aside is not None:
                _say(
                    f"{config.run} held an earlier run, which is now in {aside}; this is a new one "
                    "(--resume goes on with one instead)"
                )
        start.claim(config.run)
        (config.run / "config.yaml").write_text(as_yaml(config), encoding="utf-8")
    everyones = comm.broadcast_object(as_data(config), root=0)
    if everyones != as_data(config):
        raise ConfigurationError("the ranks were started with different configurations")
    origin, data = comm.broadcast_object((origin, data), root=0)
    checkpoint = unpacked(data, origin) if data is not None and origin is not None else None
    task = config.build()
    if comm.broadcast_object(task.attachments(), root=0) != task.attachments():
        raise ConfigurationError(
            f"the ranks have made different things of their data: {', '.join(task.attachments())}"
        )
    trainer = Trainer(config, task, comm, checkpoint)
    if first:
        _announce(trainer)
    begin = trainer.step
    trainer.fit()
    if not trainer.stopped:
        held = check_replicas(trainer.network, comm, trainer.step)
        write_aftermath(trainer)
        if first:
            shared = f", the same bits on all {comm.size} ranks" * (comm.size > 1)
            _say(f"parameters {held}{shared}")
            model = trainer.placement.on_host(trainer.average.model)
            task.report(model, config.run, judged_before(config.run / METRICS))
    if first:
        done = str(trainer.step - begin) + f" of {trainer.step}" * (begin > 0)
        passed = time.monotonic() - began
        by = f"stopped by {signal.Signals(trainer.stopped).name}: " if trainer.stopped else ""
        _say(
            f"{by}{passed:.0f} s, {done} steps; everything is in {config.run}"
            + (f", the earlier run in {aside}" if aside else "")
        )
    # The others need not wait: a rank that has ended what all do together may go.
    return trainer


def _continued(config: RunConfig) -> tuple[Path, bytes]:
    """Rank 0 finds the checkpoint that the run goes on from, and its bytes."""
    origin, data, changed = checkpoint_to_resume(config)
    check_folder(config.run)
    _say(f"resuming from {origin}")
    if changed:
        _say(f"settings changed since: {', '.join(changed)}")
    if any(key.startswith("data.") for key in changed):
        _say("to start from a run's weights on other data is `collectives finetune`")
    return origin, data


def _announce(trainer: Trainer) -> None:
    config, size = trainer.config, trainer.comm.size
    parameters = list(trainer.model.parameters())
    weights = sum(parameter.numel() for parameter in parameters)
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    part = f", {trained:,} of which are trained ({trained / weights:.2%}),"
    shares = sorted({len(share_of(config.train.batch, rank, size)) for rank in range(size)})
    each = " or ".join(map(str, shares))
    kind = str(trainer.precision).removeprefix("torch.")
    _say(
        f"{weights:,} parameters{part * (trained < weights)} on {size} rank{'s' * (size > 1)}, "
        f"{config.train.steps} steps of {config.train.batch} samples ({each} a rank), {kind}"
    )
    if extent := trainer.task.extent():
        _say(extent)
    if size > 1:
        _say(str(trainer.model.plan))
    if trainer.step >= config.train.steps:
        _say(
            f"this run has ended already: all of its {trainer.step} steps are done, so it is only "
            f"judged again; a number of train.epochs above {config.train.epochs} trains on"
        )


def _say(text: str) -> None:
    print(text, flush=True)
