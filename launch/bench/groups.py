"""A contender's ranks as processes of their own: started once, asked over sockets, then ended.

While a group is not asked, its ranks are blocked in reading their sockets, whatever their library
would do in a wait of its own: MPI libraries poll, and would take a core from whoever runs.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from launch.bench.contenders import Contender
from launch.bench.leftovers import mapped_files, remove_leftovers
from launch.bench.places import Places
from launch.environment import JobIdentity, ReservedPort, rank_environment
from launch.failures import ending
from launch.processes import Ended, Job, Output, RankCommand
from launch.sweeping import job_members

START_SECONDS = 120.0
ANSWER_SECONDS = 120.0
OTHERS_SECONDS = 10.0  # that ranks get after one has failed, to fail likewise
LEAVE_SECONDS = 3.0  # that ranks get to end by themselves
ASKED_SECONDS = 1.0  # that they get after having been asked to
KEPT_LINES = 12

Answer = dict[str, Any]


class GroupLost(Exception):
    """A group can go on no more; the text says what happened and what it last printed."""


class CaseRefused(Exception):
    """A group has not made a case, and goes on with others; the text says why."""


@dataclass
class _Line:
    """One rank's socket."""

    connection: socket.socket
    received: bytearray = field(default_factory=bytearray)
    is_known: bool = True

    def answers(self) -> list[Answer]:
        """Those that have come whole; none after the rank has closed its end."""
        with suppress(BlockingIOError, ConnectionResetError):
            while piece := self.connection.recv(1 << 16):
                self.received += piece
        *lines, rest = bytes(self.received).split(b"\n")
        self.received = bytearray(rest)
        return [json.loads(line) for line in lines]


