"""Links are read as written; what makes no sense is refused by name."""

from __future__ import annotations

import pytest

from collectives.cost.links import NOMINAL, Link, Links, parse_links, parse_seconds, spread_over


@pytest.mark.parametrize(
    "text, seconds",
    [("1", 1), ("1e-6", 1e-6), ("1us", 1e-6), ("0.1 ns", 1e-10), ("2.5ms", 2.5e-3), ("3µs", 3e-6),
     ("40ps", 4e-11), ("2s", 2)],
)  # fmt: skip
def test_seconds_have_units(text, seconds):
    assert parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "us", "1 parsec", "-1us", "1us2"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(ValueError, match="expected seconds, or a number of s, ms, us"):
        parse_seconds(text)


def test_what_is_left_out_is_nominal():
    assert parse_links("") == Links(inside=NOMINAL)
    found = parse_links("alpha=2us, gamma=0")
    assert found.inside == Link(alpha=2e-6, beta=NOMINAL.beta, gamma=0.0)
    assert found.between is None and found.uniform


def test_levels_have_links_of_their_own():
    found = parse_links("alpha=1us; between: alpha=10us, beta=1ns", hosts=(0, 0, 1))
    assert found.between == Link(alpha=1e-5, beta=1e-9, gamma=NOMINAL.gamma)
    assert not found.uniform
    assert found.link(0, 1) is found.inside and found.link(0, 2) is found.between
    assert parse_links("inside: alpha=3us").inside.alpha == 3e-6
    assert parse_links("between: alpha=1s", hosts=(0, 0)).uniform


@pytest.mark.parametrize(
    "text, words",
    [
        ("outside: alpha=1us", "links are inside or between hosts, found 'outside'"),
        ("beween: alpha=1us", "did you mean between?"),
        ("alpha=1us; alpha=2us", "links inside hosts are given twice"),
        ("alfa=1us", "expected alpha, beta, gamma as in alpha=1us, found 'alfa=1us'"),
        ("alfa=1us", "did you mean alpha?"),
        ("alpha", "expected alpha, beta, gamma as in alpha=1us, found 'alpha'"),
        ("alpha=1us, alpha=2us", "alpha is given twice"),
        ("beta=fast", "expected seconds"),
    ],
)
def test_links_that_make_no_sense_are_refused(text, words):
    with pytest.raises(ValueError) as caught:
        parse_links(text)
    assert words in str(caught.value)


def test_ranks_fill_hosts_in_order():
    assert spread_over(5, 2) == (0, 0, 0, 1, 1)
    assert spread_over(4, 4) == (0, 1, 2, 3)
    for hosts in (0, 5):
        with pytest.raises(ValueError, match=f"between 1 and 4 hosts for 4 ranks, found {hosts}"):
            spread_over(4, hosts)
