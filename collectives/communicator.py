"""A communicator: a group of ranks that call collectives together."""

from __future__ import annotations

import operator
import os
import secrets
import socket
import time
import traceback
import weakref
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

from collectives import settings
from collectives.arguments import check_timeout
from collectives.calls import Calls
from collectives.cost.work import Room
from collectives.descent import Descent
from collectives.faults import Fault, FaultyEngine
from collectives.hosts import Hosts
from collectives.process import look_after, not_the_rank
from collectives.schedule import Algorithm
from collectives.selection import SelectionTable, hosts_table
from collectives.version import __version__
from collectives.work import WorkQueue
from transports import _native
from transports.cuda_ipc.device import Device
from transports.errors import AbortedError, CollectiveError, CollectiveTimeout, PeerLostError
from transports.mpi.connection import Group, connect_over_hosts
from transports.rendezvous.awaiting import Look
from transports.rendezvous.identity import host_identity, machine_identity, pid_namespace
from transports.rendezvous.local import Introduction
from transports.shm.connection import Geometry, connect
from transports.silence import QUEUE
from transports.stacks import be_ready_for
from transports.undisturbed import undisturbed

_LONGEST_TRACEBACK = 3000  # characters, of at most 4 bytes, that every rank can be told


class Communicator(Hosts):
    """A group of ranks; made by `collectives.init` and by `split`.

    Calls may come from any thread, but two collectives at once are an error: ranks must call
    collectives in the same order. Use it as a context manager: a block that is left by an
    exception tells the other ranks, whose calls then raise AbortedError with its traceback; so does
    an exception that ends the script.

    Attributes:
        rank: this process's rank, 0..size-1.
        size: number of ranks.
        hosts: `hosts[r]` is the index of the host of rank r.
        transport: how the ranks are connected: "shm", or "cuda_ipc" where their devices are, too,
            from the beginning; "mpi" where there are several hosts.
        timeout: seconds that a wait may take.
    """

    def __init__(
        self,
        *,
        rank: int,
        size: int,
        job: str,
        secret: str,
        geometry: Geometry,
        table: SelectionTable,
        timeout: float,
        host_id: str | None = None,
        look: Look = lambda: None,
        faults: Sequence[Fault] = (),
        descent: Descent | None = None,
        devices: bool = True,
        device: Device | None = None,
        group: Group | None = None,
    ) -> None:
        """Meet the other ranks; rank 0's geometry and table count. For `init`, `split`, `shrink`.

        `look` is called while it waits for them; what it raises ends the waiting. `faults` are
        those that this rank is to meet; `descent` is what it was before it was shrunk; `devices`:
        whether calls may have arrays on devices; `device` is connected to the others' at once.
        With a `group` the ranks may be on several hosts, and its rank 0 makes up job and secret.
        """
        self._silence = settings.silence_seconds()
        # Given back by close(), or with this object.
        ready, self._ready_to_be_asked = be_ready_for(self)
        me = Introduction(
            rank=rank,
            size=size,
            pid=os.getpid(),
            host=socket.gethostname(),
            host_id=host_identity(host_id),
            version=__version__,
            cores=tuple(sorted(os.sched_getaffinity(0))),
            pid_namespace=pid_namespace(),
            stack_signal=ready.signal,
            stack_descriptor=ready.descriptor,
            stack_file=ready.file,
            machine=machine_identity(),
        )
        common: dict[str, Any] = {
            "geometry": geometry,
            "settings": {
                "table": table.as_settings(),
                "lend": settings.lend(),
                "seal": secrets.randbits(64),
            },
            "timeout": timeout,
            "look": look,
            "silence": self._silence,
        }
        if group is None:
            connection = connect(me, job=job, secret=secret, **common)
        else:
            connection = connect_over_hosts(me, group, **common)
        self._me = me
        self.rank = rank
        self.size = size
        self.hosts = connection.hosts
        self._carrier = connection.carrier
        if group is not None and group.number is None:
            group = replace(group, number=group.world.numbers)  # that they have agreed on
        self._group = group
        self._mpi_calls = None
        self.transport = "shm" if device is None else "cuda_ipc"
        if self._carrier is not None:
            self.transport = "mpi"
        self._job = connection.job
        self._descent = descent or Descent(connection.job, tuple(range(size)))
        self._secret = connection.secret
        self._geometry = geometry
        self._host_id = host_id
        self._splits = 0
        self._by_host: dict[str, Communicator] = {}
        # What stands for an engine is one to all who use it.
        self._engine: _native.Engine = (
            FaultyEngine(connection.engine, faults) if faults else connection.engine  # type: ignore[assignment]
        )
        connection.engine.far_ns = settings.far_ns(connection.engine.far_ns)
        connection.engine.lend = connection.settings["lend"]
        connection.engine.set_seal(connection.settings["seal"])
        self._parts = {}
        self._begin_symmetric()
        self._begin_on_devices(devices)
        self._point_to_point = _native.PointToPoint(connection.engine)
        self.timeout = timeout
        cores = {core for each in connection.ranks for core in each.cores}
        self._room = Room(
            slots=connection.engine.slots,
            slot_bytes=connection.engine.slot_bytes,
            depth=connection.engine.depth,
            cores=len(cores),
        )
        self._queue = WorkQueue(
            f"{QUEUE}-{job}-{rank}",
            connection.engine.queue,
            connection.engine.wait_in_queue,
            connection.engine.tell_of_trouble,
        )
        self._table = (
            hosts_table()
            if self._carrier
            else SelectionTable.from_settings(connection.settings["table"])
        )
        self._ready: dict[Any, _native.Call] = {}
        self._told = {}
        self._proved: dict[tuple[Algorithm, int], str] = {}
        # Weak: else a closed communicator would live, and hold its memory, until a collection.
        weak = weakref.ref(self)

        def prove(algo: Algorithm, root: int) -> str:
            myself = weak()
            assert myself is not None, "a call outlives its communicator"
            return myself._prove_once(algo, root)

        self._calls = Calls(
            rank, size, self.hosts, self._table, self._room, settings.cache_bytes(), prove,
            None if self._carrier else settings.least_reaching(connection.settings["lend"]),
        )  # fmt: skip
        look_after(self)
        if device is not None:
            self._connect_at_once(device)

    def __repr__(self) -> str:
        state = ", closed" if self._engine.closed else ""
        return f"<Communicator rank {self.rank} of {self.size} over {self.transport}{state}>"

    def __enter__(self) -> Communicator:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        leaves = isinstance(error, SystemExit) and error.code in (None, 0)
        if error is None:
            self.close()
            return
        try:
            if not leaves:
                self.abort(error)
            else:
                self._finish_devices()  # what others need of it ends with the process
        finally:
            self._close()  # what else there is to say must not stand in its place

    def abort(self, error: BaseException) -> None:
        """Tell the other ranks that this one gives up; their calls raise AbortedError.

        Args:
            error: why; its traceback is what they will show.
        """
        if self._engine.closed:
            return
        what = f"rank {self.rank} raised {type(error).__name__}"
        try:
            text = "".join(traceback.format_exception(error))
            if len(text) > _LONGEST_TRACEBACK:  # its end says what happened, its begin where
                half = _LONGEST_TRACEBACK // 2
                text = f"{text[:half]}\n[... cut ...]\n{text[-half:]}"
            self._engine.abort(f"{what}:\n{text}")
        except BaseException:  # a second one, as of Ctrl-C pressed twice: the others are to hear
            self._engine.abort(what)  # does nothing if they have
            raise

    def close(self) -> None:
        """Leave the group. Local: waits for nobody; closing twice does nothing.

        What is under way ends with an error. Later calls raise CollectiveError; those of other
        ranks that need this one raise PeerLostError.

        Raises:
            MismatchError: a call of this rank that has returned did not fit those of others. The
                communicator is closed all the same.
        """
        try:
            self._finish_devices()
            if self._queue.idle:
                self._engine.check_complete()
        finally:
            self._close()

    def _close(self) -> None:
        parts = (
            self._close_devices, self._queue.close, self._point_to_point.close, self._engine.close,
            self._close_by_host, self._close_carrier, self._be_ready_no_more,
        )  # fmt: skip
        try:
            for close in parts:
                close()
        except BaseException:  # of a signal handler: nobody closes again what was left
            for close in parts:
                close()
            raise

    def _close_carrier(self) -> None:
        self._mpi_calls = None
        if self._carrier is not None:
            self._carrier.close()

    def _be_ready_no_more(self) -> None:
        with undisturbed():  # it can be done once only: begun and not ended, never
            self._ready_to_be_asked()

    def split(self, color: int | None, key: int = 0) -> Communicator | None:
        """Make a communicator of the ranks that give the same color.

        Every rank of this communicator must call it.

        Args:
            color: which group; None is none.
            key: orders the ranks of a group; ties are ordered by the rank here.

        Returns:
            The communicator of this rank's group, or None for color None.

        Raises:
            TypeError: color or key is no integer.
        """
        if color is not None:
            color = _whole_number(color, "color")
        key = _whole_number(key, "key")
        with self._calling("split"):
            everyone: list[tuple[int | None, int, int]] = self.allgather_object(
                (color, key, 0 if self._group is None else self._group.world.numbers)
            )
        self._splits += 1
        if color is None:
            return None
        members = sorted(
            (other_key, rank)
            for rank, (other, other_key, _) in enumerate(everyone)
            if other == color
        )
        ranks = tuple(rank for _, rank in members)
        with self._meeting(ranks) as look:
            half = Communicator(
                rank=members.index((key, self.rank)),
                size=len(members),
                job=f"{self._job}/{self._splits}.{min(ranks)}",
                secret=self._secret,
                geometry=self._geometry,
                table=self._table,
                timeout=self.timeout,
                host_id=self._host_id,
                look=look,
                devices=self._carries_devices,
                device=self._own_device(),
                group=self._group_of(ranks, 1 + max(numbers for *_, numbers in everyone)),
            )
        self._share_with(half, ranks)
        return half

    def _group_of(self, ranks: tuple[int, ...], number: int) -> Group | None:
        """Of some of the ranks, by MPI; None: shared memory is all they need."""
        if self._group is None:
            return None
        self._group.world.numbers = max(self._group.world.numbers, number)
        if len({self.hosts[rank] for rank in ranks}) == 1:
            return None
        members = tuple(self._group.members[rank] for rank in ranks)
        return Group(self._group.world, members, number)

    def shrink(self, *, timeout: float | None = None) -> Communicator:
        """Make a communicator of the ranks that are left, after a peer was lost or a call failed.

        Every rank that lives must call it, and has then the same ranks around it, in their old
        order; those that have ended or closed this communicator are not waited for. Whoever of
        them ends meanwhile is left out too. This communicator stays as it is: close it.

        Args:
            timeout: seconds that it may take; by default the communicator's.

        Raises:
            CollectiveTimeout: a rank that lives did not come; the text names it.
            CollectiveError: this communicator is closed, or of several hosts, or this process is a
                forked child.
        """
        if os.getpid() != self._me.pid:
            raise CollectiveError(not_the_rank(self.rank))
        if self._engine.closed:
            raise CollectiveError("the communicator is closed")
        if self._carrier is not None:
            raise CollectiveError(
                "shrink: the ranks are on several hosts, and MPI ends the job with the first that "
                "is lost; expected ranks on one host"
            )
        seconds = self.timeout if timeout is None else check_timeout(timeout)
        deadline = time.monotonic() + seconds
        self._forgive_devices()
        while True:
            left = [rank for rank in range(self.size) if not self._engine.has_gone(rank)]
            descent = self._descent.of(left)
            try:
                found = Communicator(
                    rank=left.index(self.rank),
                    size=len(left),
                    job=descent.meeting,
                    secret=self._secret,
                    geometry=self._geometry,
                    table=self._table,
                    timeout=max(0.001, deadline - time.monotonic()),
                    host_id=self._host_id,
                    look=lambda: self._look_at(left),  # noqa: B023 - called in this turn only
                    descent=descent,
                    devices=self._carries_devices,
                )
            except (PeerLostError, AbortedError):
                continue  # one less, or who led the meeting was interrupted in it
            except CollectiveTimeout as error:
                text = f"shrink: {error}; these ranks, counted anew, were {str(left)[1:-1]} before"
                raise CollectiveTimeout(text) from None
            found.timeout = self.timeout
            self._engine.move()  # those that were not told to go on must not take it for gone
            return found

    def _look_at(self, ranks: Sequence[int]) -> None:
        for rank in ranks:
            if self._engine.has_gone(rank):
                raise PeerLostError(f"rank {rank} has ended")


def _whole_number(value: int, name: str) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, found {value!r}") from None
