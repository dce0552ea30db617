"""Where another process is in its Python program, asked from outside, whatever it is doing.

A process that is ready to be asked has a memory file and `faulthandler`'s handler of a real-time
signal, which writes the stack of the main thread into that file. Whoever asks empties the file,
sends the signal and reads what comes. The handler is plain C: it answers while the program
computes in C, holds the interpreter's lock or sleeps. Of a process that cannot answer the kernel
still says what it does.

A number of a descriptor may come to mean another file: a program that closes all it has, as daemons
do, or executes another, opens its own under the same numbers. So the file is known by what the
kernel calls it, and no other is emptied, written to, or closed.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import fcntl
import os
import re
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from transports.readable import becomes_readable
from transports.undisturbed import undisturbed

_PATIENCE = 0.5  # seconds for an answer; the machine may be busy
_LOOK_EVERY = 0.005
_MOST_FRAMES = 12
_FRAME = re.compile(r'  File "(?P<file>.*)", line (?P<line>\d+) in (?P<function>.*)')
_HEAD = "Stack (most recent call first):"  # as faulthandler begins each
_LONGEST_ANSWER = 1 << 16
_LIBC = ctypes.CDLL(None)
_LIBC.signal.restype = ctypes.c_void_p
_SIG_IGN = 1
_STATES = {
    "R": "runs, or waits for a core",
    "S": "sleeps",
    "D": "waits for a device (a disk, a network file system)",
    "T": "is stopped by a signal (SIGSTOP, Ctrl-Z)",
    "t": "is stopped by a debugger",
    "Z": "has ended",
    "X": "has ended",
}


@dataclass(frozen=True)
class Readiness:
    """How a process can be asked; it tells its peers.

    Attributes:
        signal: which signal; 0: it cannot be asked.
        descriptor: the number of its memory file, in that process.
        file: which file that is (see `_identity`).
    """

    signal: int = 0
    descriptor: int = -1
    file: str = ""


class _Own:
    """This process's readiness, as long as anybody needs it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders = 0
        self._process = 0
        self._ready = Readiness()
        self._signal = 0  # the last one, ignored since it was given back

    def take(self, holder: object = None) -> tuple[Readiness, Callable[[], object]]:
        with self._lock:
            if self._process != os.getpid():  # a child of fork begins anew
                self._free()
                self._holders, self._process = 0, os.getpid()
            number = _free_signal(self._signal) if self._holders == 0 else 0
            with undisturbed():
                if number:
                    self._ready = _begin(number)
                    self._signal = self._ready.signal or self._signal
                self._holders += 1
                give_back: Callable[[], object] = self.give_back
                if holder is not None:
                    give_back = weakref.finalize(holder, self.give_back)
            return self._ready, give_back

    def give_back(self) -> None:
        with self._lock:
            if self._process != os.getpid() or self._holders == 0:
                return
            self._holders -= 1
            if self._holders == 0:
                self._free()

    def _free(self) -> None:
        if self._ready.signal:
            faulthandler.unregister(self._ready.signal)
            with contextlib.suppress(OSError):  # the program has closed it
                if _identity(self._ready.descriptor) == self._ready.file:
                    os.close(self._ready.descriptor)
        self._ready = Readiness()


_OWN = _Own()


def be_ready() -> Readiness:
    """Let others ask this process from now on; to be undone by `be_ready_no_more`."""
    return _OWN.take()[0]


def be_ready_for(holder: object) -> tuple[Readiness, Callable[[], object]]:
    """The same; undone when `holder` is no more, or what is returned with it has been called."""
    return _OWN.take(holder)


def be_ready_no_more() -> None:
    """Undo one `be_ready`; the last one frees signal and file."""
    _OWN.give_back()


def _free_signal(before: int) -> int:
    """A signal that is nobody's, or 0; `before` is the one we had, which is ours still."""
    # As the kernel knows it: Python knows of its own handlers only. A signal that is blocked may
    # be waited for by other means.
    known = _signals("self")
    if not known:
        return 0
    used = known["SigCgt"] | known["SigBlk"] | known["SigIgn"] & ~_bit(before)
    # The last of the real-time signals first: programs that use any begin with the first.
    for number in range(signal.SIGRTMAX, signal.SIGRTMIN, -1):
        if not used & _bit(number):
            return number
    return 0


