"""How long an allreduce takes, seen from Python: best of five rounds, result arrays reused."""

import time

import numpy as np

import collectives

with collectives.init() as comm:
    for nbytes in (8, 1 << 10, 16 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20):
        x = np.ones(nbytes // 4, dtype=np.float32)
        out = np.empty_like(x)
        calls = max(3, min(5000, (64 << 20) // nbytes))
        best = float("inf")
        for _ in range(5):
            comm.barrier()
            begin = time.perf_counter()
            for _ in range(calls):
                comm.allreduce(x, out=out)
            best = min(best, (time.perf_counter() - begin) / calls)
        assert (out == comm.size).all()
        if comm.rank == 0:
            print(f"{nbytes:>9} bytes {best * 1e6:10.2f} us {nbytes / best / 1e9:7.2f} GB/s")
