"""Ranks in an instant: forked from an interpreter that has imported what they need.

A fresh interpreter takes 0.65 s of a processor to import us, and 6.5 s to import torch with its
optimizers and the trainer (docs/log/2026-11-29-quick-tests.md), more than most tests of several
ranks do otherwise. Here an interpreter waits, for each kind of import one, and ranks of
`launch.spawn` and of `Ranks` are forked from it: with their own environment, session, cores, and
files, children of the process that asked. The long run starts fresh interpreters, as users do, and
so do tests of `launch` (see `conftest`).
"""

from __future__ import annotations

import array
import ctypes
import fcntl
import functools
import gc
import importlib
import io
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

PLAIN = ("numpy", "cloudpickle", "launch.spawned_rank", "collectives.communicator")
WITH_TORCH = (*PLAIN, "torch", "torch._dynamo", "trainers.run", "harness.gradients")

SERVERS: dict[tuple[Any, ...], Server] = {}
"""Those that have been started, by what they have imported and what was read meanwhile."""

_MOST = 6

IN_USE = [False]
"""Whether ranks are forked at all: see `conftest`."""

_ABOVE_TARGETS = 500

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_READ_AT_IMPORT = ("OMP_", "MKL_", "OPENBLAS_", "PYTHON", "LD_", "MALLOC_", "TORCH_", "CUDA_")
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A rank to be forked.

    Attributes:
        environment: all of it.
        folder: where it is to be.
        limits: of its resources.
        targets: the numbers it finds its files under, in the order in which they are sent.
        cores: to be bound to.
        of_launcher: whether it leads a session of its own, dies with who asked, and writes
            unbuffered, as `launch.rank_shim` has it.
        asker: whose child it is to be.
        program: what it does, by module and name.
        words: the arguments of that.
    """

    environment: dict[str, str]
    folder: str
    limits: dict[int, tuple[int, int]]
    targets: tuple[int, ...]
    cores: frozenset[int]
    of_launcher: bool
    asker: int
    program: tuple[str, str]
    words: tuple[Any, ...]


class Started(subprocess.Popen[bytes]):
    """A forked rank as if `Popen` had started it."""

    def __init__(self, pid: int, args: Sequence[str]) -> None:
        self.args = list(args)
        self.pid = pid
        self.returncode: Any = None
        self.stdin = self.stdout = self.stderr = None
        self._waitpid_lock = threading.Lock()
        self._child_created = True
        self._sigint_wait_secs = 0.25


class Server:
    """An interpreter that waits with its imports done."""

    def __init__(self, imports: tuple[str, ...], early: Mapping[str, str]) -> None:
        others = {n: text for n, text in os.environ.items() if not n.startswith(_READ_AT_IMPORT)}
        self._ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, str(Path(__file__)), str(theirs.fileno()), *imports],
                pass_fds=[theirs.fileno()],
                env={**others, **early},
            )
        self._ours.sendall(_framed(pickle.dumps(sys.path)))
        self._lock = threading.Lock()

    @property
    def descriptor(self) -> int:
        """Of the socket by which it is asked."""
        return self._ours.fileno()

    def fork(self, wanted: Wanted, files: Sequence[int], args: Sequence[str]) -> Started:
        """A rank with `files`."""
        with self._lock:
            # What is forked is a grandchild of the server; its parent ends at once, and the next
            # process above that adopts is us.
            _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
            try:
                self._ours.sendmsg(
                    [b"f"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))]
                )
                self._ours.sendall(_framed(pickle.dumps(wanted)))
                pid = int.from_bytes(_exactly(self._ours, 4), "little")
            finally:
                _libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        return Started(pid, args)


def server_for(environment: Mapping[str, str], content: bytes) -> Server | None:
    """Who forks a rank that has this environment and this call; None: a fresh interpreter does."""
    early = {name: text for name, text in environment.items() if name.startswith(_READ_AT_IMPORT)}
    needs_torch = any(
        word in content for word in (b"torch", b"trainers", b"tiny_runs", b"gradients")
    )
    imports = WITH_TORCH if needs_torch else PLAIN
    kind = (*imports, *sorted(early.items()))
    if kind not in SERVERS:
        if len(SERVERS) == _MOST:
            return None
        SERVERS[kind] = Server(imports, early)
    return SERVERS[kind]


def forked_job_rank(args: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """What `launch.processes` calls instead of `Popen`, for ranks of `launch.spawn`."""
    from launch.spawning import SPAWNED_RANK

    if not IN_USE[0] or str(SPAWNED_RANK) not in args or options.get("stdin") != subprocess.DEVNULL:
        return subprocess.Popen(args, **options)
    launcher, cores = args[-7:-5]
    call, answer = map(int, args[-2:])
    server = server_for(options["env"], os.pread(call, os.fstat(call).st_size, 0))
    if server is None:
        return subprocess.Popen(args, **options)
    wanted = Wanted(
        environment=dict(options["env"]),
        folder=str(Path.cwd()),
        limits=_limits(),
        targets=(0, 1, 2, call, answer),
        cores=frozenset(map(int, cores.split(","))) if cores else _own_cores(),
        of_launcher=True,
        asker=int(launcher),
        program=("launch.spawned_rank", "answer_call"),
        words=(call, answer),
    )
    with Path(os.devnull).open("rb") as nothing:
        files = (nothing.fileno(), options["stdout"], options["stderr"], call, answer)
        return server.fork(wanted, files, args)


def forked_rank(
    what: bytes, result: int, environment: dict[str, str]
) -> subprocess.Popen[bytes] | None:
    """A rank of `harness.processes.Ranks`, with pipes for stdin and stdout."""
    if not IN_USE[0] or (server := server_for(environment, what)) is None:
        return None
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    wanted = Wanted(
        environment=environment,
        folder=str(Path.cwd()),
        limits=_limits(),
        targets=(0, 1, 2, result),
        cores=_own_cores(),
        of_launcher=False,
        asker=os.getpid(),
        program=("harness.processes", "answer_from_stdin"),
        words=(result,),
    )
    try:
        started = server.fork(wanted, (theirs_in, theirs_out, 2, result), ["rank"])
    finally:
        os.close(theirs_in)
        os.close(theirs_out)
    started.stdin, started.stdout = os.fdopen(ours_out, "wb"), os.fdopen(ours_in, "rb")
    return started


def _own_cores() -> frozenset[int]:
    return frozenset(os.sched_getaffinity(0))


def _limits() -> dict[int, tuple[int, int]]:
    kinds = {getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")}
    return {kind: resource.getrlimit(kind) for kind in kinds}


class Subprocess:
    """What `launch.processes` takes for the module `subprocess`."""

    Popen = staticmethod(forked_job_rank)

    def __getattr__(self, name: str) -> Any:
        return getattr(subprocess, name)


# --- in the server


def serve(descriptor: int, imports: Sequence[str]) -> Callable[[], int] | None:
    """Forks ranks until nobody asks any more.

    Returns:
        In a rank what it is to do; in the server, at its end, None.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who asks decides when to end
    asked = socket.socket(fileno=descriptor)
    sys.path[:] = pickle.loads(_framed_in(asked))
    for name in imports:
        importlib.import_module(name)
    gc.freeze()  # what is there already is nobody's garbage: its pages stay shared
    while True:
        _, rights, _, _ = asked.recvmsg(1, socket.CMSG_SPACE(4 * 16))
        if not rights:
            return None
        files = array.array("i", rights[0][2]).tolist()
        wanted: Wanted = pickle.loads(_framed_in(asked))
        answer, tell = os.pipe()
        if (between := os.fork()) == 0:
            if (pid := os.fork()) != 0:
                os.write(tell, pid.to_bytes(4, "little"))
                os._exit(0)
            for ours in (answer, tell):
                os.close(ours)
            asked.close()
            return _become(wanted, files)
        number = os.read(answer, 4)
        os.waitpid(between, 0)
        for ours in (answer, tell, *files):
            os.close(ours)
        asked.sendall(number)


