"""What a call becomes that names the MPI library's own collective."""

from __future__ import annotations

from typing import Any

import numpy as np

from collectives.arguments import check_root
from collectives.arrays import Array
from collectives.by_mpi import ByMpi
from collectives.execution import Execution
from transports.errors import CollectiveError
from transports.mpi.connection import Group


class ExecutionByMpi(Execution):
    """Adds to a communicator MPI's collectives, by a communicator of MPI's own."""

    _group: Group | None
    _mpi_calls: ByMpi | None

    def _by_mpi(
        self,
        collective: str,
        x: Array,
        out: Array | None,
        op: str | None,
        root: int,
        deterministic: bool,
        async_op: bool,
        counts: object = None,
        named: object = None,
    ) -> Any:
        if deterministic or async_op or counts is not None:
            self._refuse_beside_mpi(collective, deterministic, async_op, counts)
        own = self._mpis_own()
        found = own.call(collective, x, out, op, check_root(root, self.size))
        if named is not None and op is not None and out is not None and type(x) is np.ndarray:
            call = own.known(x, op)
            if call is not None:  # by the very object that named it: so it is asked for again
                self._engine.remember(collective, x, out, root, op, named, deterministic, call)
        return found

    def _refuse_beside_mpi(
        self, collective: str, deterministic: bool, async_op: bool, counts: object
    ) -> None:
        if deterministic or async_op or counts is not None:
            given = {"deterministic": deterministic, "async_op": async_op, "counts": counts}
            names = [f"{name}=" for name, value in given.items() if value]
            raise ValueError(
                f'{collective}: algorithm="mpi" does not take {", ".join(names)}; expected another '
                "algorithm"
            )

    def _mpis_own(self) -> ByMpi:
        """Made by the first such call, which all ranks make."""
        self._engine.check([])  # what has broken the communicator
        if self._engine.closed:
            raise CollectiveError("the communicator is closed")
        if self._mpi_calls is None:
            if self._group is None:
                raise ValueError(
                    'algorithm="mpi": shared memory connects these ranks, not MPI; expected '
                    'collectives.init("mpi"), or ranks on several hosts'
                )
            self._mpi_calls = ByMpi(self._group)
        return self._mpi_calls
