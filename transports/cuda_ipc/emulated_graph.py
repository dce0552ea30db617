"""Graphs of an emulated device: what is put on streams while one captures, to be run many times.

As on a device, a stream that follows what is captured joins it, and must be followed back before
the end. The steps lie in the order in which the host put them, one of those that the streams allow.
"""

from __future__ import annotations

from typing import NamedTuple

from transports.cuda_ipc.device import DeviceError
from transports.cuda_ipc.emulated_stream import EmulatedStream, Step


class Graph:
    """Steps to be run, once captured; and whatever memory they need."""

    def __init__(self, origin: EmulatedStream) -> None:
        """What `origin` and all that join it are given from now on, until `end`."""
        self.kept: list[object] = []
        self._origin = origin
        self._has_ended = False
        self._steps: list[Step] = []
        self._joined: dict[EmulatedStream, tuple[int, int]] = {}  # put and followed until where
        self._join(origin)

    def record(self, stream: EmulatedStream, step: Step) -> None:
        """A step that a stream is given."""
        self._steps.append(step)
        self._joined[stream] = len(self._steps), self._joined[stream][1]

    def mark(self, stream: EmulatedStream) -> CapturedMark:
        """The end of what a stream has been given."""
        return CapturedMark(self, stream, len(self._steps))

    def follow(self, stream: EmulatedStream, mark: CapturedMark) -> None:
        """A stream follows what is captured, and so is captured itself."""
        if self._has_ended:
            raise DeviceError("what was captured cannot be followed: its graph is whole")
        if stream not in self._joined:
            self._join(stream)
        put, followed = self._joined[mark.stream]
        self._joined[mark.stream] = put, max(followed, mark.end)

    def end(self) -> None:
        """No more is captured.

        Raises:
            DeviceError: a stream has joined and was not followed to its end.
        """
        self._has_ended = True
        for stream in self._joined:
            stream.graph = None
        del self._joined[self._origin]
        if any(followed < put for put, followed in self._joined.values()):
            raise DeviceError("the capture has work of a stream that has not joined it again")

    def launch(self, stream: EmulatedStream) -> None:
        """Runs it, after what is on the stream."""
        for step in self._steps:
            stream.put(step)

    def _join(self, stream: EmulatedStream) -> None:
        stream.graph = self
        self._joined[stream] = 0, 0


class CapturedMark(NamedTuple):
    """Of work in a graph."""

    graph: Graph
    stream: EmulatedStream
    end: int
