"""Closed forms are read as on paper, and what they state is what the schedules do."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectives.catalogue import CATALOGUE, REACHING
from collectives.closed_form import FUNCTIONS, evaluate
from collectives.proof import verify
from collectives.rounds import peers_of
from collectives.schedule import Notify, Read, ReadReduce, Send, Write

ALGORITHMS = {f"{a.collective} {a.name}": a for a in (*CATALOGUE.values(), *REACHING.values())}


def chunk_share(algo, size):
    """A chunk's share of s, chunks being equal."""
    if algo.spec.chunking == "empty":
        return Fraction(0)
    return Fraction(1, size if algo.spec.chunking == "pairs" else algo.chunk_count(size))


def some_roots(algo, size):
    return sorted({0, size // 2, size - 1}) if algo.spec.rooted else [0]


def busiest(algo, size):
    """Messages and chunks sent, read and written by the busiest rank, counted here and now."""
    messages, chunks = [0], [0]
    for root in some_roots(algo, size):
        for rank in range(size):
            steps = algo.schedule(rank, size, root)
            sends = [s for s in steps if isinstance(s, Send | Notify)]
            messages.append(len([peer for s in sends for peer in s.peers]))
            moves = [s for s in steps if isinstance(s, Send | Read | ReadReduce | Write)]
            chunks.append(len([chunk for s in moves for _ in peers_of(s) for chunk in s.chunks]))
    return max(messages), max(chunks)


@pytest.mark.parametrize("algo", ALGORITHMS.values(), ids=ALGORITHMS)
def test_messages_and_volume_are_as_stated(algo):
    for size in range(1, 33):
        messages, chunks = busiest(algo, size)
        assert evaluate(algo.messages, n=size) == messages, size
        assert evaluate(algo.volume, n=size, s=1) == chunks * chunk_share(algo, size), size
        if size <= 9:
            certificate = verify(algo, size)
            assert (certificate.messages, certificate.chunks_sent) == (messages, chunks)


@pytest.mark.parametrize("algo", ALGORITHMS.values(), ids=ALGORITHMS)
def test_forms_have_values_at_large_sizes(algo):
    for size in (1, 2, 1000, 4097):
        for form in (algo.messages, algo.volume, algo.cost):
            value = evaluate(form, n=size, s=1 << 20, alpha=1e-6, beta=1e-10, gamma=1e-11)
            assert 0 <= value < 10**10
        assert algo.widest_message(size) >= 1


READ = {
    "2(n-1)/n s beta": Fraction(2 * 3 * 8 * 5, 4),
    "2n": 8,
    "s/2n": 16,
    "s/(2n)": 1,
    "n(n-1)": 12,
    "(n-1)(n+1)": 15,
    "2 n s": 64,
    "n - 1 - 1": 2,
    "s/n/2": 1,
    "2**3**2": 512,
    "-n**2": 16,
    "-(n**2)": -16,
    "3 - -n": 7,
    "0.5 n": 2,
    "1/3": Fraction(1, 3),
    "(n > 1) s": 8,
    "n == 4": 1,
    "n != 4": 0,
    "n < 4": 0,
    "n <= 4": 1,
    "n >= 5": 0,
    "lg(n) + fl(n) + p2(n)": 8,
    "lg(5) + fl(5) + p2(5)": 9,
    "ones(4)": 4,
    "pairs(6)": 1 + 2,
    "max(1, n, 2) min(n, 3)": 12,
    "ceil(n/3) + floor(n/3)": 3,
    "lg(n)(alpha + s beta)": 2 * (7 + 40),
}


@pytest.mark.parametrize("form", READ)
def test_a_form_is_read_as_on_paper(form):
    assert evaluate(form, n=4, s=8, alpha=7, beta=5) == READ[form]


def test_whole_numbers_stay_exact_and_floats_make_floats():
    assert evaluate("n/3 s", n=2, s=9) == 6
    assert isinstance(evaluate("n/3", n=1), Fraction)
    assert evaluate("n beta", n=3, beta=0.5) == 1.5


@given(st.integers(1, 5000))
def test_the_functions_are_what_they_are_called(n):
    assert 2 ** (FUNCTIONS["lg"](n) - 1) < n <= 2 ** FUNCTIONS["lg"](n)
    assert 2 ** FUNCTIONS["fl"](n) == FUNCTIONS["p2"](n) <= n < 2 * FUNCTIONS["p2"](n)
    assert FUNCTIONS["ones"](n) == sum(bin(each).count("1") for each in range(n))


WRONG = {
    "": "column 1: expected a number, a name or '(', found the end",
    "2 +": "column 4: expected a number, a name or '(', found the end",
    "(n": "column 3: expected ')', found the end",
    "n)": "column 2: expected the end, found ')'",
    "lg n": "column 4: expected '(', found 'n'",
    "n ^ 2": "column 3: expected the end, found '^'",
    "2 * / n": "column 5: expected a number, a name or '(', found '/'",
    "max(1,)": "column 7: expected a number",
    "gama s": "unknown name 'gama'; expected one of n, s, alpha, beta, gamma, lg,.*mean gamma",
    "1/(n-4)": "has no value at n=4, s=8",
    "lg(n-4)": "has no value at n=4.*expected a whole number >= 1, found 0",
    "lg(n/3)": "expected a whole number >= 1, found 4/3",
    "lg(1, 2)": "has no value at n=4",
    "n < 1 < 2": "column 7: expected the end, found '<'",
}


@pytest.mark.parametrize("form", WRONG)
def test_a_wrong_form_is_refused(form):
    import re

    text = WRONG[form]
    pattern = text if ".*" in text else re.escape(text)
    with pytest.raises(ValueError, match=pattern):
        evaluate(form, n=4, s=8, alpha=1, beta=1, gamma=1)