def _begin(number: int) -> Readiness:
    """Ready with that signal."""
    try:
        descriptor = os.memfd_create("stack-of-a-rank", os.MFD_CLOEXEC)
    except OSError:
        return Readiness()
    # Whoever asks empties it: what is written goes to the end that the file has then.
    fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_APPEND)
    # What `unregister` will restore: whoever has just seen that there is a handler may send the
    # signal a moment later, and its default would end the process. Not by Python's own `signal`,
    # which is for the main thread.
    _LIBC.signal(number, ctypes.c_void_p(_SIG_IGN))
    # One thread's only: the stack of another may change while it is read.
    faulthandler.register(number, file=descriptor, all_threads=False)
    return Readiness(number, descriptor, _identity(descriptor))


def _identity(descriptor: int) -> str:
    """What tells the file of a descriptor from all other files of this host, in every process."""
    status = os.fstat(descriptor)
    return f"{status.st_dev}:{status.st_ino}"


@dataclass(frozen=True)
class Found:
    """What a process does.

    Attributes:
        state: in words; empty if it has answered.
        frames: of its main thread's Python stack, the innermost first: "file:line in function".
    """

    state: str = ""
    frames: tuple[str, ...] = ()


def ask(pid: int, ready: Readiness) -> Found:
    """What process `pid` of this pid namespace does now; takes a second at most."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return Found("has ended")
    try:
        state = _state_of(pid)
        if state in ("T", "t", "Z", "X") or not _would_answer(pid, ready):
            return Found(_STATES.get(state, "does not answer"))
        try:
            text = _answer(pid, pidfd, ready)
        except OSError:
            return Found(f"{_STATES.get(state, 'does not answer')}, and cannot be asked")
    finally:
        os.close(pidfd)
    frames = tuple(
        f"{found['file']}:{found['line']} in {found['function']}"
        for found in map(_FRAME.fullmatch, _first_stack(text).splitlines())
        if found
    )
    if frames:
        return Found(frames=frames[:_MOST_FRAMES])
    return Found(f"{_STATES.get(_state_of(pid), 'does not answer')}, in no Python code")


def _first_stack(text: str) -> str:
    """Of an answer the first whole stack: others may have asked, too, and waited long enough."""
    _, _, rest = text.partition(_HEAD)
    return (rest or text).partition(_HEAD)[0]


def _wait_for_others(file: FileIO) -> None:
    """Until nobody else asks the same process, whose answers would be one text; not for ever."""
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_LOOK_EVERY)
        else:
            return


def _answer(pid: int, pidfd: int, ready: Readiness) -> str:
    with _stack_file(pid, ready) as file:
        _wait_for_others(file)
        file.truncate(0)
        signal.pidfd_send_signal(pidfd, ready.signal)
        deadline = time.monotonic() + _PATIENCE
        size = -1
        # Written frame by frame: it is whole when nothing more comes.
        while time.monotonic() < deadline and (
            size <= 0 or size != os.fstat(file.fileno()).st_size
        ):
            size = os.fstat(file.fileno()).st_size
            if becomes_readable(pidfd, _LOOK_EVERY):
                break
        return os.pread(file.fileno(), _LONGEST_ANSWER, 0).decode(errors="replace")


@contextlib.contextmanager
def _stack_file(pid: int, ready: Readiness) -> Iterator[FileIO]:
    """The memory file of a process; an OSError if its number means another file by now."""
    # Held before it is looked at, and only then opened, by what is held: so it stays the same one,
    # and opening does nothing to a file that is not ours (a pipe or a device may wait, or act).
    held = os.open(f"/proc/{pid}/fd/{ready.descriptor}", os.O_PATH)
    try:
        if _identity(held) != ready.file:
            raise FileNotFoundError(f"descriptor {ready.descriptor} of process {pid} is another's")
        with FileIO(f"/proc/self/fd/{held}", "r+b") as file:
            yield file
    finally:
        os.close(held)


def _would_answer(pid: int, ready: Readiness) -> bool:
    """Whether the signal has a handler there: without one, as after an exec, it would kill."""
    return bool(_signals(str(pid)).get("SigCgt", 0) & _bit(ready.signal))


def _signals(process: str) -> dict[str, int]:
    """The signals, a bit for each, that a process catches (SigCgt), ignores (SigIgn), blocks."""
    try:
        lines = Path(f"/proc/{process}/status").read_bytes().splitlines()
    except OSError:
        return {}
    fields = (line.decode(errors="replace").partition(":") for line in lines)
    return {
        name: int(text, 16) for name, _, text in fields if name in ("SigCgt", "SigIgn", "SigBlk")
    }


def _bit(number: int) -> int:
    return 1 << number >> 1  # none for 0


def _state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return "X"
