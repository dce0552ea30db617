"""Algorithms of the user's, proved before their first use on a communicator."""

from __future__ import annotations

import hashlib

from collectives.explaining import Explaining
from collectives.proof import ProofError, verify
from collectives.schedule import Algorithm, ScheduleError


class Proving(Explaining):
    """Adds proofs to a communicator: rank 0 does them, all learn of them."""

    hosts: tuple[int, ...]
    _proved: dict[tuple[Algorithm, int], str]

    def _prove_once(self, algo: Algorithm, root: int) -> str:
        """Prove an algorithm of the user's before its first use: rank 0 does, all learn of it.

        Returns:
            A digest of the schedules that were proved, the same on every rank.

        Raises:
            ProofError: it does not hold.
            MismatchError: some rank's schedule is not the one that rank 0 has proved.
        """
        root = root if algo.spec.rooted else 0
        if (algo, root) in self._proved:
            return self._proved[algo, root]
        digests: list[str] = []
        failure: Exception | None = None
        if self.rank == 0:
            try:
                verify(algo, self.size, root, self.hosts)
                digests = [self._digest(algo, rank, root) for rank in range(self.size)]
            except ProofError as error:
                failure = error
            except Exception as error:  # the author's own; the others must not wait for the proof
                failure = ScheduleError(
                    f"{algo.collective} {algo.name} raised {type(error).__name__}: {error}"
                )
        with self._calling(f"the proof of {algo.collective} {algo.name}"):
            digests, failure = self.broadcast_object((digests, failure))
        if failure is not None:
            raise failure
        if digests[self.rank] != self._digest(algo, self.rank, root):
            self._engine.mismatch(
                f"{algo.collective} {algo.name}: the schedule on rank {self.rank} is another than "
                "the one that rank 0 has proved for it"
            )
        whole = hashlib.sha256("".join(digests).encode()).hexdigest()[:8]
        self._proved[algo, root] = whole
        return whole

    def _digest(self, algo: Algorithm, rank: int, root: int) -> str:
        steps = algo.schedule(rank, self.size, root, self.hosts)
        return hashlib.sha256(repr((algo.chunk_count(self.size), steps)).encode()).hexdigest()
