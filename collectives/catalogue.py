"""Every algorithm that comes with the package, by collective and name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from collectives.algorithms.around_root import (
    pulled_scatter,
    push_pull_broadcast,
    pushed_gather,
    pushed_reduce,
)
from collectives.algorithms.binomial_tree import (
    binomial_allgather,
    binomial_allreduce,
    binomial_barrier,
    binomial_broadcast,
    binomial_gather,
    binomial_reduce,
    binomial_reduce_scatter,
    binomial_scatter,
)
from collectives.algorithms.bruck import bruck_allgather, bruck_alltoall
from collectives.algorithms.chain import chain_broadcast, chain_reduce
from collectives.algorithms.direct import direct_allgather, one_shot_allreduce, two_shot_allreduce
from collectives.algorithms.dissemination import dissemination_barrier
from collectives.algorithms.double_binary_tree import double_binary_tree_allreduce
from collectives.algorithms.halving_doubling import (
    halving_doubling_allreduce,
    halving_reduce_scatter,
)
from collectives.algorithms.hierarchical import (
    hierarchical_allgather,
    hierarchical_allreduce,
    hierarchical_barrier,
    hierarchical_broadcast,
    hierarchical_reduce,
    hierarchical_reduce_scatter,
)
from collectives.algorithms.linear import (
    linear_allreduce,
    linear_broadcast,
    linear_gather,
    linear_reduce,
    linear_reduce_scatter,
    linear_scatter,
)
from collectives.algorithms.one_sided import (
    one_sided_allgather,
    one_sided_allreduce,
    one_sided_alltoall,
    one_sided_broadcast,
    one_sided_gather,
    one_sided_reduce,
    one_sided_reduce_scatter,
)
from collectives.algorithms.pairwise import pairwise_alltoall, pairwise_reduce_scatter
from collectives.algorithms.recursive_doubling import (
    recursive_doubling_allgather,
    recursive_doubling_allreduce,
)
from collectives.algorithms.ring import (
    ring_allgather,
    ring_allreduce,
    ring_barrier,
    ring_gather,
    ring_reduce_scatter,
    ring_scatter,
)
from collectives.schedule import Algorithm
from collectives.specs import nearest, spec_named

_ALGORITHMS = (
    ring_allreduce,
    binomial_allreduce,
    double_binary_tree_allreduce,
    recursive_doubling_allreduce,
    halving_doubling_allreduce,
    one_shot_allreduce,
    two_shot_allreduce,
    linear_allreduce,
    hierarchical_allreduce,
    one_sided_allreduce,
    chain_reduce,
    binomial_reduce,
    linear_reduce,
    hierarchical_reduce,
    one_sided_reduce,
    ring_reduce_scatter,
    binomial_reduce_scatter,
    halving_reduce_scatter,
    pairwise_reduce_scatter,
    linear_reduce_scatter,
    hierarchical_reduce_scatter,
    one_sided_reduce_scatter,
    chain_broadcast,
    binomial_broadcast,
    linear_broadcast,
    hierarchical_broadcast,
    one_sided_broadcast,
    ring_scatter,
    binomial_scatter,
    linear_scatter,
    ring_gather,
    binomial_gather,
    linear_gather,
    one_sided_gather,
    ring_allgather,
    binomial_allgather,
    recursive_doubling_allgather,
    bruck_allgather,
    direct_allgather,
    hierarchical_allgather,
    one_sided_allgather,
    pairwise_alltoall,
    bruck_alltoall,
    one_sided_alltoall,
    ring_barrier,
    binomial_barrier,
    dissemination_barrier,
    hierarchical_barrier,
)

_ALIASES = {
    ("broadcast", "ring"): chain_broadcast,  # a ring that need not be closed
    ("reduce", "ring"): chain_reduce,
    ("alltoall", "ring"): pairwise_alltoall,
    ("alltoall", "tree"): bruck_alltoall,
}

CATALOGUE: Mapping[tuple[str, str], Algorithm] = MappingProxyType(
    {(algo.collective, algo.name): algo for algo in _ALGORITHMS} | _ALIASES
)
"""(collective, name) -> algorithm. Some algorithms have a second name."""

REACHING: Mapping[str, Algorithm] = MappingProxyType(
    {
        algo.collective: algo
        for algo in (
            one_sided_allreduce,
            pushed_reduce,
            one_sided_reduce_scatter,
            push_pull_broadcast,
            pulled_scatter,
            pushed_gather,
            one_sided_allgather,
            one_sided_alltoall,
        )
    }
)
"""collective -> the one-sided algorithm that may run on arrays that lie anywhere, by copies of the
kernel's. Some of them need arrays that not every rank has, so that there is no name for them."""


def names(collective: str) -> tuple[str, ...]:
    """The names of all algorithms for a collective, second names last.

    Raises:
        ValueError: there is no such collective; the text lists those there are.
    """
    spec_named(collective)
    return tuple(name for of, name in CATALOGUE if of == collective)


def find(collective: str, name: str) -> Algorithm:
    """The algorithm of that name.

    Raises:
        ValueError: there is none; the text lists those there are and names the nearest.
    """
    valid = names(collective)
    if name not in valid:
        raise ValueError(
            f"unknown algorithm {name!r} for {collective}; expected one of {', '.join(valid)}"
            + nearest(name, valid)
        )
    return CATALOGUE[collective, name]


def find_to_show(collective: str, name: str) -> Algorithm:
    """As `find`, also of what runs by copies of the kernel's, which no call can name.

    Raises:
        ValueError: as `find`.
    """
    reaching = REACHING.get(collective)
    return reaching if reaching is not None and reaching.name == name else find(collective, name)
