"""What the kernel gives: shared memory, limits, the calls by which ranks wait and are watched."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from launch.doctor.asking import NoAnswer
from launch.doctor.findings import Finding, fine, problem, size_text, warning
from launch.doctor.installation import Runtime, value_of

_FILES_AT_ALL = 64  # that any process of ours has open, whatever the number of ranks
_FILES_A_RANK = 4  # the launcher's two pipes and pidfd, and what `launch.spawn` hands over

PROC_SELF = Path("/proc/self")
SHARED = Path("/dev/shm")


def check_shared_memory(runtime: Runtime) -> list[Finding]:
    """Whether memory without a name can be had, and sealed."""
    try:
        memory = value_of(runtime(), "memory")
    except NoAnswer as error:
        advice = "Free memory, or allow memfd_create or files in /dev/shm."
        return [problem("shared memory", f"none can be had: {error}", advice)]
    if memory["memfd"] and memory["sealed"]:
        return [fine("shared memory", "memfd, sealed: needs no room in /dev/shm")]
    if memory["memfd"]:
        advice = "Let nobody shrink it: use a kernel with seals, from Linux 3.17 on."
        return [warning("shared memory", "memfd, but it cannot be sealed", advice)]
    room = os.statvfs(SHARED)
    found = f"no memfd; files in /dev/shm, {size_text(room.f_bavail * room.f_frsize)} free"
    advice = "Allow memfd_create, or give /dev/shm room (docker run --shm-size=1g)."
    return [warning("shared memory", found, advice)]


def check_limits(ranks: int) -> list[Finding]:
    """Of locked memory and of open files."""
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    text = "no limit" if locked == resource.RLIM_INFINITY else size_text(locked)
    memlock = fine("memlock", f"{text} (nothing here locks memory; network adapters of MPI may)")
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = _FILES_AT_ALL + _FILES_A_RANK * ranks
    if files == resource.RLIM_INFINITY or files >= needed:
        text = "no limit" if files == resource.RLIM_INFINITY else str(files)
        return [memlock, fine("open files", text)]
    found = f"{files}, and a launcher of {ranks} ranks has about {needed} open"
    enough = most == resource.RLIM_INFINITY or most >= needed
    advice = f"Run `ulimit -n {needed}`" + (" first." if enough else ", which root must allow.")
    return [memlock, warning("open files", found, advice)]


_WITHOUT = {
    "membarrier": "some 20 ns more a message",
    "futex": "ranks that wait never sleep",
    "pidfd_open": "a rank that is killed is noticed by its launcher only, not by other ranks",
}


def check_kernel_calls(runtime: Runtime) -> list[Finding]:
    """membarrier, futex and pidfd_open, without which waiting is slower or ends unnoticed."""
    try:
        there = value_of(runtime(), "kernel_calls")
    except NoAnswer as error:
        advice = "Have the container's filter of system calls (seccomp) refuse rather than kill."
        return [problem("kernel calls", f"asking for them: {error}", advice)]
    missing = [name for name in _WITHOUT if not there[name]]
    if not missing:
        return [fine("kernel calls", ", ".join(_WITHOUT))]
    found = f"no {', '.join(missing)}: {'; '.join(_WITHOUT[name] for name in missing)}"
    advice = "Use Linux 5.3 or newer, or have the container's filter of system calls allow them."
    return [warning("kernel calls", found, advice)]


def check_process_numbers() -> list[Finding]:
    """Whether /proc shows the processes that our numbers mean."""
    try:
        shown = (PROC_SELF).readlink().name
    except OSError as error:
        shown = f"nothing ({error.strerror})"
    if shown == str(os.getpid()):
        return [fine("process numbers", "those of /proc are ours: ranks can be found and watched")]
    found = f"this is process {os.getpid()}, and /proc/self shows {shown}"
    advice = "Mount /proc anew in this pid namespace: what ranks leave behind is not found there."
    return [problem("process numbers", found, advice)]
