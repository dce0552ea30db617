"""What each collective must achieve, said once: its chunks, who holds them before and after.

Algorithms say only how. The proof checks them against this file, lowering takes from it which
chunks live in a call's input and output, and the communicator lays out user arrays by it.

| collective     | chunk           | at the start, rank r holds      | at the end                 |
|----------------|-----------------|---------------------------------|----------------------------|
| allreduce      | c of k          | its contribution to every chunk | everyone: all chunks, sums |
| reduce         | c of k          | its contribution to every chunk | root: every chunk, summed  |
| reduce_scatter | c of n          | its contribution to every chunk | rank r: chunk r, summed    |
| broadcast      | c of k          | root: every chunk               | everyone: every chunk      |
| scatter        | c of n          | root: every chunk               | rank r: chunk r            |
| gather         | c of n          | rank r: chunk r                 | root: every chunk          |
| allgather      | c of n          | rank r: chunk r                 | everyone: every chunk      |
| alltoall       | (s, d) of n x n | rank r: chunks (r, *)           | rank r: chunks (*, r)      |
| barrier        | one empty chunk | -                               | has heard from every rank  |
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Holders = Literal["all", "root", "own", "row", "column", "none"]
"""Which chunks a rank holds: every one, every one at the root only, its own (c = r), those it
sends (s = r), those it receives (d = r), none."""

Chunking = Literal["open", "ranks", "pairs", "empty"]
"""open: k is the algorithm's choice; ranks: one a rank; pairs: one a (source, destination) pair;
empty: a single chunk without bytes."""


@dataclass(frozen=True)
class Spec:
    """Pre- and postcondition of one collective.

    Attributes:
        name: the collective.
        chunking: what a chunk is.
        start: the chunks a rank holds before.
        end: the chunks it must hold after.
        reduces: whether contributions of all ranks are combined.
        rooted: whether one rank is special.
    """

    name: str
    chunking: Chunking
    start: Holders
    end: Holders
    reduces: bool = False
    rooted: bool = False

    def chunk_count(self, size: int, k: int) -> int:
        """Number of chunks at `size` ranks; `k` counts where chunking is open.

        Raises:
            ValueError: the algorithm's k is not positive.
        """
        if self.chunking == "open" and k < 1:
            raise ValueError(f"{self.name} needs at least one chunk, found {k}")
        return {"open": k, "ranks": size, "pairs": size * size, "empty": 1}[self.chunking]

    def inputs(self, rank: int, size: int, root: int, chunk_count: int) -> tuple[int, ...]:
        """Chunks that `rank` holds at the start, in the order its input array lays them out."""
        return _held(self.start, rank, size, root, chunk_count)

    def outputs(self, rank: int, size: int, root: int, chunk_count: int) -> tuple[int, ...]:
        """Chunks that `rank` must hold at the end, in the order its output array lays them out."""
        return _held(self.end, rank, size, root, chunk_count)

    def contributors(self, chunk: int, size: int, root: int) -> frozenset[int]:
        """Ranks whose value of `chunk` at the start makes up its value at the end."""
        if self.reduces or self.chunking == "empty":
            return frozenset(range(size))
        if self.start == "root":
            return frozenset({root})
        if self.start == "row":
            return frozenset({chunk // size})
        return frozenset({chunk})


def _held(holders: Holders, rank: int, size: int, root: int, count: int) -> tuple[int, ...]:
    if holders == "all" or (holders == "root" and rank == root):
        return tuple(range(count))
    if holders == "own":
        return (rank,)
    if holders == "row":
        return tuple(rank * size + destination for destination in range(size))
    if holders == "column":
        return tuple(source * size + rank for source in range(size))
    return ()


SPECS: dict[str, Spec] = {
    spec.name: spec
    for spec in (
        Spec("allreduce", "open", start="all", end="all", reduces=True),
        Spec("reduce", "open", start="all", end="root", reduces=True, rooted=True),
        Spec("reduce_scatter", "ranks", start="all", end="own", reduces=True),
        Spec("broadcast", "open", start="root", end="all", rooted=True),
        Spec("scatter", "ranks", start="root", end="own", rooted=True),
        Spec("gather", "ranks", start="own", end="root", rooted=True),
        Spec("allgather", "ranks", start="own", end="all"),
        Spec("alltoall", "pairs", start="row", end="column"),
        Spec("barrier", "empty", start="none", end="none"),
    )
}


def nearest(word: str, valid: Iterable[str]) -> str:
    """A hint to append to an error: the closest valid word, or nothing."""
    close = difflib.get_close_matches(word, list(valid), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def spec_named(collective: str) -> Spec:
    """The spec of a collective.

    Raises:
        ValueError: there is none of that name; the text lists the valid ones.
    """
    try:
        return SPECS[collective]
    except KeyError:
        raise ValueError(
            f"unknown collective {collective!r}; expected one of {', '.join(SPECS)}"
            + nearest(collective, SPECS)
        ) from None
