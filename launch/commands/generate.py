"""`collectives generate`: continues a text with a decoder that `collectives train` has trained."""

from __future__ import annotations

import argparse
from pathlib import Path

from launch.commands import CommandError

HELP = "continue a text with a trained language model"
DESCRIPTION = """\
Continue a text with a trained language model:

    collectives generate runs/llm_small "def fib("
    collectives generate runs/llm_small "import " --tokens 50 --temperature 0

CHECKPOINT is a file, or the folder of a run (its latest checkpoint). Each token is drawn from those
the model holds likely; the same seed gives the same text. It ends after --tokens, or where the
model ends a file. An empty prompt begins a file."""
INTERMIXED = True


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument("prompt", metavar="PROMPT")
    parser.add_argument(
        "--tokens", type=int, default=200, metavar="N", help="at most so many (default 200)"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.8,
        metavar="T",
        help="higher is bolder; 0 always takes the likeliest token (default 0.8)",
    )
    parser.add_argument(
        "--top-k",
        type=int,
        default=50,
        metavar="K",
        help="draw among the K likeliest tokens, 0 for all (default 50)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the draws (default 0)")


def execute(arguments: argparse.Namespace) -> int:
    """Reads the checkpoint and prints the prompt with what follows it."""
    from launch.commands.train import check_installed

    check_installed()
    from trainers.errors import TrainerError
    from trainers.language_model.generation import Sampling, continuation, read_decoder

    try:
        sampling = Sampling(
            tokens=arguments.tokens,
            temperature=arguments.temperature,
            top_k=arguments.top_k,
            seed=arguments.seed,
        )
        decoder, tokenizer = read_decoder(arguments.checkpoint)
    except TrainerError as error:
        raise CommandError(str(error)) from error
    print(continuation(decoder, tokenizer, arguments.prompt, sampling))
    return 0
