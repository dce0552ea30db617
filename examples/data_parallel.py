"""Data-parallel training in a loop of one's own: one line more than alone."""

import torch
from torch import nn

import collectives
from trainers.data_parallel import DataParallel

with collectives.init() as comm:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
    model = DataParallel(net, comm)  # rank 0's weights go to all
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    for step in range(200):
        torch.manual_seed(1000 * step + comm.rank)  # samples of this rank's own
        inputs = torch.randn(16, 8)
        loss = (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
        loss.backward()  # returns with the ranks' average in every .grad
        optimizer.step()
        optimizer.zero_grad()
    if comm.rank == 0:
        print(f"loss {loss.item():.2f} on {comm.size} ranks; {model.plan}")
