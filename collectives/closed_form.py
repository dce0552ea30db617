"""Closed forms: the formulas beside an algorithm, read and evaluated.

A form is written as on paper, such as `2(n-1)/n s beta`:

    form       = sum [("<" | "<=" | ">" | ">=" | "==" | "!=") sum]      a comparison is 0 or 1
    sum        = product {("+" | "-") product}
    product    = power {["*" | "/"] power}          side by side is a product, left to right:
    power      = factor ["**" power]                s/2n is (s/2)n, s/(2n) divides by both
    factor     = "-" factor | number | name | function "(" form {"," form} ")" | "(" form ")"

Names are the values given, by custom n, s, alpha, beta, gamma. Functions:

    lg(x)        ceil(log2 x), 0 at 1
    fl(x)        floor(log2 x)
    p2(x)        the largest power of two <= x
    ones(x)      how many ones there are in 0, 1, ..., x-1 written in binary
    pairs(x)     min(1, g) + min(2, g) + min(4, g) + ... below p2(x), where g = x - p2(x): what g
                 guests add to an exchange among p2(x) ranks at doubling distances
    ceil, floor, min, max

Whole numbers stay exact: the result is a fraction unless a float is among the values.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import lru_cache
from typing import TypeAlias

from collectives.specs import nearest

Number: TypeAlias = Fraction | float
_Term: TypeAlias = Callable[[Mapping[str, Number]], Number]

_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d+)?)|(?P<name>[A-Za-z_]\w*)|(?P<sign>\*\*|[<>=!]=|.))"
)


def _whole(x: Number) -> int:
    if x != int(x) or x < 1:
        raise ValueError(f"expected a whole number >= 1, found {x}")
    return int(x)


def _largest_power(x: Number) -> Fraction:
    return Fraction(1 << (_whole(x).bit_length() - 1))


def _pairs(x: Number) -> Fraction:
    power = _largest_power(x)
    steps = power.numerator.bit_length() - 1
    return Fraction(sum(min(1 << step, int(x - power)) for step in range(steps)))


FUNCTIONS: Mapping[str, Callable[..., Number]] = {
    "lg": lambda x: Fraction((_whole(x) - 1).bit_length()),
    "fl": lambda x: Fraction(_whole(x).bit_length() - 1),
    "p2": _largest_power,
    "ones": lambda x: Fraction(sum(each.bit_count() for each in range(_whole(x)))),
    "pairs": _pairs,
    "ceil": lambda x: Fraction(math.ceil(x)),
    "floor": lambda x: Fraction(math.floor(x)),
    "min": min,
    "max": max,
}

_COMPARISONS: Mapping[str, Callable[[Number, Number], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}

_ARITHMETIC: Mapping[str, Callable[[Number, Number], Number]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "**": operator.pow,
}


def evaluate(form: str, **values: float | Fraction) -> Number:
    """The value of a closed form, such as `evaluate("2(n-1)/n s", n=4, s=1024)`.

    Raises:
        ValueError: the form cannot be read, names what has no value, or has none here (a division
            by zero, say); the text says which and where.
    """
    exact = {
        name: Fraction(value) if isinstance(value, int) else value for name, value in values.items()
    }
    try:
        return _read(form)(exact)
    except (ArithmeticError, ValueError, TypeError) as error:
        if isinstance(error, _FormError):
            raise
        given = ", ".join(f"{name}={value}" for name, value in values.items())
        raise ValueError(f"closed form {form!r} has no value at {given}: {error}") from error


class _FormError(ValueError):
    """The form itself is wrong."""


@lru_cache(maxsize=512)
def _read(form: str) -> _Term:
    reader = _Reader(form)
    term = reader.form()
    reader.expect("")
    return term


class _Reader:
    """Reads a form from left to right; one method for each line of the grammar."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = [
            (match.lastgroup or "", match[match.lastgroup or 0], match.start(match.lastgroup or 0))
            for match in _TOKEN.finditer(text.rstrip())
        ]
        self._tokens.append(("end", "", len(text)))
        self._at = 0

    def form(self) -> _Term:
        left = self._sum()
        sign = self._peek()
        if sign not in _COMPARISONS:
            return left
        self._next()
        compare, right = _COMPARISONS[sign], self._sum()
        return lambda values: Fraction(compare(left(values), right(values)))

    def expect(self, wanted: str) -> None:
        if self._peek() != wanted:
            raise self._error(f"expected {wanted!r}" if wanted else "expected the end")
        self._next()

    def _sum(self) -> _Term:
        term = self._product()
        while (sign := self._peek()) in ("+", "-"):
            self._next()
            term = _joined(sign, term, self._product())
        return term

    def _product(self) -> _Term:
        term = self._power()
        while True:
            sign = self._peek()
            if sign in ("*", "/"):
                self._next()
            elif self._tokens[self._at][0] in ("number", "name") or sign == "(":
                sign = "*"
            else:
                return term
            term = _joined(sign, term, self._power())

    def _power(self) -> _Term:
        base = self._factor()
        if self._peek() != "**":
            return base
        self._next()
        return _joined("**", base, self._power())

    def _factor(self) -> _Term:
        kind, text, _ = self._tokens[self._at]
        if kind == "number":
            self._next()
            number = Fraction(text)
            return lambda values: number
        if kind == "name":
            return self._named(text)
        if text == "(":
            self._next()
            inner = self.form()
            self.expect(")")
            return inner
        if text == "-":
            self._next()
            negated = self._factor()
            return lambda values: -negated(values)
        raise self._error("expected a number, a name or '('")

    def _named(self, name: str) -> _Term:
        self._next()
        if name not in FUNCTIONS:
            return lambda values: self._value(name, values)
        self.expect("(")
        arguments = [self.form()]
        while self._peek() == ",":
            self._next()
            arguments.append(self.form())
        self.expect(")")
        function = FUNCTIONS[name]
        return lambda values: function(*(argument(values) for argument in arguments))

    def _value(self, name: str, values: Mapping[str, Number]) -> Number:
        if name not in values:
            known = (*values, *FUNCTIONS)
            raise _FormError(
                f"closed form {self._text!r}: unknown name {name!r}; expected one of "
                f"{', '.join(known)}" + nearest(name, known)
            )
        return values[name]

    def _peek(self) -> str:
        return self._tokens[self._at][1]

    def _next(self) -> None:
        self._at += 1

    def _error(self, what: str) -> _FormError:
        _, text, column = self._tokens[self._at]
        found = repr(text) if text else "the end"
        return _FormError(f"closed form {self._text!r}, column {column + 1}: {what}, found {found}")


def _joined(sign: str, left: _Term, right: _Term) -> _Term:
    combine = _ARITHMETIC[sign]
    return lambda values: combine(left(values), right(values))
