"""The selection table: the first row that fits; rows that make no sense are refused by name."""

from __future__ import annotations

import pytest

from collectives.catalogue import find
from collectives.selection import Row, SelectionTable, default_table
from collectives.specs import SPECS

LAST = "".join(
    f'[[row]]\ncollective = "{name}"\nalgorithm = "ring"\n' for name in SPECS if name != "barrier"
)
BARRIER = '[[row]]\ncollective = "barrier"\nalgorithm = "tree"\n'

ONE_SIDED = '[[row]]\ncollective = "{}"\nalgorithm = "one_sided"\nsymmetric = true\n{}\n'


def test_the_first_row_that_fits_is_taken():
    table = SelectionTable.from_toml(
        '[[row]]\ncollective = "allreduce"\nbelow = 100\nsizes = [2, 4]\nalgorithm = "one_shot"\n'
        '[[row]]\ncollective = "allgather"\nuneven = false\nalgorithm = "bruck"\n' + LAST + BARRIER
    )
    assert table.choose("allreduce", size=2, nbytes=99) == "one_shot"
    assert table.choose("allreduce", size=4, nbytes=0) == "one_shot"
    assert table.choose("allreduce", size=2, nbytes=100) == "ring"
    assert table.choose("allreduce", size=1, nbytes=9) == "ring"
    assert table.choose("allreduce", size=5, nbytes=9) == "ring"
    assert table.choose("allgather", size=5, nbytes=9) == "bruck"
    assert table.choose("allgather", size=5, nbytes=9, uneven=True) == "ring"
    assert table.choose("barrier", size=3, nbytes=0) == "tree"


def test_the_default_table_has_a_row_for_everything():
    table = default_table()
    for collective in SPECS:
        for size in (1, 2, 3, 8, 17, 1024):
            for nbytes in (0, 1, 1 << 13, 1 << 20, 1 << 33):
                for uneven in (False, True):
                    name = table.choose(collective, size=size, nbytes=nbytes, uneven=uneven)
                    assert find(collective, name).allows(size)


def test_it_travels_as_plain_data():
    table = default_table()
    assert SelectionTable.from_settings(table.as_settings()).rows == table.rows


@pytest.mark.parametrize(
    "row, words",
    [
        ('collectiv = "allreduce"', ["'collectiv'", "did you mean collective?"]),
        ('collective = "allreduce"', ["needs algorithm"]),
        ('algorithm = "ring"', ["needs collective"]),
        ('collective = "allreduc"\nalgorithm = "ring"', ["'allreduc'", "did you mean allreduce?"]),
        ('collective = "gather"\nalgorithm = "rng"', ["'rng'", "did you mean ring?"]),
        ('collective = "gather"\nalgorithm = "ring"\nsymetric = true',
         ["below, sizes, uneven, symmetric, found 'symetric'", "did you mean symmetric?"]),
        ('collective = "gather"\nalgorithm = "one_sided"',
         ["gather one_sided must say symmetric = true, found false"]),
        ('collective = "gather"\nalgorithm = "ring"\nsymmetric = true',
         ["gather ring must say symmetric = false, found true"]),
    ],
)  # fmt: skip
def test_a_row_that_makes_no_sense_is_refused(row, words):
    with pytest.raises(ValueError) as caught:
        SelectionTable.from_toml(f"[[row]]\n{row}\n" + LAST + BARRIER)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_table_with_gaps_is_refused():
    with pytest.raises(ValueError, match="no row for every barrier"):
        SelectionTable.from_toml(LAST)
    for gap in ("below = 10", "sizes = [1, 8]", "uneven = false"):
        with pytest.raises(ValueError, match="no row for every barrier"):
            SelectionTable.from_toml(LAST + BARRIER + gap)
    with pytest.raises(ValueError, match="last row for barrier must fit every size"):
        SelectionTable.from_toml(LAST + BARRIER + "sizes = [2, 4611686018427387904]")
    with pytest.raises(ValueError, match="last row for gather must fit any memory"):
        SelectionTable.from_toml(LAST + BARRIER + ONE_SIDED.format("gather", ""))
    with pytest.raises(ValueError):
        SelectionTable.from_toml("this is no table")


def test_a_row_fits_by_size_bytes_and_evenness():
    row = Row(collective="allreduce", algorithm="ring", below=10, least=2, most=3, uneven=False)
    assert row.fits(2, 9, False) and row.fits(3, 0, False)
    assert not row.fits(1, 9, False) and not row.fits(4, 9, False)
    assert not row.fits(2, 10, False) and not row.fits(2, 9, True)


def test_a_symmetric_row_fits_what_its_algorithm_reaches():
    asked = []
    text = ONE_SIDED.format("allreduce", "below = 100") + ONE_SIDED.format("gather", "") + LAST
    table = SelectionTable.from_toml(text + BARRIER)
    for reachable, wanted in ((True, "one_sided"), (False, "ring")):

        def reaches(name, reachable=reachable):
            asked.append(name)
            return reachable

        for collective in ("allreduce", "gather"):
            assert table.choose(collective, size=3, nbytes=99, reaches=reaches) == wanted
    assert asked == ["one_sided"] * 4
    assert table.choose("allreduce", size=3, nbytes=100, reaches=lambda name: True) == "ring"
    assert table.choose("broadcast", size=3, nbytes=9, reaches=lambda name: True) == "ring"
    assert table.choose("allreduce", size=3, nbytes=9) == "ring"  # private, unless somebody says
    assert SelectionTable.from_settings(table.as_settings()).rows == table.rows


def test_only_those_named_are_chosen():
    table = default_table()

    def choose(among, nbytes=1 << 20, reaches=True):
        return table.choose("allreduce", size=3, nbytes=nbytes, among=among,
                            reaches=lambda name: reaches)  # fmt: skip

    assert choose(("one_shot", "linear", "one_sided")) == "one_sided"
    assert choose(("one_shot", "linear"), nbytes=8) == "one_shot"
    assert choose(("one_shot", "linear")) == "linear"  # no row names one: the last
    assert choose(("ring", "linear"), reaches=False) == "ring"
    assert choose(("one_sided",), nbytes=8) == "one_sided"
