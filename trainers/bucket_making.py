"""From parameters to buckets: memory for them, cut as rank 0 has planned it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from trainers.bucket_plan import BucketPlan, Predict, grouped, planned_sizes, predictor
from trainers.buckets import Bucket, elements_of
from trainers.placement import empty_to_travel
from trainers.sharded import ShardedBucket, shared_out
from transports.telling import tell

if TYPE_CHECKING:
    from collectives import Communicator


@dataclass(frozen=True)
class Made:
    """Buckets, and what is known of them.

    Attributes:
        buckets: in the order in which they become ready.
        plan: how they were cut.
        predicted: what averaging takes, by bytes and the number of ranks.
        gather_predicted: the same of gathering parameters, where they are sharded.
    """

    buckets: list[Bucket]
    plan: BucketPlan
    predicted: Predict
    gather_predicted: Predict | None


def make_buckets(
    comm: Communicator,
    parameters: Sequence[nn.Parameter],
    *,
    bucket_bytes: int | None,
    wire: torch.dtype | None,
    shard: Literal["elements", "parameters"] | None,
    marked: bool,
) -> Made:
    """Makes the buckets of parameters; a collective call.

    Args:
        comm: the ranks.
        parameters: in the order in which their gradients become ready.
        bucket_bytes: what a bucket holds at most; None: what is cheapest.
        wire: the type in which gradients travel; None: their own.
        shard: how parameters are shared out; None: not at all.
        marked: whether buckets have marks of the gradients that are there.
    """
    kinds: dict[tuple[torch.dtype, torch.device], list[nn.Parameter]] = {}
    for parameter in parameters:
        kinds.setdefault((parameter.dtype, parameter.device), []).append(parameter)
    size = comm.size
    buckets: list[Bucket] = []
    room = {
        # However they are cut: each bucket's end may be up to so much further on.
        kind: _room(
            comm, wire, *kind, sum(elements_of([each], size, marked=marked) for each in theirs)
        )
        for kind, theirs in kinds.items()
    }
    _, sent = room[parameters[0].dtype, parameters[0].device]
    predicted = predictor(comm, sent, "reduce_scatter" if shard else "allreduce")
    gather_predicted = predictor(comm, sent, "allgather") if shard else None
    most, last, reason = planned_sizes(comm, sent, predicted, bucket_bytes)
    taken = dict.fromkeys(room, 0)
    loads = [0] * size
    for group in grouped(parameters, most, last, wire):
        kind = (group[0].dtype, group[0].device)
        begin = taken[kind]
        taken[kind] = end = begin + elements_of(group, size, marked=marked)
        flat, sent = (memory[begin:end] for memory in room[kind])
        if shard is None:
            buckets.append(Bucket(group, flat, sent, marked=marked))
            continue
        theirs, counts = shared_out(group, end - begin, shard, loads)
        buckets.append(ShardedBucket(theirs, flat, sent, counts, comm))
    nbytes = tuple(bucket.sent.numel() * bucket.sent.element_size() for bucket in buckets)
    seconds = tuple(map(predicted, nbytes))
    plan = BucketPlan(nbytes, seconds, most, last, reason)
    return Made(buckets, plan, predicted, gather_predicted)


def _room(
    comm: Communicator,
    wire: torch.dtype | None,
    dtype: torch.dtype,
    device: torch.device,
    elements: int,
) -> tuple[Tensor, Tensor]:
    """Where gradients of a kind lie, and where they are while they travel."""
    travels = dtype if wire is None else wire
    sent = empty_to_travel(comm, elements, travels, device)
    if sent.device == device and travels == dtype:
        return sent, sent
    if sent.device != device and comm.rank == 0:
        tell(
            f"gradients on {device} are averaged in host memory: calls of this communicator carry "
            "no arrays on devices (which takes cupy, and init() without transport='shm')"
        )
    return torch.empty(elements, dtype=dtype, device=device), sent
