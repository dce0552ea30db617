"""From times to a table: the quickest at each size, no change without a gain, no gap."""

from __future__ import annotations

import numpy as np
import pytest

from collectives.cost.choosing import as_toml, chosen_table, limits, predicted_table, rows_for
from collectives.cost.fitting import guess
from collectives.cost.measuring import Measurement, whole_bytes
from collectives.cost.parameters import Parameters
from collectives.cost.records import merged, read_measurements, write_measurements
from collectives.cost.work import Room
from collectives.selection import SelectionTable, default_table
from collectives.specs import SPECS

BEYOND = 1 << 62


def made(collective, algorithm, ranks, nbytes, seconds):
    return Measurement(collective=collective, algorithm=algorithm, ranks=ranks, nbytes=nbytes,
                       seconds=seconds)  # fmt: skip


def test_the_quickest_is_chosen_between_sizes():
    times = {
        64: {"a": 1.0, "b": 2.0},
        1024: {"a": 2.0, "b": 2.01},
        16384: {"a": 9.0, "b": 3.0},
    }
    assert limits(times) == [(4096, "a"), (BEYOND, "b")]


def test_a_change_must_gain_something():
    times = {64: {"a": 1.0, "b": 1.01}, 1024: {"a": 2.0, "b": 1.99}, 4096: {"a": 4.0, "b": 4.0}}
    assert limits(times) == [(BEYOND, "a")]


def test_of_near_equals_the_one_that_lasts_is_taken():
    times = {64: {"a": 1.0, "b": 1.01}, 1024: {"a": 3.0, "b": 1.0}}
    assert limits(times) == [(BEYOND, "b")]


def test_a_little_at_many_sizes_is_a_gain_too():
    few = {4**power: {"a": 1.0, "b": 1.1 if power < 5 else 0.9} for power in range(7)}
    assert len(limits(dict(list(few.items())[:6]))) == 1  # one size alone, a tenth: noise
    many = {4**power: {"a": 1.0, "b": 1.1 if power < 5 else 0.9} for power in range(10)}
    assert [name for _, name in limits(many)] == ["a", "b"]


def test_an_algorithm_that_relays_has_no_counts_of_its_own():
    times = {64: {"bruck": 1.0, "pairwise": 3.0}, 1024: {"bruck": 5.0, "pairwise": 3.0}}
    rows = rows_for("alltoall", times, 8, 8)
    assert [(row.algorithm, row.below, row.uneven) for row in rows] == [
        ("bruck", 256, False),
        ("pairwise", BEYOND, True),
        ("pairwise", BEYOND, True),
    ]


def test_symmetric_memory_has_rows_of_its_own_where_they_are_quicker():
    times = {
        64: {"tree": 1.0, "linear": 1.5, "one_sided": 3.0},
        4096: {"tree": 2.0, "linear": 1.0, "one_sided": 3.0},
        65536: {"tree": 9.0, "linear": 5.0, "one_sided": 3.0},
    }
    rows = rows_for("gather", times, 2, 2)
    assert [(row.algorithm, row.below, row.symmetric) for row in rows] == [
        ("tree", 512, False),
        ("linear", 16384, False),
        ("one_sided", BEYOND, True),
        ("tree", 512, False),
        ("linear", BEYOND, False),
    ]
    table = SelectionTable([*rows, *default_table().rows])
    for nbytes, private, reached in ((64, "tree", "tree"), (5000, "linear", "linear"),
                                     (1 << 20, "linear", "one_sided")):  # fmt: skip
        assert table.choose("gather", size=2, nbytes=nbytes) == private
        assert table.choose("gather", size=2, nbytes=nbytes, reaches=lambda name: True) == reached
    never = {nbytes: {"tree": 1.0, "one_sided": 2.0} for nbytes in (64, 4096)}
    assert [row.algorithm for row in rows_for("gather", never, 2, 2)] == ["tree"]
    first = {64: {"tree": 2.0, "one_sided": 1.0}, 4096: {"tree": 1.0, "one_sided": 2.0}}
    assert [(row.algorithm, row.below) for row in rows_for("gather", first, 2, 2)] == [
        ("one_sided", 512),
        ("tree", BEYOND),
    ]


def test_ranks_between_two_that_were_measured_go_by_the_greater():
    times = [
        made("gather", name, ranks, 64, seconds)
        for ranks, best in ((2, "linear"), (4, "tree"))
        for name, seconds in (
            ("linear", 1.0 + (best != "linear")),
            ("tree", 1.0 + (best != "tree")),
        )
    ]
    table = chosen_table(times, default_table())
    found = {size: table.choose("gather", size=size, nbytes=99) for size in (1, 2, 3, 4, 5)}
    assert found == {1: "linear", 2: "linear", 3: "tree", 4: "tree", 5: "linear"}
    for collective in SPECS:
        assert table.choose(collective, size=4, nbytes=1 << 20)
    with pytest.raises(ValueError, match="expected measurements to choose by, found none"):
        chosen_table([], default_table())


def test_tables_are_written_as_they_are_read():
    table = default_table()
    text = as_toml(table, "a heading\n\nof three lines")
    assert text.startswith("# a heading\n#\n# of three lines\n")
    assert SelectionTable.from_toml(text).rows == table.rows


def test_a_table_can_be_predicted():
    table = predicted_table(
        (2, 4),
        Parameters(values=guess(), ranks=2),
        Room(slots=8, slot_bytes=1 << 18, depth=16, cores=2),
    )
    for collective in SPECS:
        for size in (1, 2, 3, 4, 99):
            for uneven in (False, True):
                assert table.choose(collective, size=size, nbytes=1 << 16, uneven=uneven)


def test_measurements_are_kept_in_a_file(tmp_path):
    first = [made("gather", "tree", 2, 64, 2.0), made("gather", "linear", 2, 64, 1.0)]
    again = [made("gather", "tree", 2, 64, 1.5), made("gather", "linear", 2, 64, 3.0)]
    file = tmp_path / "times.jsonl"
    write_measurements(first, file)
    assert read_measurements(file) == first
    assert [each.seconds for each in merged(first, again)] == [1.5, 1.0]


@pytest.mark.parametrize("line", ["{", "{}", "[1]", "3", '{"collective": 1}'])
def test_a_file_of_something_else_is_refused(tmp_path, line):
    file = tmp_path / "times.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(ValueError, match=r"times\.jsonl, line 1: not a measurement"):
        read_measurements(file)


def test_sizes_are_whole():
    assert whole_bytes("barrier", 99, 3) == 0
    assert whole_bytes("allreduce", 1, 3) == 4
    assert whole_bytes("alltoall", 64, 3) == 60
    assert whole_bytes("gather", 1, 3) == 12
    assert np.prod([whole_bytes("reduce", 1 << 20, 2)]) == 1 << 20
