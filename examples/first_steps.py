"""Collectives from your own code: numpy in, numpy out; torch in, torch out."""

import numpy as np
import torch

import collectives

with collectives.init() as comm:  # ranks from the launcher or torchrun; alone: a world of one
    x = np.full(4, comm.rank, dtype=np.float32)
    total = comm.allreduce(x)  # a new array; every rank gets the same bits
    comm.allreduce(x, out=x, op="max")  # in place
    rows = comm.allgather(x)  # shape (size, 4)
    mine = comm.scatter(rows if comm.rank == 0 else None, root=0)

    gradient = torch.full((1000,), float(comm.rank), dtype=torch.bfloat16)
    work = comm.allreduce(gradient, op="avg", async_op=True)  # in the background
    mean = work.wait()

    half = comm.split(color=comm.rank % 2)  # a communicator of every second rank
    settings = comm.broadcast_object({"lr": 0.1}, root=0)
    half.barrier()
    half.close()
    if comm.rank == 0:
        print(f"{comm.size} ranks: total {total}, rows {rows.shape}, mean {mean[0]}, {settings}")
