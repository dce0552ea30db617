"""Checks of users' arguments: each names expected and found, before anything is sent."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from collectives.arrays import (
    NUMPY,
    Array,
    Family,
    family_of,
    is_same_memory,
    shape_of,
    share_memory,
)


def input_array(x: Array) -> tuple[Family, Array]:
    """The family of `x`, and `x` as an array of it (a numpy scalar becomes a 0-d array).

    Raises:
        TypeError: it is neither a numpy array nor a torch tensor.
    """
    if type(x) is np.ndarray:
        return NUMPY, x
    if isinstance(x, np.generic):
        return NUMPY, np.asarray(x)
    return family_of(x), x


def check_rank(rank: int, size: int, name: str) -> int:
    """`rank` as an int.

    Raises:
        TypeError: it is no integer.
        ValueError: there is no such rank.
    """
    try:
        number = operator.index(rank)
    except TypeError:
        raise TypeError(f"{name} must be an integer, found {rank!r}") from None
    if not 0 <= number < size:
        raise ValueError(f"{name} must be in 0..{size - 1}, found {number}")
    return number


def check_root(root: int, size: int) -> int:
    """`root` as an int; raises as `check_rank`."""
    return check_rank(root, size, "root")


def check_counts(counts: Sequence[int], size: int) -> tuple[int, ...]:
    """`counts` as a tuple of ints.

    Raises:
        TypeError: an entry is no integer.
        ValueError: there is not one a rank, or one is negative.
    """
    try:
        numbers = tuple(operator.index(count) for count in counts)
    except TypeError:
        raise TypeError(f"counts must be integers, found {counts!r}") from None
    if len(numbers) != size:
        raise ValueError(f"counts: expected {size} entries, one a rank, found {len(numbers)}")
    if min(numbers) < 0:
        raise ValueError(f"counts must not be negative, found {min(numbers)}")
    return numbers


def check_leading_axis(x: Array, length: int, what: str) -> None:
    """Whether x has a leading axis of `length`.

    Raises:
        ValueError: it has not; `what` says where the length comes from.
    """
    shape = shape_of(x)
    if not shape or shape[0] != length:
        raise ValueError(f"x: expected a leading axis of length {length} ({what}), found {shape}")


def check_out(out: Array, shape: tuple[int, ...], like: Array, family: Family) -> bool:
    """Check that `out` can take a result of `shape` and `like`'s dtype; whether it is contiguous.

    Raises:
        TypeError: it is of another kind or dtype.
        ValueError: it has another shape, or is read-only.
    """
    if type(out) is not type(like) or out.dtype != like.dtype or shape_of(out) != shape:
        refuse_out(out, shape, like, family)
    contiguous = family.is_contiguous(out)
    if not contiguous or family is not NUMPY:  # numpy itself tells the engine of the rest
        refuse_out(out, shape, like, family)
    return contiguous


def refuse_out(out: Array, shape: tuple[int, ...], like: Array, family: Family) -> None:
    """Raise what is wrong with `out`, if anything is; raises as `check_out`."""
    found = family_of(out, "out").name
    if found != family.name:
        raise TypeError(f"out: expected a {family.name} array as x, found a {found} array")
    if family.dtype_of(out) != family.dtype_of(like):
        raise TypeError(f"out: expected {family.dtype_of(like)}, found {family.dtype_of(out)}")
    if shape_of(out) != shape:
        raise ValueError(f"out: expected shape {shape}, found {shape_of(out)}")
    if not family.is_writable(out):
        raise ValueError("out: expected an array that can be written to, found a read-only one")


def refuse_overlap(x: Array, out: Array, family: Family) -> None:
    """Raise if `out` shares memory with `x` without being the very same.

    Raises:
        ValueError: it does; the result would depend on what is written first.
    """
    if out is x or is_same_memory(family, x, out) or not share_memory(family, x, out):
        return
    apart = family.address_of(out) - family.address_of(x)
    raise ValueError(
        "x and out overlap: expected the very same memory (out=x) or none in common, found an out "
        f"that begins {apart} bytes from x"
    )


def check_flag(flag: bool, name: str) -> bool:
    """`flag` as a bool; 0 and 1 are equal to one.

    Raises:
        TypeError: it is none.
    """
    if isinstance(flag, int | np.bool_) and flag in (0, 1):
        return bool(flag)
    raise TypeError(f"{name} must be True or False, found {flag!r}")


def check_timeout(timeout: Any) -> float:
    """`timeout` as seconds.

    Raises:
        TypeError: it is no number.
        ValueError: it is not positive.
    """
    try:
        if isinstance(timeout, str | bytes | bytearray):  # which float() would read
            raise TypeError
        seconds = float(timeout)
    except (TypeError, ValueError):
        raise TypeError(f"timeout must be a number of seconds, found {timeout!r}") from None
    if not seconds > 0:
        raise ValueError(f"timeout must be positive seconds, found {timeout!r}")
    return seconds
