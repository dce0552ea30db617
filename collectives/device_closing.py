"""The end of calls on devices: what others still need, what runs still, and what is given back."""

from __future__ import annotations

import time

from collectives.arrays import Array
from collectives.device_calls import DeviceCalls
from transports.cuda_ipc.connection import Connected
from transports.cuda_ipc.watching import Watch
from transports.errors import CollectiveError, CollectiveTimeout


class DeviceClosing(DeviceCalls):
    """Adds to a communicator how its devices are left."""

    _watch: Watch | None  # of OnDevices
    _in_graphs: list[Array]

    def _finish_devices(self) -> None:
        """Until the calls on devices are done here and what they have sent is taken by the others.

        Device memory ends with the process: unlike a message in host memory, what was sent cannot
        be read when its sender has gone. So a communicator that has such calls under way waits for
        the others when it is closed, as long as they live.
        """
        watch, connected = self._watch, self._connected
        if watch is None or connected is None:
            return
        deadline = time.monotonic() + self.timeout
        while self._waits_for(watch, connected):
            if watch.failure is not None and not (watch.told or self._engine.heard):
                watch.raise_failure()
            if watch.failure is not None and self._queue.idle:
                return  # the host's engine has it, and raises what nobody has heard of
            if time.monotonic() > deadline:
                raise CollectiveTimeout(
                    f"close: rank {self.rank} has waited for {self._waits_for(watch, connected)}"
                )
            time.sleep(0.001)

    def _waits_for(self, watch: Watch, connected: Connected) -> str:
        """What there is to wait for before the devices can go; nothing: ""."""
        if watch.failure is not None:
            return "calls that have failed"
        if not self._queue.idle:
            return "other ranks to come to its calls on devices"
        if not watch.is_done(connected.engine.put):
            return "its calls on devices to be done"
        late = [
            peer
            for peer in connected.engine.untaken()
            if not (connected.has_left(peer) or self._engine.has_gone(peer))
        ]
        return f"rank {str(late)[1:-1]} to take what it has sent from its device" if late else ""

    def _forgive_devices(self) -> None:
        """The program knows that calls have failed, and goes on without them."""
        if self._watch is not None:
            self._watch.told = True

    def _forsake_devices(self) -> None:
        """In a child of fork: the devices are the parent's, with whatever is under way."""
        self._connected = self._watch = None

    def _close_devices(self) -> None:
        """End what runs on the device, and give back what peers no longer need."""
        connected, watch = self._connected, self._watch
        if connected is None or watch is None:
            return
        self._connected = self._watch = None
        engine = connected.engine
        if not engine.is_done() or (watch.has_graphs and self._engine.broken):
            watch.fail(CollectiveError("the communicator was closed"))
        ended = engine.run_out() if watch.failure is not None else True
        if not ended:  # the device hangs: nothing on it can be given back
            watch.close()
            connected.leave()
            return
        engine.close()
        connected.gone = frozenset(filter(self._engine.has_gone, range(self.size)))
        self._close_device_symmetric(connected)
        connected.outbox.unmap()
        connected.leave()
        watch.close()  # not before: what is above waits for graphs, which it lets go
        self._in_graphs.clear()
        connected.unregister()
        connected.free_when_left(connected.outbox)
