"""Everything that is read from the environment, in one place; the rest is passed as values."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path

from collectives.under_mpi import place_under_mpi
from transports.caches import usable_cache_bytes
from transports.shm.connection import Geometry


@dataclass(frozen=True, kw_only=True)
class Place:
    """Which rank of which job this process is.

    Attributes:
        rank: this rank.
        size: number of ranks.
        local_size: ranks on this host.
        job: the id under which the ranks of this job meet.
        secret: what only they know.
        launcher: who said so, for messages.
    """

    rank: int = 0
    size: int = 1
    local_size: int = 1
    job: str = ""
    secret: str = ""
    launcher: str = "none"


_SLOT_OF_A_HOST, _SLOT_BETWEEN_HOSTS = 32 << 20, 4 << 20  # bytes of a slot on a device
_MOST_BYTES = 1 << 30  # what the engine takes for a slot
_MOST_SLOTS = 1 << 23  # and for their number; so that all ranks' together can be counted
_MOST_CACHE = (1 << 63) - 1
_MOST_FAR_NS = (1 << 32) - 1


def _whole(
    environment: Mapping[str, str],
    name: str,
    least: int,
    default: int | None = None,
    most: int | None = None,
) -> int:
    text = environment.get(name)
    if text is None:
        if default is None:
            raise ValueError(f"the environment has no {name}, but other variables of a launcher")
        return default
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, found {text!r}")
    if most is not None and value > most:
        raise ValueError(f"{name} must be at most {most}, found {value}")
    return value


def place_in_job(environment: Mapping[str, str] | None = None) -> Place:
    """Read who we are from the variables that our launcher, torchrun, mpiexec and srun set.

    Raises:
        ValueError: a variable is missing or makes no sense.
    """
    environment = os.environ if environment is None else environment
    under_mpi = environment.get("COLLECTIVES_MPI_JOB", "")  # of another job than ours, an outer one
    if under_mpi and under_mpi == environment.get("COLLECTIVES_JOB"):
        place = _place_under_mpi(environment) or Place(job=f"alone-{os.getpid()}")
        return replace(place, secret=environment.get("COLLECTIVES_SECRET", ""))
    if "RANK" not in environment and "WORLD_SIZE" not in environment:
        return _place_under_mpi(environment) or Place(job=f"alone-{os.getpid()}")
    size = _whole(environment, "WORLD_SIZE", 1)
    rank = _whole(environment, "RANK", 0)
    if rank >= size:
        raise ValueError(f"RANK must be below WORLD_SIZE = {size}, found {rank}")
    local_size = _whole(environment, "LOCAL_WORLD_SIZE", 1, default=size)
    job = environment.get("COLLECTIVES_JOB")
    if job:
        secret = environment.get("COLLECTIVES_SECRET", "")
        return Place(rank=rank, size=size, local_size=local_size, job=job, secret=secret,
                     launcher="collectives")  # fmt: skip
    # torchrun, or whoever sets its variables: what all its ranks share, and no other job does.
    names = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT")
    shared = [environment.get(name, "") for name in names]
    if not any(shared) and size > 1:
        raise ValueError(
            f"RANK and WORLD_SIZE = {size} are set, but neither COLLECTIVES_JOB nor any of "
            f"{', '.join(names)}: the ranks have nothing to find each other by"
        )
    return Place(rank=rank, size=size, local_size=local_size, job="/".join(["torchrun", *shared]),
                 launcher="torchrun")  # fmt: skip


def _place_under_mpi(environment: Mapping[str, str]) -> Place | None:
    found = place_under_mpi(environment)
    if found is None or found.size == 1:
        return None
    return Place(rank=found.rank, size=found.size, local_size=found.local_size, job=found.job,
                 launcher="mpiexec")  # fmt: skip


def host_id_override(environment: Mapping[str, str] | None = None) -> str | None:
    """The host identity that the user sets, if any."""
    return (os.environ if environment is None else environment).get("COLLECTIVES_HOST_ID") or None


def geometry(
    environment: Mapping[str, str] | None = None, *, several_hosts: bool = False
) -> Geometry:
    """The channels' memory: COLLECTIVES_SLOTS, COLLECTIVES_SLOT_BYTES and so on override it.

    With `several_hosts` there are more slots, since a message holds its own for longer, and longer
    ones, since each takes two messages of MPI.

    Raises:
        ValueError: a value is no integer, or not one that an engine can use.
    """
    environment = os.environ if environment is None else environment
    found = Geometry(slots=16, slot_bytes=1 << 19) if several_hosts else Geometry()
    for each in fields(Geometry):
        name = f"COLLECTIVES_{each.name.upper()}"
        least, most = (64, _MOST_BYTES) if each.name.endswith("_bytes") else (2, _MOST_SLOTS)
        default: int = getattr(found, each.name)
        value = _whole(environment, name, least, default, most)
        if each.name.endswith("_bytes") and value % 64:
            raise ValueError(f"{name} must be a multiple of 64, found {value}")
        if each.name in ("slots", "depth") and value & (value - 1):
            raise ValueError(f"{name} must be a power of two, found {value}")
        found = replace(found, **{each.name: value})
    return found


def device_slots(
    several_hosts: bool = False, environment: Mapping[str, str] | None = None
) -> tuple[int, int]:
    """Slots of a rank's outbox on its device, and their bytes.

    COLLECTIVES_DEVICE_SLOTS and COLLECTIVES_DEVICE_SLOT_BYTES override them; rank 0's count. Where
    ranks are on several hosts slots are shorter, so that a message's parts follow each other over
    the wire and through the memory of both hosts.

    Raises:
        ValueError: a value is no integer, or not one that an engine can use.
    """
    environment = os.environ if environment is None else environment
    slots = _whole(environment, "COLLECTIVES_DEVICE_SLOTS", 2, 4, 64)
    usual = _SLOT_BETWEEN_HOSTS if several_hosts else _SLOT_OF_A_HOST
    most = (1 << 31) - 64 if several_hosts else 1 << 34  # what any MPI counts
    size = _whole(environment, "COLLECTIVES_DEVICE_SLOT_BYTES", 64, usual, most)
    if size % 64:
        raise ValueError(f"COLLECTIVES_DEVICE_SLOT_BYTES must be a multiple of 64, found {size}")
    return slots, size


def mpi_reaches_devices(environment: Mapping[str, str] | None = None) -> bool:
    """Whether MPI is to send from and receive in memory of devices by itself, on every rank.

    COLLECTIVES_MPI_REACHES_DEVICES is 1 or 0. A library that says it can is not believed without:
    a stream that waits already must see what a network card writes to its device.

    Raises:
        ValueError: it is neither.
    """
    environment = os.environ if environment is None else environment
    told = environment.get("COLLECTIVES_MPI_REACHES_DEVICES", "0")
    if told not in ("0", "1"):
        raise ValueError(f"COLLECTIVES_MPI_REACHES_DEVICES must be 0 or 1, found {told!r}")
    return told == "1"


def local_rank(environment: Mapping[str, str] | None = None) -> int:
    """This rank's number on its host, LOCAL_RANK."""
    environment = os.environ if environment is None else environment
    return _whole(environment, "LOCAL_RANK", 0, 0, 1 << 20)


