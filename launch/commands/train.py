"""`collectives train`: trains what a configuration says, on several ranks of one or more hosts."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from launch.commands import CommandError
from launch.launcher_options import configure_launcher, read_launcher

HELP = "train a network on several ranks, as a configuration says"
DESCRIPTION = """\
Train what a configuration says, data-parallel on several ranks:

    collectives train configs/espcn.yaml -n 2
    collectives train configs/espcn.yaml -n 2 --set train.epochs=3 --set data.path=photographs/
    collectives train configs/espcn.yaml -n 2 --resume
    collectives train configs/espcn.yaml --launcher mpi --hosts a:4,b:4

Any setting can be given with --set; --print_config shows them all with their values. Everything a
run leaves is in its folder (setting `run`); an earlier run there is moved aside, to FOLDER.1 and so
on. A checkpoint is written at the end of every epoch (train.save_every: more often), and when the
run is stopped by Ctrl-C or SIGTERM, which lets the step under way end; --resume goes on from it,
also on another number of ranks. The report at the end says where the time of a step went, what
communication costs, and what would help; trace.json opens in ui.perfetto.dev.

With --max-restarts K all ranks are started anew when one has failed, at most K times, and go on
from the last checkpoint that this command has written: the run ends with the same bits."""
INTERMIXED = True

SAVING = 60.0
"""Seconds that ranks get to end their step and to save when the user stops the run."""

SIGNALLED = 128
"""Exit codes above it: a signal ended the run, Ctrl-C for one."""

NEEDED = ("torch", "jsonargparse", "yaml", "PIL", "safetensors", "matplotlib", "tokenizers")


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("config", type=Path, metavar="CONFIG", help="a YAML file, see configs/")
    configure_ranks(parser)
    parser.add_argument(
        "--resume", action="store_true", help="go on from the latest checkpoint in the run's folder"
    )


def configure_ranks(parser: argparse.ArgumentParser) -> None:
    """Adds the options of every command that trains."""
    parser.add_argument(
        "-n", "--ranks", type=int, metavar="N", help="default 1, or what the hosts say"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="settings",
        metavar="KEY=VALUE",
        help="put a setting over the file's, as in train.epochs=3; any number of times",
    )
    parser.add_argument(
        "--max-restarts",
        type=int,
        default=0,
        metavar="K",
        help="after a failure go on from the last checkpoint, at most K times (default 0)",
    )
    parser.add_argument(
        "--print_config",
        "--print-config",
        action="store_true",
        help="show the whole configuration, defaults included, and end",
    )
    parser.add_argument(
        "--threads", type=int, metavar="K", help="per rank (default: cores / ranks)"
    )
    parser.add_argument(
        "--no-bind", action="store_true", help="let every rank use all cores instead of its share"
    )
    configure_launcher(parser)


def execute(arguments: argparse.Namespace) -> int:
    """Trains what the file says."""
    return train_ranks(arguments, arguments.config, resume=arguments.resume)


def train_ranks(
    arguments: argparse.Namespace, file: Path, *, resume: bool, origin: str | None = None
) -> int:
    """Checks everything that can be checked, then starts the ranks.

    Args:
        arguments: what the options of `configure_ranks` gave.
        file: the configuration, which every rank reads, with the settings put over it.
        resume: go on from the latest checkpoint in the run's folder.
        origin: what the file is called in messages; by default its path.
    """
    check_installed()
    from launch.jobs import check_counts, module_command, run_job
    from trainers.checkpoints import all_checkpoints
    from trainers.configuration import as_yaml, read_config
    from trainers.errors import TrainerError

    try:
        asked, mpi = read_launcher(arguments)
        ranks = 1 if asked is None else asked
        # What other hosts can start is not known here.
        check_counts(1 if mpi else ranks, arguments.threads, arguments.max_restarts)
        config = read_config(file, arguments.settings, origin)
        if arguments.print_config:
            print(as_yaml(config), end="")
            return 0
        from trainers.run import check_run

        check_run(config, ranks, resume=resume)
    except (TrainerError, ValueError) as error:
        raise CommandError(str(error)) from error
    words = [str(file)]
    for setting in arguments.settings:
        words += ["--set", setting]
    if resume:
        words.append("--resume")
    code = run_job(
        module_command("trainers", words),
        ranks,
        mpi=mpi,
        bind=not arguments.no_bind,
        threads=arguments.threads,
        max_restarts=arguments.max_restarts,
        stopping=SAVING,
    )
    if code > SIGNALLED and (saved := all_checkpoints(config.run)):
        print(f"collectives train: stopped; --resume goes on from {saved[-1]}", file=sys.stderr)
    return code


def check_installed() -> None:
    """Refuses to begin without the packages of the extra `train`, naming those that are missing."""
    import importlib.util

    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise CommandError(
            f"training needs packages that are not installed ({', '.join(missing)}): "
            "pip install 'collectives-runtime[train]'"
        )
