"""algbw and busbw: how many bytes a second, as nccl-tests defines them.

*algbw* is the size over the time. It says how quickly a job gets its result, but falls with the
number of ranks by the nature of the collective. *busbw* is algbw times a factor that takes this
out, so that it can be held against the bandwidth of the machine's links:

Let n ranks work on s bytes, every rank sending and receiving at most B bytes a second, both at
once. The least time is the most bytes that some rank must send or receive, over B:

    allreduce        every element has n contributions, hence n - 1 additions, and each of these
                     needs one element sent; then n - 1 ranks must receive the result: 2(n-1) s
                     bytes sent in all, by n ranks at once:              t = 2(n-1)/n s / B
    reduce_scatter   the first half of that:                             t = (n-1)/n s / B
    allgather        every rank receives what the n - 1 others hold:     t = (n-1)/n s / B
    alltoall         every rank sends n - 1 of its n parts:              t = (n-1)/n s / B
    gather, scatter  the root receives (sends) all parts but its own:    t = (n-1)/n s / B
    broadcast        every rank but the root receives everything:        t = s / B
    reduce           the root receives at least one message of s bytes:  t = s / B
    pingpong, stream one rank sends s bytes to another:                  t = s / B

So B = factor * s / t, with the factor of s / B above. The size s is as in nccl-tests: the bytes of
the longest array of a rank, which for allgather and gather is the gathered one. A barrier moves
nothing and has no rate.

Over shared memory B is no link's: a reader takes bytes that nobody sent, and busbw may exceed what
memory can copy. There the `limit` beside it is what to compare with.
"""

from __future__ import annotations

BARRIER = "barrier"


def busbw_factor(collective: str, size: int) -> float:
    """How many times algbw busbw is, at `size` ranks.

    Raises:
        ValueError: no such collective.
    """
    others = (size - 1) / size
    factors = {
        "allreduce": 2 * others,
        "reduce_scatter": others,
        "allgather": others,
        "alltoall": others,
        "gather": others,
        "scatter": others,
        "broadcast": 1.0,
        "reduce": 1.0,
        "pingpong": 1.0,
        "stream": 1.0,
        BARRIER: 0.0,
    }
    try:
        return factors[collective]
    except KeyError:
        raise ValueError(
            f"no busbw factor for {collective!r}; expected one of {', '.join(factors)}"
        ) from None


def algbw(nbytes: int, seconds: float) -> float:
    """Bytes a second; 0 for no time at all."""
    return nbytes / seconds if seconds > 0 else 0.0


def busbw(collective: str, size: int, nbytes: int, seconds: float) -> float:
    """Bytes a second, comparable with the bandwidth of the links."""
    return algbw(nbytes, seconds) * busbw_factor(collective, size)
