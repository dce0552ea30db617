"""What counting alone predicts, as a measure for the decoder: unigrams and smoothed bigrams.

The unigram model gives a token its share of the training tokens, each counted once more than seen.
The bigram model gives it its share of what has followed the token before, every count lowered by a
discount, and deals out what that leaves by unigrams (absolute discounting; Ney, Essen & Kneser
1994, whose estimate of the discount from the counts of counts is taken, each of those once more
than seen).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]
Tokens = npt.NDArray[np.integer]

AT_ONCE = 1 << 22
"""Tokens that are widened at a time."""


class CountedModel:
    """Unigram and bigram counts of tokens.

    Args:
        tokens: to count.
        vocabulary: how many different ones there may be.
    """

    def __init__(self, tokens: Tokens, vocabulary: int) -> None:
        self._vocabulary = vocabulary
        unigrams = np.zeros(vocabulary, np.int64)
        pairs, counts = np.empty(0, np.int64), np.empty(0, np.int64)
        for part in _parts(tokens):
            # Parts share a token, which begins the next one's first pair.
            unigrams += np.bincount(part[: len(part) - 1], minlength=vocabulary)
            found, times = np.unique(self._pairs(part[:-1], part[1:]), return_counts=True)
            pairs, counts = _merged(pairs, counts, found, times)
        unigrams[int(tokens[-1])] += 1
        self._unigram = (unigrams + 1) / (unigrams.sum() + vocabulary)
        self._pair_codes, self._pair_counts = pairs, counts
        firsts = pairs // vocabulary
        self._followed = np.bincount(firsts, weights=counts, minlength=vocabulary)
        self._kinds = np.bincount(firsts, minlength=vocabulary)
        once, twice = (int((counts == times).sum()) + 1 for times in (1, 2))
        self.discount = once / (once + 2 * twice)

    def unigram(self, tokens: Tokens) -> npt.NDArray[np.float64]:
        """The probability of each token."""
        chances: npt.NDArray[np.float64] = self._unigram[tokens]
        return chances

    def bigram(self, before: Tokens, tokens: Tokens) -> npt.NDArray[np.float64]:
        """The probability of each token after the one before it."""
        codes = self._pairs(before, tokens)
        places = np.searchsorted(self._pair_codes, codes)
        places = np.minimum(places, len(self._pair_codes) - 1)
        seen = np.where(self._pair_codes[places] == codes, self._pair_counts[places], 0)
        total = self._followed[before]
        known = np.maximum(total, 1)
        left = np.where(total > 0, self.discount * self._kinds[before] / known, 1.0)
        result: npt.NDArray[np.float64] = (
            np.maximum(seen - self.discount, 0) / known + left * self._unigram[tokens]
        )
        return result

    def _pairs(self, before: Tokens, tokens: Tokens) -> Numbers:
        """A number for each pair of tokens."""
        return before.astype(np.int64) * self._vocabulary + tokens


def _parts(tokens: Tokens) -> Iterator[Numbers]:
    """Overlapping by one token, so that every pair is in one of them."""
    for begin in range(0, len(tokens) - 1, AT_ONCE):
        yield tokens[begin : begin + AT_ONCE + 1].astype(np.int64)


def _merged(
    codes: Numbers, counts: Numbers, more: Numbers, times: Numbers
) -> tuple[Numbers, Numbers]:
    """Two sorted tables of counts as one."""
    both, homes = np.unique(np.concatenate([codes, more]), return_inverse=True)
    summed = np.bincount(homes, weights=np.concatenate([counts, times]))
    return both, summed.astype(np.int64)
