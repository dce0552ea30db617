"""`python -m soak`: random programs on 1, 2, 3 and 4 ranks in turn until the time is over.

    PYTHONPATH=tests python -m soak --minutes 10
    PYTHONPATH=tests python -m soak --seed 17 --ranks 3 --programs 1
    PYTHONPATH=tests python -m soak --hosts aab --hosts abcc     # by MPI, on hosts that are played

Ranks run several programs, each on a communicator of its own, and must hold no more afterwards than
before. A failure prints seed, operation, rank, expected and found; --seed with --ranks repeats it.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import os
import secrets
import sys
import time
import traceback
from dataclasses import dataclass, field
from functools import partial

import collectives
from soak.drawing import Taste, draw
from soak.execution import Execution
from soak.forked_ranks import Ending, Forked, new_job, run
from soak.leftovers import NOTHING, held, left_over
from soak.over_hosts import run_over_hosts

TRANSPORTS = ("shm",)
"""Over which ranks are forked; by mpiexec: --hosts."""

PROGRAMS = 6  # of ranks that were started together
WAIT_SECONDS = 60.0  # that a call may take
GRACE_SECONDS = 10.0  # that ranks may take longer than others


@dataclass
class Account:
    """What a rank did.

    Attributes:
        operations: how many it has completed.
        failure: what went wrong first, with its class; empty: nothing.
        only_follows: whether it is what another rank's failure led to.
    """

    operations: int = 0
    failure: str = ""
    only_follows: bool = False
    where: list[int] = field(default_factory=list)


def main() -> int:
    """The exit code: 1 if anything was wrong."""
    options = _parse()
    if options.torch:
        import torch

        torch.set_num_threads(1)
    gc.freeze()
    if options.hosts:
        return over_hosts(options)
    first = options.seed if options.seed is not None else secrets.randbelow(1 << 30)
    deadline = time.monotonic() + options.minutes * 60
    sizes = options.ranks or [1, 2, 3, 4]
    done = operations = started = 0
    taste = Taste(length=options.operations, torch=options.torch)
    began = told = time.monotonic()
    print(f"soak: seeds from {first}, ranks {sizes}, transports {', '.join(TRANSPORTS)}")
    while (options.programs is None or done < options.programs) and time.monotonic() < deadline:
        count = PROGRAMS if options.programs is None else min(PROGRAMS, options.programs - done)
        size, transport = sizes[started % len(sizes)], TRANSPORTS[started % len(TRANSPORTS)]
        seeds = [first + done + more for more in range(count)]
        endings = start(seeds, size, transport, taste, options.limit * count, options.spoil)
        started, done = started + 1, done + count
        if not all(ending.value and not ending.value.failure for ending in endings):
            print(report(endings, seeds, size, transport))
            return 1
        operations += sum(ending.value.operations for ending in endings)
        if time.monotonic() - told > 60:
            told = time.monotonic()
            print(f"  {done} programs, {operations} operations", flush=True)
    seconds = time.monotonic() - began
    print(f"soak: {done} programs, {operations} operations in {seconds:.0f} s, nothing wrong")
    return 0


def over_hosts(options: argparse.Namespace) -> int:
    """As `main`, of ranks on several hosts."""
    first = options.seed if options.seed is not None else secrets.randbelow(1 << 30)
    taste = Taste(length=options.operations, torch=options.torch, reaches=False)
    began = time.monotonic()
    done = operations = 0
    print(f"soak: seeds from {first}, hosts {', '.join(options.hosts)}", flush=True)
    for turn in itertools.count():
        left = PROGRAMS if options.programs is None else min(PROGRAMS, options.programs - done)
        if left <= 0 or time.monotonic() > began + options.minutes * 60:
            break
        hosts = options.hosts[turn % len(options.hosts)]
        seeds = [first + done + more for more in range(left)]
        more, wrong = run_over_hosts(seeds, hosts, taste, options.limit * left, options.spoil)
        if wrong:
            print(f"soak: failed; to repeat it: --hosts {hosts} --seed {seeds[0]} "
                  f"--programs {left}\n{wrong}")  # fmt: skip
            return 1
        done, operations = done + left, operations + more
    seconds = time.monotonic() - began
    print(f"soak: {done} programs, {operations} operations in {seconds:.0f} s, nothing wrong")
    return 0


def start(
    seeds: list[int], size: int, transport: str, taste: Taste, limit: float, spoil: int | None
) -> list[Ending]:
    """Run the programs of these seeds on new ranks."""
    jobs = [new_job(size, {"COLLECTIVES_SILENCE_SECONDS": "15"}) for _ in seeds]
    job = partial(rank_program, seeds=seeds, size=size, transport=transport, taste=taste,
                  jobs=jobs, spoil=spoil)  # fmt: skip
    ended: list[float] = []

    def watch(ranks: list[Forked]) -> bool:
        """Whether the others have had time enough since a rank left them."""
        if not ended and any(rank.has_ended() for rank in ranks):
            ended.append(time.monotonic())
        return bool(ended) and time.monotonic() > ended[0] + GRACE_SECONDS

    return run([job] * size, limit, watch)


def rank_program(
    rank: int,
    *,
    seeds: list[int],
    size: int,
    transport: str,
    taste: Taste,
    jobs: list[dict[str, str]],
    spoil: int | None,
) -> Account:
    """On a rank: one program after the other."""
    account = Account()
    before = NOTHING
    usual = dict(os.environ)
    for seed, job in zip(seeds, jobs, strict=True):
        program = draw(seed, size, taste)
        os.environ.clear()
        os.environ.update({**usual, **job, **program.environment, "RANK": str(rank)})
        try:
            with collectives.init(transport, timeout=WAIT_SECONDS) as comm:
                execution = Execution(program, comm, spoil)
                execution.run()
            account.operations += len(program.operations)
        except BaseException as error:
            account.failure = "".join(traceback.format_exception(error))
            account.only_follows = isinstance(
                error, collectives.AbortedError | collectives.PeerLostError
            )
            return account
        del comm, execution
        if text := left_over(before):
            account.failure = f"seed {seed}, {size} ranks, rank {rank}: left over: {text}"
            return account
        if before == NOTHING:  # the first program may have opened what stays open
            before = held()
    return account


def report(endings: list[Ending], seeds: list[int], size: int, transport: str) -> str:
    """What went wrong, the first cause first."""
    lines = [f"soak: failed over {transport}; to repeat it (or with --programs {len(seeds)}):"]
    lines += [f"  make soak SEED={seeds[0]} RANKS={size}"]

    def follows(ending: Ending) -> bool:
        return bool(ending.value and (ending.value.only_follows or not ending.value.failure))

    order = sorted(range(size), key=lambda rank: follows(endings[rank]))
    for rank in order:
        ending = endings[rank]
        state = "hung and was killed" if ending.is_late else f"exit code {ending.code}"
        said = "" if ending.value is None else ending.value.failure
        if ending.is_late or said or ending.code:
            lines.append(f"--- rank {rank}: {state}\n{said}{ending.output}")
    return "\n".join(lines)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="soak", description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=1.0, help="how long")
    parser.add_argument("--programs", type=int, help="at most so many")
    parser.add_argument("--seed", type=int, help="of the first program; those after it count on")
    parser.add_argument("--ranks", type=int, action="append", help="only so many; may be repeated")
    parser.add_argument("--hosts", action="append", help="a letter for each rank; may be repeated")
    parser.add_argument("--operations", type=int, default=400, help="of a program, about")
    parser.add_argument("--limit", type=float, default=120, help="seconds a program may take")
    parser.add_argument("--without-torch", dest="torch", action="store_false")
    parser.add_argument("--spoil", type=int, metavar="OPERATION",
                        help="change one result, to see that it is found")  # fmt: skip
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
