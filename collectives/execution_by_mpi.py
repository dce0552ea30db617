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
        named: object,
        **others: object,
    ) -> Any:
        """By the name it was given, `named`; of the other arguments it takes none."""
        self._refuse_beside_mpi(collective, **others)
        own = self._mpis_own()
        found = own.call(collective, x, out, op, check_root(root, self.size))
        is_array = out is not None and type(x) is np.ndarray
        if collective == "allreduce" and op is not None and is_array:
            call = own.known(x, op)
            if call is not None:  # by the very object that named it: so it is asked for again
                self._engine.remember(collective, x, out, root, op, named, False, call)
        return found

    def _refuse_beside_mpi(self, collective: str, **given: object) -> None:
        names = [f"{name}=" for name, value in given.items() if value not in (None, False)]
        if names:
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
