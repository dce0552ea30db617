"""Trees on ranks: the binomial tree, and the in-order binary tree that can be doubled.

A *place* is a rank counted from the root: place 0 is the root.
"""

from __future__ import annotations


def place_of(rank: int, size: int, root: int) -> int:
    """Where `rank` stands, counted from the root."""
    return (rank - root) % size


def rank_at(place: int, size: int, root: int) -> int:
    """Which rank stands at `place`."""
    return (place + root) % size


def _low_bit(place: int, size: int) -> int:
    """The lowest bit that is set; of 0 the power of two that bounds the size."""
    return place & -place if place else 1 << (size - 1).bit_length()


def binomial_parent(place: int) -> int:
    """The place above (of any but 0): the lowest bit cleared.

    0 ── 4 ── 6 ── 7
    │    └─── 5
    ├─── 2 ── 3
    └─── 1
    """
    return place & (place - 1)


def binomial_children(place: int, size: int) -> list[int]:
    """The places below, the one with the deepest subtree first."""
    children = []
    bit = _low_bit(place, size) // 2
    while bit:
        if place + bit < size:
            children.append(place + bit)
        bit //= 2
    return children


def binomial_subtree(place: int, size: int) -> range:
    """The places of the subtree whose root is `place`: always a run."""
    return range(place, min(place + _low_bit(place, size), size))


def widest_subtree(size: int) -> int:
    """Places in the largest subtree of the binomial tree below its root."""
    return max((len(binomial_subtree(p, size)) for p in binomial_children(0, size)), default=0)


def inorder_parent(place: int, size: int) -> int:
    """The place above (of any but 0) in the in-order binary tree; odd places are leaves.

    The lowest bit that is set tells the height: leaves are odd, then come 2, 6, 10, ..., then 4,
    12, ...; a place hangs below the one next to it that is one higher, to its left or right. Where
    the size cuts that one off, it hangs below the nearest one to its left that is higher.

        0─────────────┐
                      8
               ┌──────┴──────┐
               4             12
           ┌───┴───┐     ┌───┴───┐
           2       6     10      14
          ┌┴┐     ┌┴┐   ┌┴┐     ┌┴┐
          1 3     5 7   9 11   13 15
    """
    bit = _low_bit(place, size)
    above = (place - bit) | (2 * bit)
    return above if above < size else place - bit


def inorder_children(place: int, size: int) -> list[int]:
    """The places below in the in-order binary tree, left before right."""
    half = _low_bit(place, size) // 2
    left = [place - half] if place and half else []
    while half and place + half >= size:
        half //= 2
    return left + ([place + half] if half else [])


def twin_place(rank: int, size: int) -> int:
    """The place of `rank` in the second of two in-order trees; in the first it is the rank itself.

    Mirrored where the size is even, shifted by one where it is odd: either way what was even
    becomes odd, so that (almost) every rank is a leaf of one tree and works in the other.
    """
    return size - 1 - rank if size % 2 == 0 else (rank - 1) % size


def twin_rank(place: int, size: int) -> int:
    """The rank at `place` of the second of two in-order trees."""
    return size - 1 - place if size % 2 == 0 else (place + 1) % size
