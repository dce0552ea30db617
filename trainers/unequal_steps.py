"""What is said to a rank that averages alone: another has ended its loop a step before."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from collectives import PeerLostError

_LEFT = "closed its communicator"
# Indented as further lines of an error are: it is a part of the text for whoever reads that.
_HINT = (
    "  if ranks have unequal numbers of steps: every rank has to take part in each, one without "
    "samples by model.contribute_nothing(), the others weighing their losses by "
    "model.weight(mine, total)"
)


@contextlib.contextmanager
def hint_at_unequal_steps() -> Iterator[None]:
    """Adds to the error of a call whose peer has left in good order what may be the reason."""
    try:
        yield
    except PeerLostError as error:
        if _LEFT in str(error):
            error.add_note(_HINT)
        raise
