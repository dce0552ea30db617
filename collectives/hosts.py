"""A communicator's ranks by their hosts: those of one host, and one of each host."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from collectives.proving import Proving
from transports import _native

if TYPE_CHECKING:
    from collectives.communicator import Communicator


class Hosts(Proving):
    """Adds the two communicators that a hierarchy is made of."""

    _by_host: dict[str, Communicator]
    _carrier: _native.Carrier | None
    split: Callable[[int], Communicator | None]  # of Communicator, as
    _close: Callable[[], None]

    @property
    def local(self) -> Communicator:
        """The ranks of this rank's host, in order.

        The first time it is asked for is a call that every rank must make; from then on it is
        there. It is closed with this communicator.
        """
        return self._part("local", self.hosts[self.rank])

    @property
    def cross(self) -> Communicator:
        """One rank of each host: those with the same number on their hosts as this one, in order.

        Asked for as `local` is. Where hosts have different numbers of ranks, some have fewer.
        """
        before = self.hosts[: self.rank]
        return self._part("cross", before.count(self.hosts[self.rank]))

    @property
    def wire_bytes(self) -> int:
        """Bytes of messages that this rank has sent to ranks of other hosts so far.

        Those of arrays; what describes them comes to 96 bytes a message, which has those of up to
        40 bytes in it. Summed over the ranks of a host, and divided by calls, it is what a closed
        form says with `wire`.
        """
        carriers = (self._carrier, self._device_carrier)
        return sum(each.sent_payload for each in carriers if each is not None)

    def _part(self, name: str, color: int) -> Communicator:
        found = self._by_host.get(name)
        if found is None:
            found = self.split(color)
            assert found is not None, "of a color that is a number"
            self._by_host[name] = found
        return found

    def _close_by_host(self) -> None:
        for part in self._by_host.values():
            part._close()
