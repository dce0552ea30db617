"""One-sided: every rank reads, or writes, where the data lies, in the memory of its peers.

Memory that all ranks can reach (shared memory, CUDA IPC) needs no messages but to say when: a rank
notifies its peers once its memory may be used, and again once it has done with theirs. Between
the two, everyone works at once, and no byte is moved on its way.

    rank 0   enter ── notify, wait ── use the memory of peers ── notify, wait ── leave
    rank 1   enter ── notify, wait ── use the memory of peers ── notify, wait ── leave

Where only one rank touches the memory of the others (or all only that of one), notifies pass
between that rank and the others alone.
"""

from __future__ import annotations

from collectives.algorithms.neighbours import others
from collectives.schedule import Steps, algorithm, notify, read, read_reduce, wait, write


def everyone_is_there(rank: int, size: int) -> Steps:
    """Nobody goes on until all have come here: what they did before is done and visible."""
    if size > 1:
        yield notify(others(rank, size))
        yield wait(others(rank, size))


@algorithm(
    "allreduce",
    name="one_sided",
    chunks=lambda size: size,
    widest=lambda size: 1,
    cost="2(n-1) alpha + 2(n-1)/n s beta + (n-1)/n s gamma",
    messages="2(n-1)",
    volume="2(n-1)/n s",
    source="NVIDIA TensorRT-LLM 2023 (two-shot all-reduce)",
    one_sided=True,
)
def one_sided_allreduce(rank: int, size: int) -> Steps:
    """Every rank adds up its chunk where the others hold it, and stores the sum at all of them.

    One pass over memory: n reads and n writes of s/n bytes a rank, the least there are.
    """
    yield from everyone_is_there(rank, size)
    if size > 1:
        # In one pass: what is added up goes to all at once.
        yield read_reduce(others(rank, size), chunk=rank)
        yield write(others(rank, size), chunk=rank)
    yield from everyone_is_there(rank, size)


@algorithm(
    "reduce_scatter",
    name="one_sided",
    widest=lambda size: 1,
    cost="2(n-1) alpha + (n-1)/n s (beta + gamma)",
    messages="2(n-1)",
    volume="(n-1)/n s",
    source="NVIDIA TensorRT-LLM 2023 (two-shot all-reduce, its first half)",
    one_sided=True,
)
def one_sided_reduce_scatter(rank: int, size: int) -> Steps:
    """Every rank adds up its chunk where the others hold it, in one pass and in rank order."""
    yield from everyone_is_there(rank, size)
    if size > 1:
        yield read_reduce(others(rank, size), chunk=rank)
    yield from everyone_is_there(rank, size)


@algorithm(
    "allgather",
    name="one_sided",
    widest=lambda size: 1,
    cost="2(n-1) alpha + (n-1)/n s beta",
    messages="2(n-1)",
    volume="(n-1)/n s",
    source="NVIDIA TensorRT-LLM 2023 (two-shot all-reduce, its second half)",
    one_sided=True,
)
def one_sided_allgather(rank: int, size: int) -> Steps:
    """Every rank reads the chunk of each other one, beginning with its right neighbour's."""
    yield from everyone_is_there(rank, size)
    for peer in others(rank, size):
        yield read(peer, chunk=peer)
    yield from everyone_is_there(rank, size)


@algorithm(
    "alltoall",
    name="one_sided",
    widest=lambda size: 1,
    cost="2(n-1) alpha + (n-1)/n s beta",
    messages="2(n-1)",
    volume="(n-1)/n s",
    source="Thakur, Rabenseifner & Gropp 2005 (pairwise exchange, by remote reads)",
    one_sided=True,
)
def one_sided_alltoall(rank: int, size: int) -> Steps:
    """Every rank reads what each other one has for it, beginning with its right neighbour."""
    yield from everyone_is_there(rank, size)
    for peer in others(rank, size):
        yield read(peer, chunk=(peer, rank))
    yield from everyone_is_there(rank, size)


@algorithm(
    "reduce",
    name="one_sided",
    widest=lambda size: 1,
    cost="(n-1)(2 alpha + s beta + s gamma)",
    messages="n-1",
    volume="(n-1) s",
    source="Chan, Heimlich, Purkayastha & van de Geijn 2007 (linear, by remote reads)",
    one_sided=True,
)
def one_sided_reduce(rank: int, size: int, root: int) -> Steps:
    """The root adds up all arrays where they lie, in one pass and in rank order."""
    if rank != root:
        yield notify(root)
        yield wait(root)
    elif size > 1:
        yield wait(others(root, size))
        yield read_reduce(others(root, size), chunk=0)
        yield notify(others(root, size))


@algorithm(
    "gather",
    name="one_sided",
    widest=lambda size: 1,
    cost="2(n-1) alpha + (n-1)/n s beta",
    messages="n-1",
    volume="(n-1)/n s",
    source="Chan, Heimlich, Purkayastha & van de Geijn 2007 (linear, by remote reads)",
    one_sided=True,
)
def one_sided_gather(rank: int, size: int, root: int) -> Steps:
    """The root reads the chunk of every rank where it lies."""
    if rank != root:
        yield notify(root)
        yield wait(root)
    elif size > 1:
        yield wait(others(root, size))
        for peer in others(root, size):
            yield read(peer, chunk=peer)
        yield notify(others(root, size))


@algorithm(
    "broadcast",
    name="one_sided",
    widest=lambda size: 1,
    cost="(n > 1)(n alpha + s beta)",
    messages="n-1",
    volume="(n > 1) s",
    source="Chan, Heimlich, Purkayastha & van de Geijn 2007 (linear, by remote reads)",
    one_sided=True,
)
def one_sided_broadcast(rank: int, size: int, root: int) -> Steps:
    """Every rank reads the array of the root, all at once; the root waits until all have."""
    if rank != root:
        yield wait(root)
        yield read(root, chunk=0)
        yield notify(root)
    elif size > 1:
        yield notify(others(root, size))
        yield wait(others(root, size))
