"""What `collectives bench train` does with its options."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from typing import Any

from launch.commands import CommandError
from launch.commands.train import check_installed

LONGER = 2000.0  # milliseconds of a round, where nothing else is said: a step is no call


def bench_train(arguments: argparse.Namespace, default_round_ms: float) -> int:
    """Runs the benchmark of training; 1 if a way did not train, or to other losses."""
    check_installed()
    from launch.bench.session import BenchError, open_record
    from launch.bench.training import TrainingSession, default_cases, find_way
    from launch.commands.algorithms import console_on_stdout
    from launch.jobs import check_counts
    from trainers.errors import TrainerError

    if arguments.plot is not None:
        raise CommandError("--plot: training has no plot; expected --json or nothing")
    try:
        check_counts(arguments.ranks, arguments.threads)
        if arguments.rounds < 1:
            raise ValueError(f"--rounds must be positive, found {arguments.rounds}")
        words = [word.strip() for word in arguments.against.split(",") if word.strip()]
        ways = [find_way(word) for word in words]
        cases = _cases(arguments) or default_cases(arguments.ranks)
        _check(cases, arguments.ranks)
    except (TrainerError, ValueError) as error:
        raise CommandError(str(error)) from None
    milliseconds = arguments.round_ms if arguments.round_ms != default_round_ms else LONGER
    session = TrainingSession(
        cases,
        ways,
        ranks=arguments.ranks,
        rounds=arguments.rounds,
        round_seconds=milliseconds / 1e3,
        threads=arguments.threads,
        bind=not arguments.no_bind,
        console=console_on_stdout(),
    )
    try:
        with ExitStack() as stack:
            record = None
            if arguments.json is not None:
                record = stack.enter_context(open_record(arguments.json))
            session.run(record)
    except BenchError as error:
        raise CommandError(str(error)) from error
    return int(any(session.failures()))


def _cases(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    from trainers.configuration import as_data, read_config

    return {str(path): as_data(read_config(path)) for path in arguments.configs}


def _check(cases: dict[str, dict[str, Any]], ranks: int) -> None:
    """Refuses what could not be trained, and makes its data ready, before a rank is started."""
    from trainers.configuration import config_from
    from trainers.run_config import check_ranks

    for case, data in cases.items():
        config = config_from(data, case)
        check_ranks(config, ranks)
        config.build()
