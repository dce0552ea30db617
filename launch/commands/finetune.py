"""`collectives finetune`: trains a checkpoint's network on other data, from its weights on."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from launch.commands import CommandError

HELP = "train a trained network on other data"
DESCRIPTION = """\
Train a trained network on other data, from its weights on:

    collectives finetune runs/llm_small --data my_project/ notes.txt -n 2
    collectives finetune runs/llm_small --data my_project/ --lora 4
    collectives finetune runs/espcn --data photographs/ -n 2 --set train.epochs=2

CHECKPOINT is a file, or the folder of a run (its latest checkpoint). The new run has its settings,
but for the data; a language model keeps its tokenizer. Weights that are good already are spoiled by
long steps: the learning rates are a tenth of the checkpoint's, with the same warm-up and decay,
where --set optimizer.rate=... or optimizer.matrix_rate=... says nothing else. With --lora the rates
are the checkpoint's own, since only adapters are trained, which have learned nothing yet.

The run's folder holds its configuration; to go on with a run that was broken off:

    collectives train FOLDER/config.yaml -n 2 --resume"""
INTERMIXED = True


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    from launch.commands.train import configure_ranks

    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument(
        "--data",
        type=Path,
        nargs="+",
        required=True,
        metavar="PATH",
        help="what to train on: text files and folders, or one folder of images",
    )
    parser.add_argument(
        "--run",
        type=Path,
        metavar="FOLDER",
        help="the new run's folder (default: that of the checkpoint's run, with -finetuned)",
    )
    parser.add_argument(
        "--lora",
        type=int,
        default=0,
        metavar="RANK",
        help="train adapters of this rank beside the weights of a language model, which stay as "
        "they are (default 0: train the weights)",
    )
    configure_ranks(parser)


def execute(arguments: argparse.Namespace) -> int:
    """Writes the new run's configuration where the ranks can read it, and starts them."""
    from launch.commands.train import check_installed, train_ranks

    check_installed()
    from trainers.configuration import as_yaml
    from trainers.errors import TrainerError
    from trainers.finetuning import finetuning_config

    try:
        config = finetuning_config(
            arguments.checkpoint, arguments.data, arguments.run, arguments.lora
        )
    except TrainerError as error:
        raise CommandError(str(error)) from error
    with tempfile.TemporaryDirectory(prefix="collectives-finetune-") as folder:
        file = Path(folder) / "finetune.yaml"
        file.write_text(as_yaml(config), encoding="utf-8")
        origin = f"{arguments.checkpoint} on other data"
        return train_ranks(arguments, file, resume=False, origin=origin)