def emulates_devices(environment: Mapping[str, str] | None = None) -> bool:
    """Whether COLLECTIVES_EMULATED_DEVICES asks for devices that are not there."""
    environment = os.environ if environment is None else environment
    return bool(environment.get("COLLECTIVES_EMULATED_DEVICES"))


def cache_bytes(environment: Mapping[str, str] | None = None) -> int:
    """What of the last-level cache is this machine's: COLLECTIVES_CACHE_BYTES overrides it.

    Arrays that do not fit in it are written past it.

    Raises:
        ValueError: the value is no integer, negative, or more than can be counted.
    """
    environment = os.environ if environment is None else environment
    return _whole(environment, "COLLECTIVES_CACHE_BYTES", 0, _system_cache_bytes(), _MOST_CACHE)


@cache
def _system_cache_bytes() -> int:
    """Read from the system once, not for every communicator."""
    return usable_cache_bytes()


def far_ns(default: int, environment: Mapping[str, str] | None = None) -> int:
    """From how many nanoseconds on a peer is far: COLLECTIVES_FAR_NS overrides the engine's.

    It is what it takes to get a cache line that this rank has written. Long messages to a rank that
    is far go by way of memory.

    Raises:
        ValueError: the value is no integer, negative, or more than can be counted.
    """
    environment = os.environ if environment is None else environment
    return _whole(environment, "COLLECTIVES_FAR_NS", 0, default, _MOST_FAR_NS)


