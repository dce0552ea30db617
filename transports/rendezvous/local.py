"""The rendezvous of the ranks of one host, over a Unix socket without a name in any file system.

Rank 0 listens on an abstract address made from the job's id. Every other rank connects, both
sides check that the other runs under the same user and knows the job's secret, and rank 0 hands
out who is there, the settings of the job, and the descriptor of the memory they will share:

    other rank                       rank 0
        <- challenge
        hello, proof, challenge ->
                                     ... waits for all of them, compares what they say
        <- welcome, proof, descriptor    (or a refusal, the same for everyone)
        ready ->                     ... everyone can now watch everyone else's process
        <- go
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from transports.errors import CollectiveTimeout, MismatchError, PeerLostError
from transports.rendezvous.awaiting import GRACE_SECONDS, Look, Waiting, address
from transports.rendezvous.door import Door
from transports.rendezvous.notes import (
    hear,
    hear_descriptor,
    hear_rank_zero,
    is_proof,
    proof_of,
    say,
    user_of,
)
from transports.telling import listed
from transports.undisturbed import undisturbed

_RETRY_SECONDS = (0.001, 0.05)  # between attempts to connect: at first, and at most


@dataclass(frozen=True, kw_only=True)
class Introduction:
    """What a rank says of itself.

    Attributes:
        rank: its rank.
        size: how many ranks it expects.
        pid: its process.
        host: its host's name, for messages.
        host_id: the identity of its host; equal means the same host.
        version: the version of this package that it runs.
        cores: the cores it may run on.
        machine: the machine that these are of, which may play several hosts.
        pid_namespace: where its pid means something.
        stack_signal: asks it for its Python stack (see `transports.stacks`); 0 if none does.
        stack_descriptor: where it then stands, a file descriptor of its own.
        stack_file: which file that is.
    """

    rank: int
    size: int
    pid: int
    host: str
    host_id: str
    version: str
    cores: tuple[int, ...] = ()
    machine: str = ""
    pid_namespace: int = 0
    stack_signal: int = 0
    stack_descriptor: int = -1
    stack_file: str = ""


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """What every rank knows after the rendezvous.

    Attributes:
        ranks: the introduction of every rank, in order.
        settings: rank 0's settings, for all.
        descriptor: the file descriptor of the shared memory.
        pidfds: a descriptor that watches each rank's process, -1 for this process.

    A context manager, at whose end, or when nobody knows it any more, the descriptors are closed;
    the pidfds only if nobody has taken them.
    """

    ranks: tuple[Introduction, ...]
    settings: dict[str, Any]
    descriptor: int
    pidfds: list[int] = field(default_factory=list)
    _open: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close what is open still; closing twice does nothing."""
        with undisturbed():
            self._open.close()

    def take_pidfds(self) -> None:
        """From now on they are the caller's to close."""
        with undisturbed():
            self._open.pop_all()
            self._open.callback(os.close, self.descriptor)


Offer = Callable[[tuple[Introduction, ...]], int]
"""Makes the shared memory once everyone is there; returns its descriptor."""


def meet(
    me: Introduction,
    *,
    job: str,
    secret: str,
    settings: dict[str, Any],
    offer: Offer,
    timeout: float,
    look: Look = lambda: None,
    silence: float = 0,
) -> Meeting:
    """Meet all ranks of the job.

    Args:
        me: this rank.
        job: the id of the job, the same on every rank and on no other job of this host.
        secret: what only the job's ranks know.
        settings: rank 0's are handed to all; those of other ranks are not used.
        offer: called on rank 0 to make the shared memory.
        timeout: seconds to wait for the others.
        look: called now and then while this rank waits for others to come; what it raises ends the
            waiting.
        silence: seconds after which a rank that waits says for whom, on stderr; 0: it never does.

    Raises:
        CollectiveTimeout: some ranks did not come; the text names them.
        MismatchError: the ranks do not fit together.
        PeerLostError: a rank ended during the rendezvous.
        PermissionError: the other side runs under another user or does not know the secret.
        OSError: the shared memory cannot be had.
    """
    with Waiting(job, timeout, look, silence) as waiting:
        if me.rank == 0:
            return _receive_everyone(me, job, secret, settings, offer, waiting)
        return _report_to_rank_zero(me, job, secret, waiting)


