"""Parameters of which a backward gave no gradient, and what is said of them."""

from __future__ import annotations

from collections.abc import Sequence


class UnusedParameterError(RuntimeError):
    """Parameters that are to be trained have got no gradient in a backward."""


_MOST_NAMES = 8


def unused(names: Sequence[str], rank: int) -> UnusedParameterError:
    """The error that names them, or the first of them."""
    shown = ", ".join(names[:_MOST_NAMES])
    if len(names) > _MOST_NAMES:
        shown += f" and {len(names) - _MOST_NAMES} more"
    return UnusedParameterError(
        f"rank {rank}: no gradient came for {shown}: expected one for every parameter that "
        "requires_grad (its output did not take part in the loss?); unused='zero' counts missing "
        "ones as zero"
    )
