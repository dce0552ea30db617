"""`collectives generate`: continues a text with a decoder that `collectives train` has trained."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from launch.commands import CommandError

if TYPE_CHECKING:
    from trainers.language_model.generation import Sampling

HELP = "continue a text with a trained language model"
DESCRIPTION = """\
Continue a text with a trained language model:

    collectives generate runs/llm_small "def fib("
    collectives generate runs/llm_small "import " --tokens 50 --temperature 0
    collectives generate runs/llm_small "def fib(" -n 2

CHECKPOINT is a file, or the folder of a run (its latest checkpoint). Each token is drawn from those
the model holds likely; the same seed gives the same text. It ends after --tokens, or where the
model ends a file. An empty prompt begins a file.

With -n N each layer is shared out among N ranks, which add up what they have by two allreduces a
layer (tensor parallelism); the text is the same but for rounding. What a token took, and how much
of it was communication, is said on stderr."""
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
    parser.add_argument(
        "-n",
        "--ranks",
        type=int,
        default=1,
        metavar="N",
        help="share the model out among N ranks; divides its key_value_heads (default 1)",
    )
    parser.add_argument(
        "--threads", type=int, metavar="K", help="per rank, with -n (default: cores / ranks)"
    )


def execute(arguments: argparse.Namespace) -> int:
    """Reads the checkpoint and prints the prompt with what follows it."""
    from launch.commands.train import check_installed

    check_installed()
    from launch.jobs import check_counts
    from trainers.checkpoints import latest
    from trainers.errors import TrainerError
    from trainers.language_model.generation import Sampling, continuation, read_decoder
    from trainers.language_model.tensor_parallel import check_divides

    try:
        sampling = Sampling(
            tokens=arguments.tokens,
            temperature=arguments.temperature,
            top_k=arguments.top_k,
            seed=arguments.seed,
        )
        check_counts(arguments.ranks, arguments.threads)
        # The file, so that ranks do not find a later one in the folder.
        found = arguments.checkpoint
        file = latest(found) if found.is_dir() else found
        decoder, tokenizer = read_decoder(file)
        check_divides(decoder.config, arguments.ranks)
    except (TrainerError, ValueError) as error:
        raise CommandError(str(error)) from error
    if arguments.ranks > 1:
        return _generate_on_ranks(arguments, file, sampling)
    print(continuation(decoder, tokenizer, arguments.prompt, sampling))
    return 0


def _generate_on_ranks(arguments: argparse.Namespace, file: Path, sampling: Sampling) -> int:
    """Starts the ranks and prints the text that they leave."""
    from launch.jobs import module_command, run_job
    from trainers.language_model.parallel_generation import words_for

    with tempfile.TemporaryDirectory(prefix="collectives-generate-") as folder:
        output = Path(folder) / "text"
        words = words_for(file, arguments.prompt, sampling, output)
        code = run_job(
            module_command("trainers.language_model.parallel_generation", words),
            arguments.ranks,
            threads=arguments.threads,
        )
        if code == 0:
            print(output.read_bytes().decode("utf-8", "surrogateescape"))
        return code
