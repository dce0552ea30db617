"""The few ways a collective can fail; what state each leaves is said in docs/errors.md.

They live at the bottom of the house so that every layer may raise them; users import them from
`collectives`.
"""

from __future__ import annotations


class CollectiveError(Exception):
    """Base of every error that collectives raise beyond ValueError and TypeError."""


class MismatchError(CollectiveError):
    """Ranks called collectives that do not fit together; the text names both sides."""


class PeerLostError(CollectiveError):
    """A peer ended before it completed an operation that needs it."""


class AbortedError(CollectiveError):
    """Another rank raised an exception; the text carries that rank's traceback."""


class CollectiveTimeout(CollectiveError, TimeoutError):
    """A wait reached its deadline; the text names the operation and who is missing."""
