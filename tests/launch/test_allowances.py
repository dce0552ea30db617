"""What control groups allow is read from one's own group and from those around it."""

from __future__ import annotations

import pytest

from launch.allowances import available_memory, core_time, memory_left, own_groups


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
    assert own_groups(root, membership) == [inner, inner.parent, root]
    assert core_time(root, membership) is None and memory_left(root, membership) is None
    for folder, quota, most, used in ((inner, "max", "max", 7), (inner.parent, "150000", "9", 4)):
        (folder / "cpu.max").write_text(f"{quota} 100000\n")
        (folder / "memory.max").write_text(f"{most}\n")
        (folder / "memory.current").write_text(f"{used}\n")
    assert core_time(root, membership) == 1.5
    assert memory_left(root, membership) == 5
    assert available_memory(root, membership) == 5
    (inner.parent / "memory.max").write_text("3\n")  # lowered below what is used
    assert memory_left(root, membership) == 0


def test_a_group_outside_of_what_is_mounted_is_the_root(tmp_path):
    (tmp_path / "membership").write_text("0::/../../system.slice\n")
    assert own_groups(tmp_path, tmp_path / "membership") == [tmp_path]
    assert own_groups(tmp_path, tmp_path / "absent") == [tmp_path]


def test_a_containers_memory_counts(tmp_path):
    whole = available_memory(tmp_path, tmp_path / "absent")
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("400\n")
    assert available_memory(tmp_path, tmp_path / "absent") == 600
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory(tmp_path, tmp_path / "absent") > 1000 < whole
