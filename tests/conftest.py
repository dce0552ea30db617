"""The rules every test lives under: nothing left behind, no unexplained skip, no endless wait.

Tests here start real processes and kill them. What they leave behind is a failure of the test
that left it: a process, a file in /dev/shm, shared memory still mapped here.
"""

from __future__ import annotations

import contextlib
import gc
import os
import secrets
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import cloudpickle
import hypothesis
import pytest
from harness import prepared

import launch.processes

ALLOWED_SKIPS = ("no GPU", "no privilege")
"""What a machine may lack; a reason may go on after it, as in `no GPU: needs two`."""

PREPARED = ("collectives", "trainers", "transports")
"""Where tests have their ranks forked from interpreters that wait: see `harness.prepared`."""

GRACE = 5.0
"""Seconds that processes on their way out are given."""

MARK = "COLLECTIVES_TEST_SESSION"
"""An environment variable that processes inherit from us, however far down they are started."""

hypothesis.settings.register_profile("quick", deadline=None, derandomize=True, max_examples=30)
hypothesis.settings.register_profile("full", deadline=None, max_examples=300)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="the long sweeps too")


def pytest_configure(config: pytest.Config) -> None:
    hypothesis.settings.load_profile("full" if config.getoption("--full") else "quick")
    os.environ["COLLECTIVES_TUNING"] = "off"  # what a machine was tuned to is no concern of tests
    os.environ[MARK] = f"{os.getpid()}-{secrets.token_hex(8)}"
    if hasattr(config, "workerinput"):  # one of several at a time, with one command
        os.setpgid(0, 0)  # by which what it forks is told from what another does
        _OF_OTHERS.append("left-")  # of tests of these rules, in whichever worker
    config.pluginmanager.register(_SkipPolicy(), "skip-policy")
    launch.processes.subprocess = prepared.Subprocess()
    # A shell starts what runs in the background with SIGINT ignored, and every process we start
    # would inherit that: Ctrl-C must do what it does at a terminal.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """Whether this is the long run (`make test-full`), for a sweep that merely widens."""
    return bool(request.config.getoption("--full"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # A rank that gets a function by its name imports the whole file, torch included where one test
    # of it needs torch, which takes seconds; by value it gets what the function itself names.
    for module in {item.module for item in items if isinstance(item, pytest.Function)}:
        cloudpickle.register_pickle_by_value(module)
    if config.getoption("--full"):
        return
    left_out = [item for item in items if item.get_closest_marker("full")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("full")]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    folder = item.path.relative_to(Path(__file__).parent).parts[0]
    prepared.IN_USE[0] = folder in PREPARED and not item.config.getoption("--full")


class _SkipPolicy:
    """Turns the run red when a test was skipped for a reason that nobody agreed to."""

    def __init__(self) -> None:
        self.refused: list[str] = []

    def _look(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        if not reason.startswith(ALLOWED_SKIPS):
            self.refused.append(f"{report.nodeid}: {reason}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._look(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._look(report)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if self.refused and exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.refused:
            return
        allowed = " and ".join(f'"{reason}"' for reason in ALLOWED_SKIPS)
        terminalreporter.section("skips that are failures", red=True, bold=True)
        terminalreporter.line(f"The only reasons to skip are {allowed}; found:")
        for line in self.refused:
            terminalreporter.line(f"  {line}")


@pytest.fixture(autouse=True)
def leaves_nothing_behind() -> Iterator[None]:
    """Fails a test after which a process, a shared-memory file or a mapping of ours remains.

    Set up before a test's own fixtures, hence checked after they are torn down. What fixtures of
    a wider scope hold was there before.
    """
    processes, files, mapped = _process_ids(), _shared_files(), _mapped_regions()
    yield
    left = _end_processes(_process_ids() - processes)
    left += [
        f"/dev/shm/{name}" for name in sorted(_shared_files() - files) if not _in_foreign_use(name)
    ]
    if _mapped_regions() > mapped:
        gc.collect()  # views in a cycle have not died yet
    if (now := _mapped_regions()) > mapped:
        left.append(f"{now - mapped} mappings or descriptors of shared memory in this process")
    if left:
        pytest.fail("left behind by this test:\n  " + "\n  ".join(left), pytrace=False)


def _process_ids() -> set[int]:
    servers = {server.process.pid for server in prepared.SERVERS.values()}
    found = {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
    return found - servers


def _end_processes(candidates: set[int]) -> list[str]:
    """Waits for those of ours to end, kills the rest, and returns what had to be killed."""
    deadline = time.monotonic() + GRACE
    killed = []
    for process in sorted(candidates):
        if not _is_ours(process):
            continue
        try:
            handle = os.pidfd_open(process)
        except ProcessLookupError:
            continue
        try:
            ending = select.poll()
            ending.register(handle, select.POLLIN)
            if not ending.poll(max(0.0, deadline - time.monotonic()) * 1000):
                killed.append(f"process {process}: {_command(process)}")
                _kill(process)
                ending.poll(GRACE * 1000)
        finally:
            os.close(handle)
    return killed


def _kill(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it ended by itself at last
        os.kill(process, signal.SIGKILL)


def _is_ours(process: int) -> bool:
    """Whether a living process descends from this one, by its mark or by its parents."""
    folder = Path("/proc") / str(process)
    try:
        status = (folder / "stat").read_text().rpartition(")")[2].split()
        state, parent = status[0], int(status[1])
        environment = (folder / "environ").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return False
    if state in "ZX":  # ended; only its parent has not asked yet
        return False
    command = _command(process)
    # Kept by Python itself, for the life of the process that first used multiprocessing.
    if "multiprocessing.resource_tracker" in command or "multiprocessing.forkserver" in command:
        return False
    mark = f"{MARK}={os.environ[MARK]}".encode()
    if parent == os.getpid() or mark in environment.split(b"\0"):
        return True
    # Forked without a new program, hence with our command and the environment we began with.
    return command == _command(os.getpid()) and _group(process) == os.getpgrp()


def _group(process: int) -> int | None:
    try:
        return os.getpgid(process)
    except ProcessLookupError:
        return None


def _command(process: int) -> str:
    try:
        words = (Path("/proc") / str(process) / "cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return "ended"
    return " ".join(word.decode(errors="replace") for word in words)[:200].strip()


_OF_OTHERS = ["cuda.shm.", "mpich_shm_", "ucx_shm_"]
"""What a GPU's driver has there, and MPICH and its UCX, which a rank that is killed leaves."""


def _shared_files() -> set[str]:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return set()
    return {
        entry.name for entry in folder.iterdir() if not entry.name.startswith(tuple(_OF_OTHERS))
    }


def _in_foreign_use(name: str) -> bool:
    """Whether another program on this machine, not one of ours, has made a new file its own.

    A leak is what nobody uses any more, or only we do.
    """
    path = Path("/dev/shm") / name
    try:
        if path.stat().st_uid != os.getuid():
            return True
    except FileNotFoundError:
        return True
    for process in _process_ids() - {os.getpid()}:
        try:
            maps = (Path("/proc") / str(process) / "maps").read_text()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if f"/dev/shm/{name}\n" in maps and not _is_ours(process):
            return True
    return False


def _mapped_regions() -> int:
    """Counts our memfds in this process: mappings, and descriptors still open."""
    mappings = Path("/proc/self/maps").read_text().count("/memfd:collectives")
    descriptors = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            descriptors += str(entry.readlink()).startswith("/memfd:collectives")
        except FileNotFoundError:
            continue  # the descriptor that listed the folder
    return mappings + descriptors
