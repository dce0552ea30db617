"""Arrays between pages that nobody may touch, at addresses of any alignment."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence

import numpy as np

PAGE = mmap.PAGESIZE
CANARY = 0xA5


class GuardedArrays:
    """Copies of arrays, each in pages of its own; the pages around them cannot be read or written.

    Every other array ends as close to the page behind it as its alignment allows, the rest begin as
    close to the page before.
    """

    def __init__(self, arrays: Sequence[np.ndarray], offsets: Sequence[int]) -> None:
        """`offsets`: how far each address lies behind a multiple of 16."""
        rooms = [-(-(array.nbytes + 16) // PAGE) * PAGE for array in arrays]
        self._mapping = mmap.mmap(-1, sum(rooms) + (len(rooms) + 1) * PAGE)
        memory = np.frombuffer(self._mapping, np.uint8)
        self.addresses: list[int] = []
        self.bytes: list[np.ndarray] = []
        """Of each array, as they lie there."""
        self._margins: list[np.ndarray] = []
        at = PAGE
        libc = ctypes.CDLL(None, use_errno=True)
        protected = [0]
        for index, (array, offset, room) in enumerate(zip(arrays, offsets, rooms, strict=True)):
            start = offset
            if index % 2:
                start = room - array.nbytes
                start -= (start - offset) % 16
            begin, end = at + start, at + start + array.nbytes
            memory[at : at + room] = CANARY
            memory[begin:end] = array.reshape(-1).view(np.uint8)
            self.bytes.append(memory[begin:end])
            self.addresses.append(memory.ctypes.data + begin)
            self._margins += [memory[at:begin], memory[end : at + room]]
            at += room + PAGE
            protected.append(at - PAGE)
        for page in protected:
            assert libc.mprotect(ctypes.c_void_p(memory.ctypes.data + page), PAGE, 0) == 0

    def margins_untouched(self) -> bool:
        """Whether nothing was written around the arrays, as far as it can be."""
        return all(bool(np.all(margin == CANARY)) for margin in self._margins)
