"""What a chunk's value is made of: a tree of sums, equal only if their bits are sure to be equal.

The one law used is a + b = b + a, which holds for floating point; associativity does not and is
not used. A fold of three or more operands is one pass in rank order that rounds once, so it is
kept apart from nested sums of two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NewType

Expression = NewType("Expression", int)
"""A number for each distinct tree: equal trees, equal number."""

Leaf = tuple[int, int]
"""(rank, chunk): what a rank holds of a chunk at the start."""


class Expressions:
    """Makes expressions and knows what each is made of."""

    def __init__(self) -> None:
        """No expression yet."""
        self._numbers: dict[tuple[object, ...], Expression] = {}
        self._parts: list[Counter[Leaf]] = []
        self._texts: list[tuple[object, ...]] = []

    def leaf(self, rank: int, chunk: int) -> Expression:
        """The value of `chunk` that `rank` starts with."""
        return self._number(("leaf", rank, chunk), Counter({(rank, chunk): 1}))

    def fold(self, operands: Sequence[Expression]) -> Expression:
        """((x0 + x1) + x2) + ... in one pass; the first two commute."""
        if len(operands) == 1:
            return operands[0]
        first, second, *rest = operands
        key = ("fold", *sorted((first, second)), *rest)
        if key in self._numbers:
            return self._numbers[key]
        parts: Counter[Leaf] = Counter()
        for each in operands:
            parts.update(self._parts[each])
        return self._number(key, parts)

    def contributions(self, expression: Expression) -> Counter[Leaf]:
        """How often each leaf is in it."""
        return self._parts[expression]

    def describe(self, expression: Expression) -> str:
        """The tree as text, such as ((x0 + x1) + x2), cut where it gets long."""
        kind, *operands = self._texts[expression]
        if kind == "leaf":
            rank, chunk = operands
            return f"x{rank}[{chunk}]"
        text = "(" + " + ".join(self.describe(Expression(int(str(e)))) for e in operands) + ")"
        return text if len(text) <= 120 else text[:117] + "..."

    def _number(self, key: tuple[object, ...], parts: Counter[Leaf]) -> Expression:
        if key not in self._numbers:
            self._numbers[key] = Expression(len(self._parts))
            self._parts.append(parts)
            self._texts.append(key)
        return self._numbers[key]
