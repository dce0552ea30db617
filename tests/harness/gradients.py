"""What tests of averaged gradients share: a model with parts left out, and looks at gradients."""

from __future__ import annotations

from torch import nn


def gradients_of(net):
    return {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}


def equal_on_all(comm, tensors):
    """Passes if every rank has the same bits."""
    bits = {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}
    assert all(theirs == bits for theirs in comm.allgather_object(bits)), "ranks differ in bits"


class TwoHeads(nn.Module):
    """Twelve, of which a forward uses one."""

    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(2, 1, bias=False) for _ in range(12))

    def forward(self, x, head):
        return self.heads[head](x)

    def gradients(self):
        gradients = [head.weight.grad for head in self.heads]
        return [None if each is None else each.tolist() for each in gradients]
