"""Python objects between ranks: pickled, their lengths first, then their bytes."""

from __future__ import annotations

import pickle
import reprlib
from itertools import pairwise
from typing import Any

import numpy as np

from collectives.arguments import check_root
from collectives.scattering import Scatter


class Objects(Scatter):
    """The object collectives of a communicator. What a job's ranks send each other is trusted."""

    def broadcast_object(self, item: Any, *, root: int = 0) -> Any:
        """Give the root's object to every rank.

        Args:
            item: any object that can be pickled; only the root's matters.
            root: whose.

        Returns:
            On the root `item` itself, elsewhere a copy.

        Raises:
            TypeError: on the root, before anything is sent: the object cannot be pickled.
        """
        root = check_root(root, self.size)
        data = _pickled("broadcast_object", item) if self.rank == root else None
        length = np.array([0 if data is None else data.size], np.int64)
        with self._calling("broadcast_object"):
            self.broadcast(length, root=root, out=length)
            if data is not None:
                self.broadcast(data, root=root)
                return item
            data = np.empty(int(length[0]), np.uint8)
            self.broadcast(data, root=root, out=data)
        return pickle.loads(data.tobytes())

    def allgather_object(self, item: Any) -> list[Any]:
        """Collect an object of every rank on every rank.

        Args:
            item: any object that can be pickled.

        Returns:
            The objects in rank order; the own one is a copy too.

        Raises:
            TypeError: before anything is sent: the object cannot be pickled.
        """
        data = _pickled("allgather_object", item)
        with self._calling("allgather_object"):
            lengths = self.allgather(np.array(data.size, np.int64)).tolist()
            everything = self.allgather(data, counts=lengths).tobytes()
        ends = np.cumsum([0, *lengths]).tolist()
        return [pickle.loads(everything[begin:end]) for begin, end in pairwise(ends)]


def _pickled(collective: str, item: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    try:
        return np.frombuffer(pickle.dumps(item), np.uint8)
    # What pickle raises, and what a class's own methods for it raise.
    except Exception as error:
        raise TypeError(
            f"{collective}: expected an object that can be pickled, found "
            f"{type(item).__name__} {reprlib.repr(item)}: {error}"
        ) from error
