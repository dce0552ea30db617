"""One rank of `collectives train`: `python -m trainers CONFIG [--set key=value] [--resume]`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainers.errors import TrainerError
    from trainers.run_config import RunConfig

FAILED = 1
SIGNALLED = 128
INTERRUPTED = 130  # as shells have it: 128 + SIGINT
ALL_ARE_INTERRUPTED_WITHIN = 1.0  # seconds
ALL_HAVE_TOLD_WITHIN = 1.0


def main(argv: Sequence[str] | None = None) -> int:
    """Trains as one rank of however many there are."""
    parser = argparse.ArgumentParser(prog="python -m trainers", allow_abbrev=False)
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args(argv)

    from trainers.configuration import read_config
    from trainers.errors import TrainerError

    try:
        config = read_config(arguments.config, arguments.settings)
        stopped = _train(config, resume=arguments.resume)
    except KeyboardInterrupt:  # before the first step or after the last
        return INTERRUPTED
    except TrainerError as error:  # which has told the other ranks on its way
        return _fail(error)
    return SIGNALLED + stopped if stopped else 0


def _fail(error: TrainerError) -> int:
    """Says in one message what the user can put right; no traceback leads there."""
    from trainers.errors import DivergedError

    if isinstance(error, DivergedError) and error.told_elsewhere:
        time.sleep(ALL_HAVE_TOLD_WITHIN)  # that rank is to be the first to fail
    else:
        print(f"collectives train: {error}", file=sys.stderr, flush=True)
    return FAILED


def _train(config: RunConfig, *, resume: bool) -> int:
    """Trains; returns the signal that has stopped it, or 0."""
    import collectives
    from trainers.placement import TRANSPORTS
    from trainers.precision import subnormals_flushed

    try:
        transport = TRANSPORTS[config.train.device]
        with collectives.init(transport) as comm, subnormals_flushed():
            from trainers.restarts import Start
            from trainers.run import carry_out

            start = Start.from_environment()
            return carry_out(config, comm, resume=resume, start=start).stopped
    except (collectives.AbortedError, collectives.PeerLostError):
        # Ctrl-C is for every rank, and another may have had it, and gone, before us: then ours is
        # on its way and ends this sleep.
        time.sleep(ALL_ARE_INTERRUPTED_WITHIN)
        raise


if __name__ == "__main__":
    sys.exit(main())