_LEND = ("never", "auto", "always")


def lend(environment: Mapping[str, str] | None = None) -> int:
    """When the kernel copies between ranks' arrays, as the engine counts it: COLLECTIVES_LEND.

    Long messages stay in the sender's array, for the receiver to have copied, or calls run
    one-sided on arrays that lie anywhere. "auto" tries for each call which is quicker.

    Raises:
        ValueError: the value is none of never, auto, always.
    """
    environment = os.environ if environment is None else environment
    text = environment.get("COLLECTIVES_LEND", "auto")
    if text not in _LEND:
        raise ValueError(f"COLLECTIVES_LEND must be one of {', '.join(_LEND)}, found {text!r}")
    return _LEND.index(text)


_LEAST_REACHING = 64 * 1024  # bytes


def least_reaching(lend: int) -> int | None:
    """From how many bytes of the full array on a call may reach arrays anywhere; None: none may."""
    return (None, _LEAST_REACHING, 0)[lend]


def kernel_folder(environment: Mapping[str, str] | None = None) -> Path | None:
    """Where compiled kernels of devices are kept: COLLECTIVES_KERNELS; "off" is nowhere.

    By default `collectives/kernels` in the user's cache.
    """
    environment = os.environ if environment is None else environment
    named = environment.get("COLLECTIVES_KERNELS")
    if named:
        return None if named == "off" else Path(named).expanduser()
    cache = _user_cache(environment)
    return None if cache is None else cache / "collectives" / "kernels"


def _user_cache(environment: Mapping[str, str]) -> Path | None:
    cache, home = environment.get("XDG_CACHE_HOME"), environment.get("HOME")
    if not cache and not home:
        return None
    return Path(cache) if cache else Path(str(home)) / ".cache"


def silence_seconds(environment: Mapping[str, str] | None = None) -> float:
    """After how many seconds a wait is told of: COLLECTIVES_SILENCE_SECONDS; 0 is never.

    Raises:
        ValueError: the value is no number, or negative.
    """
    environment = os.environ if environment is None else environment
    text = environment.get("COLLECTIVES_SILENCE_SECONDS", "5")
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ValueError(
            f"COLLECTIVES_SILENCE_SECONDS must be a number of at least 0, found {text!r}"
        )
    return value


def injected_faults(environment: Mapping[str, str] | None = None) -> str:
    """The faults that are to happen, as `collectives.faults` reads them: COLLECTIVES_INJECT.

    None in a job that was restarted: what has failed once is to go on.
    """
    environment = os.environ if environment is None else environment
    if environment.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        return ""
    return environment.get("COLLECTIVES_INJECT", "")


def tuning_folder(environment: Mapping[str, str] | None = None) -> tuple[Path, bool] | None:
    """Where `collectives tune` leaves its files, and whether that is the very folder.

    COLLECTIVES_TUNING names the folder; "off" is none at all. By default it is a folder of this
    machine's name in `collectives` in the user's cache.
    """
    environment = os.environ if environment is None else environment
    named = environment.get("COLLECTIVES_TUNING")
    if named == "off":
        return None
    if named:
        return Path(named).expanduser(), True
    cache = _user_cache(environment)
    return None if cache is None else (cache / "collectives", False)
