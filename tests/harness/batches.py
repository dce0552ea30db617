"""Many checks for one start of ranks: starting processes is what takes time.

    ranks = Batch()

    @ranks(1, 3)
    def test_that(comm):  # runs on every rank, at each size, with a communicator of its own
        assert ...

All checks of a module that want a size run in the same processes, one after the other; each is
reported as the test it looks like.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from functools import cache
from typing import Any

from harness.under_mpi import mpi_spawn

Check = Callable[[Any], None]
PATIENCE = 30.0  # seconds a wait may take in a check; none should


class Batch:
    """Collects checks, and runs those of a size when the first of them is asked for."""

    def __init__(self, environment: dict[str, str] | None = None, hosts: str = "") -> None:
        """`hosts`: of ranks that mpiexec starts, by `harness.under_mpi`; "": they are on one."""
        self._environment = environment or {}
        self._hosts = hosts
        self._checks: dict[int, list[Check]] = {}
        self.reports = cache(self._run)

    def __call__(self, *sizes: int) -> Callable[[Check], Callable[[int], None]]:
        import pytest

        def decorate(check: Check) -> Callable[[int], None]:
            for size in sizes:
                self._checks.setdefault(size, []).append(check)

            @pytest.mark.parametrize("size", sizes)
            def test(size: int) -> None:
                if report := self.reports(size)[check.__name__]:
                    pytest.fail(report, pytrace=False)

            test.__doc__ = check.__doc__
            test.__name__ = check.__name__
            test.__module__ = check.__module__
            return test

        return decorate

    def _run(self, size: int) -> dict[str, str]:
        """What went wrong in each check, in all ranks' words; empty where nothing did."""
        import launch

        checks = self._checks[size]
        if self._hosts:
            found = mpi_spawn(
                run_checks, size, checks, hosts=self._hosts, environment=self._environment
            )
        else:
            found = launch.spawn(
                run_checks, size, checks, environment=self._environment, timeout=100
            )
        return {
            check.__name__: "\n".join(f"rank {r}: {each[check.__name__]}" for r, each in
                                      enumerate(found) if each[check.__name__])
            for check in checks
        }  # fmt: skip


def run_checks(comm: Any, checks: list[Check]) -> dict[str, str]:
    """On a rank: the traceback of each check, empty where it passed."""
    reports = {}
    for check in checks:
        part = comm.split(0, comm.rank)
        part.timeout = PATIENCE
        reports[check.__name__] = ""
        try:
            with part:
                check(part)
        except BaseException as error:
            reports[check.__name__] = "".join(traceback.format_exception(error))
    return reports
