"""The libraries that can be measured: a file each, with `connect(options)` and a `Library`.

Each imports only what its environment has: numpy and the library itself.
"""

from __future__ import annotations

from typing import Any

from collectives.bench.tasks import Memory, aligned_memory


class OrdinaryMemory:
    """Arrays over ordinary memory, and calls that have ended when they return."""

    def memory(self, nbytes: int, variant: str) -> Memory:
        """Bytes that begin at a cache line."""
        return aligned_memory(nbytes)

    def array(self, memory: Memory, dtype: str, variant: str) -> Any:
        """The memory itself: a numpy array of the storage type."""
        return memory

    def send_in(self, array: Any, memory: Memory) -> None:
        """Nothing: the array lies in that memory."""

    def fetch(self, array: Any, memory: Memory) -> None:
        """Nothing: the array lies in that memory."""

    def finish(self) -> None:
        """Nothing: what was called has ended."""
