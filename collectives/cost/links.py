"""Links of a model machine: what a message costs between two ranks, and how one writes that down.

    alpha=1us,beta=0.1ns,gamma=0.05ns               between any two ranks
    between: alpha=10us,beta=1ns                    between ranks of different hosts

A message of b bytes takes alpha + b beta seconds; reducing b bytes takes b gamma.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from fractions import Fraction

from collectives.closed_form import Number
from collectives.specs import nearest

_UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "µs": 10**6, "ns": 10**9, "ps": 10**12}
_QUANTITY = re.compile(r"(?P<number>\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)\s*(?P<unit>[a-zµ]*)")


@dataclass(frozen=True, kw_only=True)
class Link:
    """What a message costs.

    Attributes:
        alpha: seconds a message.
        beta: seconds a byte moved.
        gamma: seconds a byte reduced, at the rank that receives.
    """

    alpha: Number = Fraction(0)
    beta: Number = Fraction(0)
    gamma: Number = Fraction(0)


NOMINAL = Link(alpha=1e-6, beta=1e-10, gamma=5e-11)
"""A microsecond a message, 10 GB/s, 20 GB/s added up: a round-number machine, nobody's own."""


@dataclass(frozen=True, kw_only=True)
class Links:
    """The links among all ranks, by level.

    Attributes:
        inside: between ranks of one host.
        between: between ranks of different hosts; None is as inside.
        hosts: `hosts[r]` is the index of rank r's host; None is one host.
    """

    inside: Link = NOMINAL
    between: Link | None = None
    hosts: tuple[int, ...] | None = None

    @property
    def uniform(self) -> bool:
        """Whether all links are alike."""
        alone = self.hosts is None or len(set(self.hosts)) <= 1
        return alone or self.between is None or self.between == self.inside

    def level(self, is_between: bool) -> Link:
        """The link of a level."""
        return self.between if is_between and self.between is not None else self.inside

    def link(self, source: int, target: int) -> Link:
        """The link from one rank to another."""
        if self.hosts is None or self.between is None or self.hosts[source] == self.hosts[target]:
            return self.inside
        return self.between


def parse_links(text: str, hosts: Sequence[int] | None = None) -> Links:
    """Read links such as `alpha=1us,beta=0.1ns,gamma=0.05ns; between: alpha=10us,beta=1ns`.

    Numbers are seconds, or carry a unit of s, ms, us, ns, ps. What is left out is nominal inside a
    host, and between hosts as inside.

    Args:
        text: one level, or several separated by semicolons; a level may begin with its name,
            `inside:` or `between:`.
        hosts: `hosts[r]` is the index of rank r's host.

    Raises:
        ValueError: it cannot be read; says what was expected and found.
    """
    levels: dict[str, dict[str, float]] = {}
    for part in text.split(";"):
        name, colon, values = part.rpartition(":")
        level = name.strip() if colon else "inside"
        if level not in ("inside", "between"):
            raise ValueError(
                f"links are inside or between hosts, found {level!r}"
                + nearest(level, ("inside", "between"))
            )
        if level in levels:
            raise ValueError(f"links {level} hosts are given twice in {text!r}")
        levels[level] = _values(values)
    inside = Link(**{**_as_given(NOMINAL), **levels.get("inside", {})})
    between = None
    if "between" in levels:
        between = Link(**{**_as_given(inside), **levels["between"]})
    return Links(inside=inside, between=between, hosts=None if hosts is None else tuple(hosts))


def _as_given(link: Link) -> dict[str, Number]:
    return {each.name: getattr(link, each.name) for each in fields(Link)}


def _values(text: str) -> dict[str, float]:
    valid = [each.name for each in fields(Link)]
    found: dict[str, float] = {}
    for entry in filter(None, (entry.strip() for entry in text.split(","))):
        name, equals, value = (word.strip() for word in entry.partition("="))
        if not equals or name not in valid:
            raise ValueError(
                f"expected {', '.join(valid)} as in alpha=1us, found {entry!r}"
                + nearest(name, valid)
            )
        if name in found:
            raise ValueError(f"{name} is given twice in {text!r}")
        found[name] = parse_seconds(value)
    return found


def parse_seconds(text: str) -> float:
    """Seconds, such as 1e-6, 1us, 0.1ns.

    Raises:
        ValueError: it is no such quantity.
    """
    match = _QUANTITY.fullmatch(text.strip())
    unit = match["unit"] or "s" if match else ""
    if match is None or unit not in _UNITS:
        raise ValueError(
            f"expected seconds, or a number of {', '.join(_UNITS)}, such as 1us, found {text!r}"
        )
    return float(match["number"]) / _UNITS[unit]


def spread_over(size: int, hosts: int) -> tuple[int, ...]:
    """The host of each of `size` ranks that fill `hosts` hosts evenly, in rank order.

    Raises:
        ValueError: there are more hosts than ranks, or none.
    """
    if not 1 <= hosts <= size:
        raise ValueError(f"expected between 1 and {size} hosts for {size} ranks, found {hosts}")
    return tuple(rank * hosts // size for rank in range(size))
