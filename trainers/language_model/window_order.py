"""Which windows of the tokens a step reads: its own part for every rank, the same batch for any.

Position p of a global batch reads from the p-th of as many equal strata of the tokens. A rank has
successive positions, so it touches one part of the file, its own; yet which windows are in a batch
does not depend on the number of ranks. Within a stratum, windows are taken in passes: each pass
begins at another offset and takes all its windows once, in another order. Both follow from (seed,
position, pass) alone, so that any step can be read without those before it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from trainers.errors import DataError


class WindowOrder:
    """Where windows of `context` + 1 tokens begin.

    Args:
        tokens: how many there are to train on.
        context: targets per window.
        batch: windows per step, of all ranks together.
        seed: of the run.

    Raises:
        DataError: fewer tokens than a window for each position of a batch.
    """

    def __init__(self, *, tokens: int, context: int, batch: int, seed: int) -> None:
        least = batch * (context + 1)
        if tokens < least:
            raise DataError(
                f"expected at least {least:,} tokens to train on (a window of {context + 1} for "
                f"each of a batch of {batch}), found {tokens:,}: give more text, or less of "
                "model.context or train.batch"
            )
        self._tokens = tokens
        self._context = context
        self._batch = batch
        self._seed = seed
        self._passes: dict[int, tuple[int, int, npt.NDArray[np.int64]]] = {}

    def begin(self, step: int, position: int) -> int:
        """Where the window at a position of step's batch begins."""
        first = position * self._tokens // self._batch
        length = (position + 1) * self._tokens // self._batch - first
        # As many in every pass, so that a step's pass is known without those before it.
        windows = max(1, (length - self._context) // self._context)
        number, index = divmod(step, windows)
        if self._passes.get(position, (-1,))[0] != number:
            random = np.random.default_rng([self._seed, position, number])
            offset = int(random.integers(length - windows * self._context))
            self._passes[position] = (number, offset, random.permutation(windows))
        _, offset, order = self._passes[position]
        return first + offset + int(order[index]) * self._context
