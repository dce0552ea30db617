"""What control groups allow is read from one's own group and from those around it."""

from __future__ import annotations

import pytest

from transports import allowances
from transports.allowances import available_memory, core_time, group_folders, memory_left


@pytest.fixture
def membership(tmp_path):
    file = tmp_path / "membership"
    file.write_text("1:cpu:/elsewhere\n0::/outer.slice/inner.scope\n")
    return file


@pytest.fixture
def inner(tmp_path):
    folder = tmp_path / "groups" / "outer.slice" / "inner.scope"
    folder.mkdir(parents=True)
    return folder


def test_the_groups_around_ones_own_count(tmp_path, membership, inner):
    root = tmp_path / "groups"
    assert group_folders("memory", root, membership) == [inner, inner.parent, root]
    assert core_time(root, membership) is None and memory_left(root, membership) is None
    for folder, quota, most, used in ((inner, "max", "max", 7), (inner.parent, "150000", "9", 4)):
        (folder / "cpu.max").write_text(f"{quota} 100000\n")
        (folder / "memory.max").write_text(f"{most}\n")
        (folder / "memory.current").write_text(f"{used}\n")
    assert core_time(root, membership) == 1.5
    path = inner.parent / "memory.max"
    assert memory_left(root, membership) == (5, path)
    assert available_memory(root, membership, swap=False) == (5, str(path))
    path.write_text("3\n")  # lowered below what is used
    assert memory_left(root, membership) == (0, path)


def test_groups_of_version_1_have_a_folder_for_each_controller(tmp_path):
    root, membership = tmp_path / "groups", tmp_path / "membership"
    (root / "misc" / "a").mkdir(parents=True)  # a/b is not to be seen in here
    (root / "unit").mkdir()
    membership.write_text("5:pids,misc:/a/b\n3:memory:/elsewhere\n0::/unit\n")
    found = [str(each.relative_to(root)) for each in group_folders("misc", root, membership)]
    assert found == ["misc/a", "misc", "unit", "."]


def test_a_limit_that_nothing_can_reach_is_none(tmp_path):
    for folder in (tmp_path, tmp_path / "memory"):
        folder.mkdir(exist_ok=True)
        (folder / "memory.limit_in_bytes").write_text("9223372036854771712\n")
        (folder / "memory.usage_in_bytes").write_text("4096\n")
    assert memory_left(tmp_path, tmp_path / "absent") is None


def test_a_group_outside_of_what_is_mounted_is_the_root(tmp_path):
    (tmp_path / "membership").write_text("0::/../../system.slice\n")
    assert group_folders("memory", tmp_path, tmp_path / "membership") == [tmp_path]
    assert group_folders("memory", tmp_path, tmp_path / "absent") == [tmp_path]


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({}, 1000 + 600),
        ({"memory.swap.max": "max", "memory.swap.current": "0"}, 1000 + 600),
        ({"memory.swap.max": "0", "memory.swap.current": "0"}, 1000),
        ({"memory.swap.max": "500", "memory.swap.current": "300"}, 1000 + 200),
        ({"memory.swap.max": "100", "memory.swap.current": "300"}, 1000),
        ({"memory.max": "max"}, None),
    ],
)
def test_swap_counts_as_far_as_a_group_may_use_it(tmp_path, files, left):
    for name, text in ({"memory.max": "5000", "memory.current": "4000"} | files).items():
        (tmp_path / name).write_text(text)
    found = memory_left(tmp_path, tmp_path / "absent", 600)
    assert found == (None if left is None else (left, tmp_path / "memory.max"))


@pytest.mark.parametrize(("both", "left"), [(None, 1600), (4100, 100), (4000, 0), (9000, 1600)])
def test_swap_and_memory_have_one_limit_in_version_1(tmp_path, both, left):
    names = {"memory.limit_in_bytes": 5000, "memory.usage_in_bytes": 4000}
    if both is not None:
        names |= {"memory.memsw.limit_in_bytes": both, "memory.memsw.usage_in_bytes": 4000}
    for name, number in names.items():
        (tmp_path / name).write_text(str(number))
    found = memory_left(tmp_path, tmp_path / "absent", 600)
    assert found == (left, tmp_path / "memory.limit_in_bytes")


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({"memory.max": "max"}, None),
        # What the group has left, and the page cache that it would give up.
        (
            {
                "memory.max": "5000",
                "memory.current": "4000",
                "memory.stat": "file 500\nshmem 100\n",
            },
            1000 + 400,
        ),
        (
            {
                "memory.limit_in_bytes": "5000",
                "memory.usage_in_bytes": "4000",
                "memory.stat": "cache 1\ntotal_cache 500\ntotal_shmem 100\n",
            },
            1000 + 400,
        ),
    ],
)
def test_memory_is_that_of_the_machine_or_of_the_group(tmp_path, monkeypatch, files, left):
    machine = {True: 12 * 1024, False: 10 * 1024}
    monkeypatch.setattr(allowances, "available_bytes", lambda *, swap: machine[swap])
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    for swap in (True, False):
        found, where = available_memory(tmp_path, tmp_path / "absent", swap=swap)
        if left is None:
            assert (found, where) == (machine[swap], "the machine")
        else:
            assert found == left + (2 * 1024 if swap else 0)
            assert where.startswith(str(tmp_path / "memory."))