# --- rank 0


def _receive_everyone(
    me: Introduction,
    job: str,
    secret: str,
    settings: dict[str, Any],
    offer: Offer,
    waiting: Waiting,
) -> Meeting:
    with Door(secret, waiting) as door, contextlib.ExitStack() as held:
        guests = _let_in(me, job, door, waiting)
        ranks = (me, *(guests[rank].introduction for rank in sorted(guests)))
        try:
            with undisturbed():
                descriptor = offer(ranks)
                held.callback(os.close, descriptor)
        except (OSError, MemoryError) as error:
            door.refuse(MismatchError(f"rank 0 has no shared memory: {error}"))
            raise
        welcome = {"ranks": [asdict(rank) for rank in ranks], "settings": settings}
        for rank, guest in guests.items():
            with _losing(rank, waiting):
                proof = proof_of(secret, "rank 0", guest.challenge)
                say(guest.connection, {**welcome, "proof": proof})
                socket.send_fds(guest.connection, [b"d"], [descriptor])
        with undisturbed():
            pidfds = _watch(ranks, me)
            held.callback(_close_all, pidfds)
        for rank, guest in guests.items():
            text = f"rank 0 has waited {{}} s for rank {rank} to answer in the rendezvous"
            with _losing(rank, waiting):
                waiting.until_readable(guest.connection, text)
                hear(guest.connection, "ready")
        # Who has heard this may leave those it came from: nothing else is looked at from here on.
        for rank, guest in guests.items():
            with _losing(rank, waiting):
                say(guest.connection, {"go": True})
        with undisturbed():
            return Meeting(
                ranks=ranks, settings=settings, descriptor=descriptor, pidfds=pidfds,
                _open=held.pop_all(),
            )  # fmt: skip


@dataclass(frozen=True)
class _Guest:
    introduction: Introduction
    connection: socket.socket
    challenge: str


def _let_in(me: Introduction, job: str, door: Door, waiting: Waiting) -> dict[int, _Guest]:
    guests: dict[int, _Guest] = {}
    if me.size > 1:
        try:
            door.open(address(job), me.size)
        except OSError as error:
            raise MismatchError(
                f"another rank 0 of job {job!r} is already waiting on this host ({error})"
            ) from None
    while len(guests) < me.size - 1:
        missing = listed([rank for rank in range(1, me.size) if rank not in guests])
        found = door.next_hello(
            f"rank 0 has waited {{}} s for {missing} of {me.size} to come to the rendezvous"
        )
        if found is None:
            raise CollectiveTimeout(
                f"{missing} of {me.size} did not come to the rendezvous in {waiting.timeout:g} s"
            )
        connection, note = found
        try:
            guest = _Guest(introduced(note["hello"]), connection, str(note["challenge"]))
        except (KeyError, TypeError, ValueError):
            door.turn_away(connection)
            continue
        if problem := _problem_with(guest.introduction, me, guests):
            raise MismatchError(problem)
        guests[guest.introduction.rank] = guest
    door.shut()  # whoever comes now belongs to another rendezvous
    return guests


def introduced(said: dict[str, Any]) -> Introduction:
    """The introduction that `asdict` has made a note of, by this version or another."""
    # Another version of this package may say more or less of itself; that is told by its version.
    unsaid = Introduction(rank=0, size=0, pid=0, host="?", host_id="", version="?")
    fields = {name: said.get(name, default) for name, default in asdict(unsaid).items()}
    fields["cores"] = tuple(fields["cores"])
    return Introduction(**fields)


def _problem_with(hello: Introduction, me: Introduction, guests: dict[int, _Guest]) -> str | None:
    """Why `hello` cannot be a rank of this job, or None."""
    who = f"rank {hello.rank} (pid {hello.pid} on {hello.host})"
    if hello.version != me.version:
        return f"{who} runs version {hello.version} of this package, rank 0 runs {me.version}"
    if hello.size != me.size:
        return f"{who} expects {hello.size} ranks, rank 0 expects {me.size}"
    if not 0 < hello.rank < me.size:
        return f"{who}: expected a rank in 1..{me.size - 1}, found {hello.rank}"
    if hello.rank in guests:
        return (
            f"{who} and pid {guests[hello.rank].introduction.pid} both say that they are that rank"
        )
    if hello.host_id != me.host_id:
        return f"{who} is on another host than rank 0; shared memory ends at the host"
    return None


