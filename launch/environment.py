"""What a rank finds in its environment: all that torchrun sets, and what names our job.

The list of torchrun's variables is that of torch 2.13's local agent. TORCHELASTIC_USE_AGENT_STORE
is False since no launcher of ours holds a store: rank 0 of `init_process_group` opens it on
MASTER_PORT.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self

from launch.orphans import LAUNCHER_VARIABLE, launcher_mark
from launch.sweeping import JOB_VARIABLE

MASTER_ADDRESS = "127.0.0.1"


def _new_job() -> str:
    return secrets.token_hex(8)


def _new_secret() -> str:
    return secrets.token_hex(32)


@dataclass(frozen=True, kw_only=True)
class JobIdentity:
    """What all ranks of one job share.

    Attributes:
        ranks: how many there are.
        master_port: for what rank 0 may serve to the others.
        job: its name, which no other job has, not even the one that it is a restart of.
        secret: without it nobody joins.
        run: the name that stays through restarts; by default the job's.
        restart: how many jobs of this run there were before.
        max_restarts: how many there may be.
    """

    ranks: int
    master_port: int
    job: str = field(default_factory=_new_job)
    secret: str = field(default_factory=_new_secret, repr=False)
    run: str = ""
    restart: int = 0
    max_restarts: int = 0

    def restarted(self) -> JobIdentity:
        """Of the next job of the same run, which ranks of this one cannot join."""
        return replace(
            self,
            job=_new_job(),
            secret=_new_secret(),
            run=self.run or self.job,
            restart=self.restart + 1,
        )


@dataclass(frozen=True, kw_only=True)
class HostShare:
    """A rank's place on its host, and its host's among the hosts.

    Attributes:
        local_rank: the rank's number on its host.
        local_size: how many ranks this host has.
        host: the host's number.
        hosts: how many there are.
        master_address: where the others reach rank 0's host.
    """

    local_rank: int
    local_size: int
    host: int = 0
    hosts: int = 1
    master_address: str = MASTER_ADDRESS


class ReservedPort:
    """A free port that stays ours while the job runs, so that two jobs never get the same one.

    The socket is bound but does not listen: with SO_REUSEADDR on both sides, which torch's store
    and nearly every server set, rank 0 may bind and listen to it nevertheless.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("", 0))
        self.number: int = self._socket.getsockname()[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._socket.close()


def rank_environment(
    rank: int,
    identity: JobIdentity,
    base: Mapping[str, str],
    threads: int | None,
    share: HostShare | None = None,
) -> dict[str, str]:
    """The whole environment of one rank.

    Args:
        rank: the rank it is for.
        identity: of the job.
        base: the environment to add to: the launcher's own, or what the user asked for.
        threads: OMP_NUM_THREADS; None leaves what `base` says.
        share: its place on its host; by default all ranks are on one.
    """
    size = str(identity.ranks)
    share = share or HostShare(local_rank=rank, local_size=identity.ranks)
    variables = {
        "RANK": str(rank),
        "LOCAL_RANK": str(share.local_rank),
        "GROUP_RANK": str(share.host),
        "ROLE_RANK": str(rank),
        "ROLE_NAME": "default",
        "WORLD_SIZE": size,
        "LOCAL_WORLD_SIZE": str(share.local_size),
        "GROUP_WORLD_SIZE": str(share.hosts),
        "ROLE_WORLD_SIZE": size,
        "MASTER_ADDR": share.master_address,
        "MASTER_PORT": str(identity.master_port),
        "TORCHELASTIC_RESTART_COUNT": str(identity.restart),
        "TORCHELASTIC_MAX_RESTARTS": str(identity.max_restarts),
        "TORCHELASTIC_RUN_ID": identity.run or identity.job,
        "TORCHELASTIC_USE_AGENT_STORE": "False",
        "TORCHELASTIC_ERROR_FILE": "",  # as torchrun has it when it keeps no logs
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": base.get("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1"),
        JOB_VARIABLE: identity.job,
        LAUNCHER_VARIABLE: launcher_mark(),
        "COLLECTIVES_SECRET": identity.secret,
    }
    if threads is not None:
        variables["OMP_NUM_THREADS"] = str(threads)
    return {**base, **variables}
