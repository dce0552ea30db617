"""Shared memory without a name: sealed, zeroed, and refused clearly where it cannot be had."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from harness.processes import open_descriptors

from transports import _native
from transports.allowances import CONTROL_GROUPS
from transports.shm import memory

HUGE = 2 << 20


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


def collapses_shared_memory() -> bool:
    """Whether this kernel puts shared memory into huge pages for who asks for it."""
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    both, fixed = mmap.PROT_READ | mmap.PROT_WRITE, 0x10
    room = libc.mmap(None, 2 * HUGE, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    shared = fixed | mmap.MAP_SHARED | mmap.MAP_ANONYMOUS
    begin = libc.mmap(room + -room % HUGE, HUGE, both, shared, -1, 0)
    ctypes.memset(begin, 1, 1)
    can = libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(HUGE), 25) == 0
    libc.munmap(ctypes.c_void_p(room), ctypes.c_size_t(2 * HUGE))
    return can


def huge_kib(memory: np.ndarray) -> int:
    """Of the mapping in which it lies, what is mapped by huge pages."""
    address = memory.__array_interface__["data"][0]
    found = None
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            found = int(match[1], 16) <= address < int(match[2], 16)
        if found and line.startswith("ShmemPmdMapped:"):
            return int(line.split()[1])
    raise AssertionError("memory that no mapping holds")


@pytest.mark.parametrize("size", [HUGE - 4096, HUGE, 3 * HUGE + 5000])
@pytest.mark.parametrize("welcome", [True, False])
def test_long_memory_lies_in_huge_pages_where_there_are_some(monkeypatch, tmp_path, size, welcome):
    if not welcome:
        (tmp_path / "enabled").write_text("always madvise [never]\n")
        monkeypatch.setattr(memory, "_HUGE_PAGES", tmp_path / "enabled")
    descriptor = memory.allocate(size)
    try:
        assert os.fstat(descriptor).st_size == size
        assert os.fstat(descriptor).st_blocks * 512 >= size, "nothing of it is missing later"
        block = _native.SymmetricBlock(descriptor, 1, size - 2 * 4096)
        view = block.part(0, block)
        assert not view.any()
        view[:] = 7
        with mmap.mmap(descriptor, size) as other:
            assert other[0] == other[view.size - 1] == 7
        can = welcome and memory._are_huge_pages_welcome() and collapses_shared_memory()
        assert huge_kib(view) == (size // HUGE * HUGE // 1024 if can else 0)
    finally:
        os.close(descriptor)


def test_a_system_that_says_nothing_of_huge_pages_has_none(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_HUGE_PAGES", tmp_path / "nothing")
    assert not memory._are_huge_pages_welcome()


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
