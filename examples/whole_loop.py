"""A whole loop: accumulation, an uneven last batch, clipping, a sharded optimizer that is saved.

collectives run -n 2 examples/whole_loop.py FOLDER EPOCHS
"""

import contextlib
import sys
from pathlib import Path

import torch
from torch import nn

import collectives
from trainers.data_parallel import DataParallel
from trainers.sharded import ShardedOptimizer

SAMPLES, BATCH, PARTS = 131, 32, 2  # the last batch has 3
folder, epochs = Path(sys.argv[1]), int(sys.argv[2])

everyones = torch.Generator().manual_seed(1)
inputs = torch.randn(SAMPLES, 8, generator=everyones)
targets = inputs.sum(1, keepdim=True)

with collectives.init() as comm:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
    model = DataParallel(net, comm, shard="elements")
    optimizer = ShardedOptimizer(model, torch.optim.AdamW, lr=1e-2)

    folder.mkdir(exist_ok=True)
    file = folder / f"rank-{comm.rank}-of-{comm.size}.pt"
    first = 0
    if file.exists():
        saved = torch.load(file)
        net.load_state_dict(saved["net"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["epoch"]
    if len(set(comm.allgather_object(first))) > 1:
        sys.exit(f"{folder}: the files are of different epochs, of a run that ended while it saved")

    for epoch in range(first, epochs):
        order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(epoch))
        whole = 0.0
        for batch in order.split(BATCH):
            mine = batch[comm.rank :: comm.size]  # ranks may have unequal numbers
            parts = mine.tensor_split(PARTS)
            optimizer.zero_grad()
            for number, part in enumerate(parts):
                last = number == PARTS - 1
                with contextlib.nullcontext() if last else model.no_sync():
                    if not len(part):
                        model.contribute_nothing()
                        continue
                    loss = (model(inputs[part]) - targets[part]).square().mean()
                    (loss * model.weight(len(part), len(batch))).backward()
                    whole += loss.item() * len(part)
            model.clip_gradients(1.0)  # not nn.utils.clip_grad_norm_: gradients are sharded
            optimizer.step()
        mean = comm.allreduce(torch.tensor([whole])).item() / SAMPLES
        state = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch + 1}
        torch.save(state, file)
        if comm.rank == 0:
            print(f"epoch {epoch + 1}: loss {mean:.4f}")
