"""What a run is to measure: the words of the command line, checked, as a list of cases."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from collectives.bench.cases import (
    COLLECTIVES,
    IN_PLACE,
    ITEM_BYTES,
    POINT_TO_POINT,
    REDUCING,
    Case,
    Place,
)
from collectives.bench.libraries.ours import SYMMETRIC, algorithm_of
from collectives.bench.overlap import OVERLAP
from collectives.bench.rates import BARRIER
from collectives.bench.tasks import memory_bytes
from collectives.by_mpi import NAME as MPI
from collectives.catalogue import names
from collectives.dtypes import OPS, reduction
from collectives.specs import nearest

ALL, P2P = "all", "p2p"
MEASURED = (*COLLECTIVES, ALL, P2P, *POINT_TO_POINT, OVERLAP)
PLACES = ("out", "in")
CACHES = ("hot", "cold")


@dataclass(frozen=True, kw_only=True)
class Agenda:
    """The cases of a run.

    Attributes:
        collectives: which, in order.
        sizes: in bytes, ascending.
        dtype: of the elements.
        op: of reductions.
        places: out of place, in place.
        caches: hot, cold.
        algorithms: variants of our own that get rows.
        ranks: how many.
        root: of the collectives that have one.
    """

    collectives: Sequence[str]
    sizes: Sequence[int]
    dtype: str
    op: str
    places: Sequence[Place]
    caches: Sequence[str]
    algorithms: Sequence[str]
    ranks: int
    root: int

    def sections(self) -> Iterator[tuple[str, list[Case]]]:
        """Cases that belong together, under a heading, in the order they are run."""
        for collective in self.collectives:
            for place in self._places_of(collective):
                for cache in ("hot",) if collective == BARRIER else self.caches:
                    cases = self._cases(collective, place, cache)
                    where = {"out": "out of place", "in": "in place"}[place]
                    placed = collective not in (BARRIER, *POINT_TO_POINT)
                    yield ", ".join([collective, *[where] * placed, cache]), cases

    def most_memory(self, entries: int, cache_bytes: int) -> int:
        """How much the arrays of the largest case take, over all ranks and contenders."""
        each = [memory_bytes(case, cache_bytes) for _, cases in self.sections() for case in cases]
        return max(each) * entries * self.ranks

    def _cases(self, collective: str, place: Place, cache: str) -> list[Case]:
        """A case for each size, rounded up; but down where it would be above the largest.

        The first is rounded up in any case: below the least is no better than above the largest.
        """
        cases: list[Case] = []
        for nbytes in self.sizes:
            case = self._case(collective, nbytes, place, cache).rounded(self.ranks)
            if cases and case.nbytes > self.sizes[-1]:
                unit = self._case(collective, 1, place, cache).rounded(self.ranks).nbytes
                case = replace(case, nbytes=self.sizes[-1] // unit * unit)
            if not cases or case.nbytes > cases[-1].nbytes:
                cases.append(case)
        return cases

    def _case(self, collective: str, nbytes: int, place: Place, cache: str) -> Case:
        return Case(
            collective=collective,
            nbytes=nbytes,
            dtype=self.dtype,
            op=self.op if collective in (*REDUCING, OVERLAP) else "",
            place=place,
            cold=cache == "cold",
            root=self.root if collective in ("broadcast", "reduce", "scatter", "gather") else 0,
        )

    def _places_of(self, collective: str) -> Sequence[Place]:
        if collective == "broadcast" and self.places == ("out",):
            return ("in",)  # what MPI and torch have; out of place copies first
        if collective in IN_PLACE:
            return self.places
        return ("out",)


def parse_agenda(
    *,
    what: str,
    ranks: int,
    least: int,
    most: int,
    factor: float,
    dtype: str,
    op: str,
    places: str,
    caches: str,
    algorithms: str,
    root: int,
) -> Agenda:
    """Checks what was asked for.

    Raises:
        ValueError: something makes no sense; says what was expected and what was found.
    """
    _one_of("what to measure", what, MEASURED)
    _one_of("--dtype", dtype, tuple(ITEM_BYTES))
    _one_of("--op", op, OPS)
    if least < 1:
        raise ValueError(f"--min must be at least 1 byte, found {least}")
    if least > most:
        raise ValueError(f"--min must not be above --max, found {least} and {most}")
    if not 1 < factor < float("inf"):
        raise ValueError(f"--factor must be above 1, found {factor:g}")
    if not 0 <= root < ranks:
        raise ValueError(f"--root must be in 0..{ranks - 1}, found {root}")
    found = {
        ALL: COLLECTIVES,
        P2P: POINT_TO_POINT,
    }.get(what, (what,))
    if ranks < 2 and any(collective in POINT_TO_POINT for collective in found):
        raise ValueError(f"{what} needs at least 2 ranks, found {ranks}")
    if any(collective in (*REDUCING, OVERLAP) for collective in found):
        try:
            reduction(dtype, op)
        except TypeError as error:
            raise ValueError(f"--op {op} with --dtype {dtype}: {error}") from None
    chosen = tuple(_words("--places", places, PLACES))
    if chosen == ("in",) and not any(collective in IN_PLACE for collective in found):
        raise ValueError(f"in place there are only {', '.join(IN_PLACE)}, found {what}")
    variants = [word.strip() for word in algorithms.split(",") if word.strip()]
    if not variants:
        raise ValueError("--algorithm must name at least one, or auto; found nothing")
    for variant in variants:
        check_variant(variant, found)
    return Agenda(
        collectives=found,
        sizes=_sizes(least, most, factor),
        dtype=dtype,
        op=op,
        places=chosen,  # type: ignore[arg-type]
        caches=tuple(_words("--caches", caches, CACHES)),
        algorithms=variants,
        ranks=ranks,
        root=root,
    )


def check_variant(variant: str, collectives: Sequence[str]) -> None:
    """Refuses an algorithm that none of the collectives has.

    Raises:
        ValueError: it lists those there are.
    """
    name = algorithm_of(variant)
    known = algorithm_names(collectives)
    if name is not None and name not in (*known, MPI):
        valid = ("auto", *known, SYMMETRIC, f"{SYMMETRIC}:NAME")
        raise ValueError(
            f"{collectives[0] if len(collectives) == 1 else 'no collective'} has no algorithm "
            f"{name!r}; expected one of {', '.join(valid)}" + nearest(name, valid)
        )


def algorithm_names(collectives: Sequence[str]) -> list[str]:
    """The algorithms that any of the collectives has; overlap's are those of allreduce."""
    of_these = [each for each in collectives if each in COLLECTIVES] or ["allreduce"]
    return sorted({name for each in of_these for name in names(each)})


def _sizes(least: int, most: int, factor: float) -> list[int]:
    sizes = [least]
    while sizes[-1] < most:
        sizes.append(min(most, max(sizes[-1] + 1, round(sizes[-1] * factor))))
    return sizes


def _words(option: str, text: str, valid: Sequence[str]) -> list[str]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise ValueError(f"{option} must name at least one of {', '.join(valid)}; found nothing")
    for word in words:
        _one_of(option, word, valid)
    return list(dict.fromkeys(words))


def _one_of(what: str, word: str, valid: Sequence[str]) -> None:
    if word not in valid:
        expected = f"{what} must be one of {', '.join(valid)}, found {word!r}"
        raise ValueError(expected + nearest(word, valid))