class Group:
    """The ranks of one contender; a context manager, used from one thread."""

    def __init__(
        self,
        contender: Contender,
        ranks: int,
        *,
        cores: Sequence[Sequence[int]],
        threads: int,
        cache_bytes: int,
        places: Places | None = None,
    ) -> None:
        """Nothing is started before the `with` block begins; `places`: ranks may be elsewhere."""
        self.contender = contender
        self.ranks = ranks
        self.description: dict[str, str] = {}
        self.bound: list[list[int]] = [[] for _ in range(ranks)]
        self._cores = cores
        self._threads = threads
        self._cache_bytes = cache_bytes
        self._places = places
        self._stack = ExitStack()
        self._job: Job | None = None
        self._lines: dict[int, _Line] = {}
        self._strangers: list[_Line] = []
        self._said: deque[str] = deque(maxlen=KEPT_LINES)
        self._lost = ""
        self._mapped: set[Path] = set()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            address = self._listen(stack)
            self._server.listen(self.ranks)
            self._server.setblocking(False)
            port = stack.enter_context(ReservedPort())
            identity = JobIdentity(ranks=self.ranks, master_port=port.number)
            self._job = Job(identity.job, self._commands(identity, address))
            stack.enter_context(self._job)
            self._job.watch_descriptor(self._server.fileno())
            self._stack = stack.pop_all()
        return self

    def _listen(self, stack: ExitStack) -> str:
        """Where ranks find us: a name on this host, or if they may be on others a port."""
        if self._places is None:
            address = f"collectives-bench-{secrets.token_hex(16)}"
            self._server = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            self._server.bind("\0" + address)
            return address
        host = self._places.address
        self._server = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        self._server.bind((host, 0))
        return f"tcp {host} {self._server.getsockname()[1]} {self._places.token}"

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if not self._lost:
                self._leave()
        finally:
            self.close()

    def close(self) -> None:
        """Ends the ranks; closing twice does nothing.

        They are asked first: an mpiexec that is killed at once leaves its folders.
        """
        if self._job is not None and self._job.running:
            self._mapped |= mapped_files(job_members(self._job.job))
            self._job.send_signal(signal.SIGTERM)
            self._await_end(ASKED_SECONDS)
        for line in (*self._lines.values(), *self._strangers):
            line.connection.close()
        self._stack.close()
        remove_leftovers(self._mapped)

    def meet(self) -> None:
        """Waits until all ranks have connected.

        Raises:
            GroupLost: one ended or failed before, or took too long.
        """
        deadline = time.monotonic() + max(START_SECONDS, self.contender.start_seconds)
        while len(self._lines) < self.ranks:
            self._progress(deadline, "has not started")
            for line in list(self._strangers):
                for hello in line.answers():
                    if not self._is_ours(line, hello):
                        continue
                    if "failed" in hello:
                        raise self._loss(hello["failed"])
                    self._strangers.remove(line)
                    self._lines[hello["rank"]] = line
                    self.description = self.description or hello["description"]
                    self.bound[hello["rank"]] = hello["cores"]

        assert self._job is not None
        self._mapped |= mapped_files(job_members(self._job.job))

    def ask(self, do: str, key: int, **words: Any) -> list[Answer]:
        """Asks all ranks the same and returns their answers, by rank.

        Raises:
            CaseRefused: all of them refused it, or failed likewise.
            GroupLost: the group can go on no more.
        """
        request = json.dumps({"do": do, "key": key, **words}).encode() + b"\n"
        for rank in range(self.ranks):
            try:
                self._lines[rank].connection.sendall(request)
            except OSError as error:
                raise self._loss(f"rank {rank} does not listen: {error.strerror}") from None
        answers: dict[int, Answer] = {}
        deadline = time.monotonic() + ANSWER_SECONDS
        while len(answers) < self.ranks:
            self._progress(deadline, f"has not answered {do!r}", answers)
            for rank, line in self._lines.items():
                for answer in line.answers():
                    answers[rank] = answer
                    if "failed" in answer or "refused" in answer:
                        deadline = min(deadline, time.monotonic() + OTHERS_SECONDS)
        for kind in ("refused", "failed"):
            texts = [answer[kind] for answer in answers.values() if kind in answer]
            if len(texts) == self.ranks:
                raise CaseRefused(texts[0])
            if texts:
                raise self._loss(f"not all ranks agree: {texts[0]}")
        return [answers[rank] for rank in range(self.ranks)]

    def _commands(self, identity: JobIdentity, address: str) -> list[RankCommand]:
        contender = self.contender
        base = {**os.environ, **contender.environment}
        options = {
            "address": address,
            "library": contender.library,
            "cores": [list(cores) for cores in self._cores],
            "threads": self._threads,
            "cache_bytes": self._cache_bytes,
            "timeout": ANSWER_SECONDS,
            "settings": dict(contender.settings),
            **contender.options,
        }
        command = contender.command(self.ranks, json.dumps(options))
        if contender.mpiexec:  # starts the ranks itself, each of which takes its own cores
            environment = rank_environment(0, identity, base, self._threads)
            for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
                environment.pop(name, None)
            return [RankCommand(command=command, environment=environment)]
        return [
            RankCommand(
                command=command,
                environment={
                    **rank_environment(rank, identity, base, self._threads),
                    "LOCAL_SIZE": str(self.ranks),  # what DeepSpeed asks for
                },
                cores=self._cores[rank],
                inherited=contender.inherited,
            )
            for rank in range(self.ranks)
        ]

    def _progress(
        self, deadline: float, what: str, answers: dict[int, Answer] | None = None
    ) -> None:
        """Waits for something to happen, and takes note of it."""
        assert self._job is not None
        left = deadline - time.monotonic()
        if left <= 0:
            late = [rank for rank in range(self.ranks) if rank not in (answers or self._lines)]
            raise self._loss(f"rank {', '.join(map(str, late))} {what} in time")
        for event in self._job.events(min(left, 1.0)):
            if isinstance(event, Output):
                self._said += event.data.decode(errors="replace").splitlines()
            elif isinstance(event, Ended):
                raise self._loss(f"{self._who(event.rank)} has ended: {ending(event.code)}")
        with suppress(BlockingIOError):
            while True:
                self._admit(self._server.accept()[0])

    def _admit(self, connection: socket.socket) -> None:
        """Takes a connection of our own user's, nobody else's; over a network the token tells."""
        if self._places is None:
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            if int.from_bytes(credentials[4:8], "little") != os.getuid():
                connection.close()
                return
        connection.setblocking(False)
        assert self._job is not None
        self._job.watch_descriptor(connection.fileno())
        self._strangers.append(_Line(connection, is_known=self._places is None))

    def _is_ours(self, line: _Line, said: Answer) -> bool:
        """Whether it is a rank that says something, and not that it is one."""
        if line.is_known:
            return True
        assert self._places is not None
        line.is_known = secrets.compare_digest(str(said.get("token")), self._places.token)
        if not line.is_known:
            self._strangers.remove(line)
            line.connection.close()
        return False

    def _who(self, rank: int) -> str:
        return "mpiexec" if self.contender.mpiexec else f"rank {rank}"

    def _loss(self, text: str) -> GroupLost:
        self._lost = text
        assert self._job is not None
        for event in self._job.events(0):
            if isinstance(event, Output):
                self._said += event.data.decode(errors="replace").splitlines()
        last = [line for line in self._said if line.strip()]
        return GroupLost("\n    ".join([text, *last]))

    def _leave(self) -> None:
        """Lets the ranks end by themselves, for a moment."""
        assert self._job is not None
        for line in self._lines.values():
            with suppress(OSError):
                line.connection.sendall(b'{"do": "leave"}\n')
                line.connection.shutdown(socket.SHUT_WR)
        self._await_end(LEAVE_SECONDS)

    def _await_end(self, seconds: float) -> None:
        assert self._job is not None
        deadline = time.monotonic() + seconds
        while self._job.running and (left := deadline - time.monotonic()) > 0:
            self._job.events(left)
            time.sleep(0.01)  # a closed socket is always readable, and would wake us all the time
