"""Collectives between processes: allreduce, broadcast and their kin, as proved algorithms.

    import numpy as np, collectives

    with collectives.init() as comm:
        total = comm.allreduce(np.full(4, comm.rank, dtype=np.float32))

The names are loaded when they are first used, so importing this package is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from collectives.version import __version__

if TYPE_CHECKING:
    from collectives.communicator import Communicator
    from collectives.initialization import init
    from collectives.messages import ANY
    from collectives.proof import Certificate, ProofError, verify
    from collectives.work import Work
    from transports.errors import (
        AbortedError,
        CollectiveError,
        CollectiveTimeout,
        MismatchError,
        PeerLostError,
    )

_HOMES = {
    "ANY": "collectives.messages",
    "AbortedError": "transports.errors",
    "Certificate": "collectives.proof",
    "CollectiveError": "transports.errors",
    "CollectiveTimeout": "transports.errors",
    "Communicator": "collectives.communicator",
    "MismatchError": "transports.errors",
    "PeerLostError": "transports.errors",
    "ProofError": "collectives.proof",
    "Work": "collectives.work",
    "init": "collectives.initialization",
    "verify": "collectives.proof",
}

__all__ = [
    "ANY",
    "AbortedError",
    "Certificate",
    "CollectiveError",
    "CollectiveTimeout",
    "Communicator",
    "MismatchError",
    "PeerLostError",
    "ProofError",
    "Work",
    "__version__",
    "init",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'collectives' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
