"""One rank of `collectives train`: `python -m trainers CONFIG [--set key=value] [--resume]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    """Trains as one rank of however many there are."""
    parser = argparse.ArgumentParser(prog="python -m trainers", allow_abbrev=False)
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args(argv)

    import collectives
    from trainers.configuration import read_config

    config = read_config(arguments.config, arguments.settings)
    with collectives.init() as comm:
        from trainers.run import carry_out

        carry_out(config, comm, resume=arguments.resume)
    return 0


if __name__ == "__main__":
    sys.exit(main())
