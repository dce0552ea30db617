"""Where the flags of a communicator lie, in host memory that all its ranks map.

A message in a slot has a flag for each rank that may take it, a notify one for each pair of ranks:
EMPTY while there is room, FULL while there is something to take. So a flag is only ever turned by
the one side and back by the other, and each side waits before it turns it. Besides, hosts look at
how many calls each rank has done on its device, and whether it has left.
"""

from __future__ import annotations

from dataclasses import dataclass

from transports.cuda_ipc.device import State

_LINE = 64  # bytes: a flag has a line of its own, that devices do not take from each other
WORD_BYTES = 4


@dataclass(frozen=True)
class FlagTable:
    """Offsets in bytes.

    Attributes:
        size: number of ranks.
        slots: of each rank's outbox.
    """

    size: int
    slots: int

    @property
    def nbytes(self) -> int:
        """Of all."""
        return self.released + _LINE

    @property
    def _notes(self) -> int:
        return self.size * self.slots * self.size * _LINE

    @property
    def _counters(self) -> int:
        return self._notes + self.size * self.size * _LINE

    def slot(self, owner: int, slot: int, target: int) -> int:
        """FULL: the message of `owner` in `slot` is there for `target` to take."""
        return ((owner * self.slots + slot) * self.size + target) * _LINE

    def note(self, source: int, target: int) -> int:
        """FULL: a notify of `source` is there for `target` to take."""
        return self._notes + (source * self.size + target) * _LINE

    def counter(self, rank: int) -> int:
        """How many calls are done on the stream of `rank`; modulo 2**32."""
        return self._counters + rank * _LINE

    def left(self, rank: int) -> int:
        """1: `rank` reaches into the memory of others no more."""
        return self._counters + (self.size + rank) * _LINE

    @property
    def released(self) -> int:
        """1: some rank has released all flags, so what streams have done since is rubbish."""
        return self.left(self.size)

    def begin(self, words: object) -> None:
        """Make all flags EMPTY and all counters 0; `words` is the memory as uint32."""
        words[: self._counters // WORD_BYTES] = State.EMPTY  # type: ignore[index]
        words[self._counters // WORD_BYTES : self.nbytes // WORD_BYTES] = 0  # type: ignore[index]

    def release(self, words: object) -> None:
        """Let everyone who waits go on; what they find is not what they waited for."""
        words[self.released // WORD_BYTES] = 1  # type: ignore[index]
        words[: self._counters // WORD_BYTES] = State.RELEASED  # type: ignore[index]
