"""The contract of channels, between an engine and whatever moves the bytes.

A rank owns an outbox of slots. It *posts* a message: fills one slot once, addressed to one or
several peers. Each peer *takes* messages of one sender in the order they were posted, reads them
in place, and *releases* them. A slot is free again when every addressed peer has released it.
Channels between different pairs of ranks are independent of one another.

A *notify* is an empty message that needs no slot; it is taken and released as any other. A channel
has room for at least one.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy.typing as npt

Payload = npt.NDArray[Any]


class Message(NamedTuple):
    """What a take sees: the payload in place, and the fingerprint of the sender's call."""

    payload: Payload
    fingerprint: int


class Channels(Protocol):
    """One rank's ends of its channels. Nothing here blocks; the engine decides how to wait."""

    def slot_is_free(self) -> bool:
        """Whether a post would find a slot."""
        ...

    def post(self, targets: tuple[int, ...], payload: Payload, fingerprint: int) -> None:
        """Send `payload` to every target; only when a slot is free."""
        ...

    def can_notify(self, targets: tuple[int, ...]) -> bool:
        """Whether every target's channel has room for a notify."""
        ...

    def notify(self, targets: tuple[int, ...], fingerprint: int) -> None:
        """Send an empty message to every target; only when there is room."""
        ...

    def take(self, source: int) -> Message | None:
        """The oldest unreleased message of `source`, or None; taking again gives the same."""
        ...

    def release(self, source: int) -> None:
        """Give the oldest unreleased message of `source` back."""
        ...