# --- every other rank


def _report_to_rank_zero(me: Introduction, job: str, secret: str, waiting: Waiting) -> Meeting:
    with _connect(job, me.rank, waiting) as connection, contextlib.ExitStack() as held:
        if user_of(connection) != os.getuid():
            raise PermissionError(f"rank 0 of job {job!r} runs under another user")
        waiting.has_met_rank_zero()
        # The deadline is rank 0's to declare, since it knows who is missing. It answers a hello
        # only when all are there; until then what else may end the meeting is looked at here, too.
        connection.settimeout(max(0.001, waiting.left) + GRACE_SECONDS)
        text = (
            f"rank {me.rank}, and maybe others, have waited {{}} s in the rendezvous for rank 0, "
            "which is there and says nothing"
        )
        with _losing(0, waiting):
            waiting.until_readable(connection, text, GRACE_SECONDS)
            challenge = secrets.token_hex(16)
            asked = str(hear_rank_zero(connection, "challenge")["challenge"])
            proof = proof_of(secret, "rank", asked)
            hello = {"hello": asdict(me), "proof": proof, "challenge": challenge}
            with contextlib.suppress(BrokenPipeError):  # what is to be heard says why
                say(connection, hello)
            waiting.until_readable(connection, text, GRACE_SECONDS)
            welcome = hear_rank_zero(connection, "ranks")
            if not is_proof(welcome.get("proof"), secret, "rank 0", challenge):
                raise PermissionError(f"rank 0 of job {job!r} does not know the job's secret")
            waiting.until_readable(connection, text, GRACE_SECONDS)
            with undisturbed():
                descriptor = hear_descriptor(connection)
                held.callback(os.close, descriptor)
        ranks = tuple(introduced(each) for each in welcome["ranks"])
        with undisturbed():
            pidfds = _watch(ranks, me)
            held.callback(_close_all, pidfds)
        with _losing(0, waiting):
            say(connection, {"ready": True})
            hear_rank_zero(connection, "go")
        with undisturbed():
            return Meeting(
                ranks=ranks, settings=welcome["settings"], descriptor=descriptor, pidfds=pidfds,
                _open=held.pop_all(),
            )  # fmt: skip


def _connect(job: str, rank: int, waiting: Waiting) -> socket.socket:
    pause, longest = _RETRY_SECONDS
    while True:
        waiting.look(
            f"rank {rank}, and maybe others, have waited {{}} s for rank 0 to come "
            "to the rendezvous"
        )
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(1.0)  # a full backlog is refused, not waited for
        try:
            connection.connect(address(job))
        except (ConnectionRefusedError, FileNotFoundError, BlockingIOError):
            connection.close()
        except BaseException:
            connection.close()
            raise
        else:
            return connection
        if waiting.left < pause:
            raise CollectiveTimeout(
                f"rank 0 did not come to the rendezvous in {waiting.timeout:g} s"
            )
        time.sleep(pause)
        pause = min(2 * pause, longest)


# --- both


def _close_all(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        if descriptor >= 0:
            os.close(descriptor)


def _watch(ranks: tuple[Introduction, ...], me: Introduction) -> list[int]:
    """A pidfd for every other process; made while all are in the rendezvous, so never reused.

    A number means something only in its own pid namespace: ranks of others are the launcher's to
    watch, and so are all where the kernel refuses.
    """
    found = []
    for rank in ranks:
        mine = rank.pid == me.pid or rank.pid_namespace != me.pid_namespace
        try:
            found.append(-1 if mine else os.pidfd_open(rank.pid))
        except OSError:
            found.append(-1)
    return found


@contextlib.contextmanager
def _losing(rank: int, waiting: Waiting) -> Iterator[None]:
    """Turn a broken connection into the loss of `rank`."""
    try:
        yield
    except (ConnectionError, EOFError, ValueError) as error:
        raise PeerLostError(f"rank {rank} ended during the rendezvous ({error})") from None
    except CollectiveTimeout:  # what is looked at meanwhile has ended it
        raise
    except TimeoutError:
        raise CollectiveTimeout(
            f"rank {rank} did not answer in the rendezvous in {waiting.timeout:g} s"
        ) from None
