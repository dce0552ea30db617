"""What a chunk's value is made of: a tree of sums, equal only if their bits are sure to be equal.

No law of arithmetic is used, not even a + b = b + a: the maximum of +0 and -0, or which of two
NaNs a sum keeps, depends on the order of its operands. The engines fold in rank order, and so does
the proof. A fold of three or more operands is one pass that rounds once, so it is kept apart from
nested sums of two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal, NewType, TypeAlias

Expression = NewType("Expression", int)
"""A number for each distinct tree: equal trees, equal number."""

_Key: TypeAlias = tuple[Literal["leaf", "fold"], tuple[int, ...]]

Leaf = tuple[int, int]
"""(rank, chunk): what a rank holds of a chunk at the start."""


class Expressions:
    """Makes expressions and knows what each is made of."""

    def __init__(self) -> None:
        """No expression yet."""
        self._numbers: dict[_Key, Expression] = {}
        self._keys: list[_Key] = []

    def leaf(self, rank: int, chunk: int) -> Expression:
        """The value of `chunk` that `rank` starts with."""
        return self._number(("leaf", (rank, chunk)))

    def fold(self, operands: Sequence[Expression]) -> Expression:
        """((x0 + x1) + x2) + ... in one pass, in the order given."""
        if len(operands) == 1:
            return operands[0]
        return self._number(("fold", tuple(operands)))

    def contributions(self, expression: Expression) -> Counter[Leaf]:
        """How often each leaf is in it."""
        counts: Counter[Leaf] = Counter()
        times = {int(expression): 1}
        while times:
            # An expression has a higher number than any it is made of, so the highest that is
            # left has been met as often as it ever will be.
            highest = max(times)
            often = times.pop(highest)
            kind, operands = self._keys[highest]
            if kind == "leaf":
                counts[operands[0], operands[1]] += often
                continue
            for operand in operands:
                times[operand] = times.get(operand, 0) + often
        return counts

    def describe(self, expression: Expression) -> str:
        """The tree as text, such as ((x0 + x1) + x2), cut where it gets long."""
        kind, operands = self._keys[expression]
        if kind == "leaf":
            rank, chunk = operands
            return f"x{rank}[{chunk}]"
        text = "(" + " + ".join(self.describe(Expression(each)) for each in operands) + ")"
        return text if len(text) <= 120 else text[:117] + "..."

    def _number(self, key: _Key) -> Expression:
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = Expression(len(self._keys))
            self._keys.append(key)
        return number