def _become(wanted: Wanted, files: list[int]) -> Callable[[], int]:
    """Turns this process into the rank, as exec and `launch.rank_shim` would."""
    while os.getppid() != wanted.asker:  # the process between has not ended yet
        time.sleep(0.0005)
    if wanted.of_launcher:
        os.setsid()
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != wanted.asker:
            os.kill(os.getpid(), signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.main_thread()._set_native_id()  # type: ignore[attr-defined]  # else the server's
    os.sched_setaffinity(0, wanted.cores)
    os.chdir(wanted.folder)
    for kind, limit in wanted.limits.items():
        resource.setrlimit(kind, limit)
    os.environ.clear()
    os.environ.update(wanted.environment)
    high = [fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, _ABOVE_TARGETS) for file in files]
    for file in files:
        os.close(file)
    for file, target in zip(high, wanted.targets, strict=True):
        os.dup2(file, target)
        os.close(file)
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = _writer(1, unbuffered=wanted.of_launcher)
    sys.stderr = sys.__stderr__ = _writer(2, unbuffered=True)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed()  # else all draw the same
    module, name = wanted.program
    function = getattr(importlib.import_module(module), name)
    return functools.partial(function, *wanted.words)


def _writer(descriptor: int, *, unbuffered: bool) -> io.TextIOWrapper:
    raw = open(descriptor, "wb", buffering=0 if unbuffered else -1, closefd=False)  # noqa: SIM115
    return io.TextIOWrapper(cast("io.BufferedWriter", raw), "utf-8", "backslashreplace",
                            write_through=unbuffered)  # fmt: skip


def _framed(data: bytes) -> bytes:
    return len(data).to_bytes(8, "little") + data


def _framed_in(end: socket.socket) -> bytes:
    return _exactly(end, int.from_bytes(_exactly(end, 8), "little"))


def _exactly(end: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        part = end.recv(length - len(data))
        if not part:
            raise EOFError("the other end has gone")
        data += part
    return data


if __name__ == "__main__":
    # Under its own name, too: what is pickled here and there is the same class.
    sys.modules["harness.prepared"] = sys.modules["__main__"]
    job = serve(int(sys.argv[1]), sys.argv[2:])
    sys.exit(job() if job is not None else 0)
