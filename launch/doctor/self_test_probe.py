"""Asked in a process of its own: starts two ranks, which check two collectives and time a third."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collectives.communicator import Communicator

RANKS = 2
COUNT = 1 << 16
ROUNDS = 5
CALLS = 200


def call_seconds(comm: Communicator) -> float:
    """Checks an allreduce and a broadcast, and returns what an allreduce of 8 bytes takes.

    Raises:
        ValueError: a result is wrong.
    """
    import numpy as np

    x = np.arange(COUNT, dtype=np.float32)  # so small that sums are exact
    share = x * np.float32(comm.rank + 1)
    wanted = x * np.float32(sum(range(1, comm.size + 1)))
    if not np.array_equal(comm.allreduce(share), wanted):
        raise ValueError(f"rank {comm.rank} has a wrong result of allreduce")
    if not np.array_equal(comm.broadcast(share, root=1), x * np.float32(2)):
        raise ValueError(f"rank {comm.rank} has a wrong result of broadcast")
    small = np.ones(1)
    best = float("inf")
    for _ in range(ROUNDS):
        comm.barrier()
        begin = time.perf_counter()
        for _ in range(CALLS):
            comm.allreduce(small, out=small, op="max")
        best = min(best, (time.perf_counter() - begin) / CALLS)
    return best


def run_ranks(seconds: float) -> float:
    """The slower rank's time."""
    from launch.spawning import spawn

    return max(spawn(call_seconds, RANKS, timeout=seconds))


if __name__ == "__main__":
    # By its name, not as __main__'s: the ranks import it.
    from launch.doctor import self_test_probe

    print(json.dumps({"seconds": self_test_probe.run_ranks(float(sys.argv[1]))}))
