"""Shared memory without a name: sealed, zeroed, and refused clearly where it cannot be had."""

from __future__ import annotations

import errno
import mmap
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from harness.processes import open_descriptors

from transports.allowances import CONTROL_GROUPS
from transports.shm import memory


def test_it_is_zeroed_shared_and_of_the_size():
    descriptor = memory.allocate(10_000)
    try:
        assert os.fstat(descriptor).st_size == 10_000
        with mmap.mmap(descriptor, 10_000) as one, mmap.mmap(descriptor, 10_000) as other:
            assert one[:] == bytes(10_000)
            one[9_999] = 7
            assert other[9_999] == 7
    finally:
        os.close(descriptor)


def test_nobody_can_change_its_size():
    descriptor = memory.allocate(4096)
    try:
        for size in (0, 8192):
            with pytest.raises(PermissionError):
                os.ftruncate(descriptor, size)
        assert not os.get_inheritable(descriptor)
    finally:
        os.close(descriptor)


def test_it_needs_no_name(monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSYS, "no memfd here")

    monkeypatch.setattr(os, "memfd_create", refuse)
    before = set(Path("/dev/shm").iterdir())
    descriptor = memory.allocate(10_000, "collectives-test")
    try:
        assert set(Path("/dev/shm").iterdir()) == before  # the file has lost its name already
        assert str(Path(f"/proc/self/fd/{descriptor}").readlink()).startswith("/dev/shm/")
        with mmap.mmap(descriptor, 10_000) as one:
            assert one[:] == bytes(10_000)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("size", [1 << 45, 1 << 62])
def test_more_than_there_is_is_refused_before_it_is_taken(size):
    descriptors = len(open_descriptors())
    with pytest.raises(MemoryError, match=f"{size} bytes of shared memory cannot be had.*left"):
        memory.allocate(size)
    assert len(open_descriptors()) == descriptors


@pytest.mark.parametrize(
    "error, kind",
    [
        (OSError(errno.ENOSPC, "full"), MemoryError),
        (OSError(errno.ENOMEM, "none"), MemoryError),
        (OSError(errno.EIO, "broken"), OSError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_the_descriptor_is_closed_whatever_happens(monkeypatch, error, kind):
    def fail(*_):
        raise error

    monkeypatch.setattr(os, "posix_fallocate", fail)
    descriptors = len(open_descriptors())
    with pytest.raises(kind) as caught:
        memory.allocate(4096)
    if kind is MemoryError:
        assert "4096 bytes of shared memory cannot be had" in str(caught.value)
    assert len(open_descriptors()) == descriptors


LIMIT, WANTED = 100_000_000, 300_000_000
IN_A_GROUP = f"""
import os, sys
from pathlib import Path
from transports.shm.memory import allocate

Path(sys.argv[1], "cgroup.procs").write_text(str(os.getpid()))
os.close(allocate({LIMIT} // 4))
try:
    allocate({WANTED})
except MemoryError as error:
    print(error)
"""


@pytest.fixture
def limited_group():
    """A control group of this machine that may take so many bytes."""
    version_1 = CONTROL_GROUPS / "memory" / "memory.limit_in_bytes"
    root = version_1.parent if version_1.exists() else CONTROL_GROUPS
    group = root / f"collectives-test-{os.getpid()}"
    try:
        if not version_1.exists():
            (root / "cgroup.subtree_control").write_text("+memory")
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no privilege: needs a control group ({error})")
    try:
        name = version_1.name if version_1.exists() else "memory.max"
        (group / name).write_text(str(LIMIT))
        yield group
    finally:
        group.rmdir()


def test_a_container_has_no_more_than_its_limit(limited_group):
    ended = subprocess.run(
        [sys.executable, "-c", IN_A_GROUP, str(limited_group)], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended
    assert f"{WANTED} bytes of shared memory cannot be had" in ended.stdout
    (left, where) = re.findall(r"(\d+) are left, says (.*)", ended.stdout)[0]
    assert 0 < int(left) < LIMIT and where.startswith(str(limited_group))
