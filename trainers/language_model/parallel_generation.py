"""One rank of `collectives generate -n N`: a part of the decoder, and the whole of the text.

Rank 0 leaves the text in a file, since lines on their way through a launcher are not kept byte by
byte, and says on stderr what a token has cost.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import collectives
from trainers.language_model.generation import Sampling, continuation, read_decoder
from trainers.language_model.network import KeyValueCache
from trainers.language_model.tensor_parallel import agreed_text, share_out


def words_for(checkpoint: Path, prompt: str, sampling: Sampling, output: Path) -> list[str]:
    """The arguments with which every rank is started."""
    # With =, since a path or a prompt may begin with a dash.
    return [
        f"--checkpoint={checkpoint}",
        f"--prompt={prompt}",
        f"--tokens={sampling.tokens}",
        f"--temperature={sampling.temperature!r}",
        f"--top-k={sampling.top_k}",
        f"--seed={sampling.seed}",
        f"--output={output}",
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Generates as one rank of however many there are."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--temperature", type=float, required=True)
    parser.add_argument("--top-k", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args(argv)
    sampling = Sampling(
        tokens=arguments.tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        seed=arguments.seed,
    )
    with collectives.init() as comm:
        decoder, tokenizer = read_decoder(arguments.checkpoint)
        traffic = share_out(decoder, comm)
        cache = KeyValueCache(decoder.config, ranks=comm.size)
        text = continuation(decoder, tokenizer, arguments.prompt, sampling, cache)
        text = agreed_text(comm, text)
        if comm.rank == 0:
            # Bytes, so that line ends stay what they are.
            arguments.output.write_bytes(text.encode("utf-8", "surrogateescape"))
            print(traffic.described(decoder.config.layers, comm.size), file=sys.stderr, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
