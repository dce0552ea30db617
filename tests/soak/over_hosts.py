"""The programs on ranks that mpiexec has started, one machine playing several hosts."""

from __future__ import annotations

import os
import time
from typing import Any

from harness.under_mpi import mpi_spawn

import collectives
from soak.drawing import Taste, draw
from soak.execution import Execution
from soak.leftovers import NOTHING, held, left_over
from transports.mpi.world import begun_world

WAIT_SECONDS = 60.0  # that a call may take
_PATIENCE = 5.0  # seconds for all ranks to have closed


def run_over_hosts(
    seeds: list[int], hosts: str, taste: Taste, limit: float, spoil: int | None
) -> tuple[int, str]:
    """Operations that rank 0 has completed, and what went wrong."""
    try:
        done = mpi_spawn(
            programs_of_a_rank, len(hosts), seeds, taste, spoil, hosts=hosts, timeout=limit,
            environment={"COLLECTIVES_SILENCE_SECONDS": "15", "COLLECTIVES_TUNING": "off"},
        )  # fmt: skip
    except AssertionError as error:
        return 0, str(error)
    return done[0], ""


def programs_of_a_rank(comm: Any, seeds: list[int], taste: Taste, spoil: int | None) -> int:
    """One program after the other, each on a communicator of its own; `comm` stays open."""
    first = before = NOTHING._replace(mappings=held().mappings)  # those of `comm`
    done = 0
    usual = dict(os.environ)
    for seed in seeds:
        program = draw(seed, comm.size, taste)
        os.environ.clear()
        os.environ.update({**usual, **program.environment})
        with collectives.init(timeout=WAIT_SECONDS) as world:
            execution = Execution(program, world, spoil)
            execution.run()
        done += len(program.operations)
        del world, execution
        comm.barrier()
        _let_go()
        if text := left_over(before):
            raise AssertionError(f"seed {seed}, {comm.size} ranks, rank {comm.rank}: {text}")
        if before is first:  # the first program may have opened what stays open
            before = held()
    return done


def _let_go() -> None:
    """Carriers live on until all have closed; then the next communicator lets go of them."""
    world = begun_world()
    assert world is not None, "ranks of mpiexec"
    deadline = time.monotonic() + _PATIENCE
    while world.let_go() > 1 and time.monotonic() < deadline:
        time.sleep(0.01)
