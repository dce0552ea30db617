"""Shared memory without a name: nothing to collide with, nothing to leave behind.

A memfd lives as long as a descriptor or a mapping of it. It does not count against the size of
/dev/shm, and once it is sealed nobody can shrink it under a mapping. Where the kernel refuses
memfd, a file in /dev/shm is used whose name is removed at once.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import tempfile
from pathlib import Path

from transports import _native
from transports.allowances import available_memory

_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def allocate(size: int, name: str = "collectives") -> int:
    """A descriptor of `size` bytes of zeroed shared memory that cannot change its size.

    Raises:
        MemoryError: there is not as much; the text says how much was asked for.
    """
    room, where = available_memory()
    if size > room:  # else the kernel would hand out page after page and kill somebody at the end
        raise MemoryError(
            f"{size} bytes of shared memory cannot be had: {room} are left, says {where}"
        )
    try:
        descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        sealed = True
    except OSError:
        descriptor = _unlinked_file(name)
        sealed = False
    try:
        # Reserved now: memory that is missing is an error here, not a SIGBUS later.
        if _are_huge_pages_welcome():
            os.ftruncate(descriptor, size)
            _native.take_huge_pages(descriptor)
        os.posix_fallocate(descriptor, 0, size)
        if sealed:
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.ENOSPC, errno.ENOMEM):
            raise MemoryError(f"{size} bytes of shared memory cannot be had: {error}") from None
        raise
    except BaseException:
        with contextlib.suppress(OSError):
            os.close(descriptor)
        raise
    return descriptor


def _are_huge_pages_welcome() -> bool:
    """Whether the system has transparent huge pages, and who runs it has not turned them off."""
    try:
        return "[never]" not in _HUGE_PAGES.read_text()
    except OSError:
        return False


def _unlinked_file(name: str) -> int:
    descriptor, path = tempfile.mkstemp(prefix=f"{name}-", dir="/dev/shm")
    os.unlink(path)  # noqa: PTH108 - mkstemp gives a plain string
    return descriptor
