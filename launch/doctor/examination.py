"""All checks, side by side, each within its time; the self-test last, when the cores are free."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

from launch.doctor import (
    capacity,
    gpus,
    installation,
    left_behind,
    mpi,
    network,
    ray_cluster,
    self_test,
    system,
)
from launch.doctor.asking import NoAnswer, ask, await_result, begin
from launch.doctor.findings import Finding, problem

RUNTIME_SECONDS = 15.0
SPARE_SECONDS = 5.0  # beyond what a check's own limits add up to


@dataclass(frozen=True, kw_only=True)
class Check:
    """One of them.

    Attributes:
        subject: what it looks at, should it come to no finding.
        look: does it.
        seconds: how long it may take.
    """

    subject: str
    look: Callable[[], list[Finding]]
    seconds: float = RUNTIME_SECONDS + SPARE_SECONDS


def examine(ranks: int, clean: str | None) -> Iterator[Finding]:
    """Everything that is found, in an order that does not change.

    Args:
        ranks: how many are to be started, for what depends on it.
        clean: which orphans to end: "" all, a job's name those of that job, None no one.
    """
    runtime = begin(lambda: ask("launch.doctor.runtime_probe", str(ranks), seconds=RUNTIME_SECONDS))
    under_way = [(check, begin(check.look)) for check in checks(runtime, ranks, clean)]
    for check, future in under_way:
        yield from _outcome(check, future)
    last = Check(
        subject="self-test", look=self_test.check_ranks, seconds=self_test.SECONDS + SPARE_SECONDS
    )
    yield from _outcome(last, begin(last.look))


def checks(runtime: Future[dict[str, Any]], ranks: int, clean: str | None) -> list[Check]:
    """All but the self-test."""
    answers = runtime.result
    return [
        Check(subject="package", look=partial(installation.check_package, answers)),
        Check(subject="cores", look=capacity.check_cores),
        Check(subject="memory", look=partial(capacity.check_memory, answers, ranks)),
        Check(subject="shared memory", look=partial(system.check_shared_memory, answers)),
        Check(subject="limits", look=partial(system.check_limits, ranks)),
        Check(subject="kernel calls", look=partial(system.check_kernel_calls, answers)),
        Check(subject="process numbers", look=system.check_process_numbers),
        Check(subject="MPI", look=mpi.check_mpi, seconds=3 * mpi.SECONDS + SPARE_SECONDS),
        Check(subject="GPUs", look=gpus.check_gpus, seconds=gpus.SECONDS + SPARE_SECONDS),
        Check(subject="interfaces", look=network.check_interfaces),
        Check(subject="Ray", look=ray_cluster.check_ray),
        Check(subject="tuning", look=partial(installation.check_tuning, answers)),
        Check(subject="orphans", look=partial(left_behind.check_orphans, clean)),
    ]


def _outcome(check: Check, future: Future[list[Finding]]) -> list[Finding]:
    """What was found; that nothing was, is a problem too."""
    try:
        return await_result(future, check.seconds)
    except NoAnswer as error:
        advice = "Find out what holds it up, by `dmesg` and by `ps` looking for state D."
        return [problem(check.subject, f"looking at it: {error}", advice)]
    except Exception as error:  # a machine unlike any we have seen; the other lines still count
        found = f"the check itself failed: {type(error).__name__}: {error}"
        return [problem(check.subject, found, "Report this text: it is a mistake of ours.")]
