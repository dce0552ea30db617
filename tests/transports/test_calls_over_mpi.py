"""The tests of calls, made for ranks of one host, once more over MPI: the same checks, by name."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path

import cloudpickle
import pytest
from harness.batches import Batch, run_checks
from harness.under_mpi import mpi_spawn

MODULES = (
    "arguments", "arrays_and_types", "async", "calls", "communicator", "contract", "deterministic",
    "explaining", "long_messages", "messages", "mismatch", "objects", "repeated_calls",
    "scattering", "split", "user_algorithm", "v_forms", "waiting",
)  # fmt: skip
_ONE_SIDED = "memory that all ranks reach ends at the host"
_LATER = "what is sent on one communicator may come after what is sent later on another"
LEFT_OUT = {
    "test_it_shows_who_it_is": "says that it is over shm",
    "test_colors_and_keys": "says that all are on one host",
    "test_bits": _ONE_SIDED,
    "test_an_algorithm_of_another_order_is_refused_with_those_that_do": _ONE_SIDED,
    "test_what_runs_instead_where_the_kernel_copies": _ONE_SIDED,
    "test_what_a_call_has_found_is_explained": _ONE_SIDED,
    "test_symmetric_arrays_have_more_candidates": _ONE_SIDED,
    "test_a_copy_before_a_notify_of_an_algorithm_of_the_users": _ONE_SIDED,
    "test_several_roots_are_found_at_close_or_in_the_next_call": _LATER,
    "test_another_error_is_not_hidden_by_what_close_finds": _LATER,
    "test_a_message_that_nobody_waits_for_is_told_at_close": _LATER,
}
"""Checks of what ends at the host, and why they are not for MPI."""

WAYS = [(3, "aab"), (2, ""), (3, "")]
"""Ranks and their hosts; "": one each."""

QUICK = ("async", "contract", "messages", "mismatch", "split", "waiting")
"""What the quick run has, on several hosts of which one has several ranks."""


@cache
def _module(name):
    path = Path(__file__).parents[1] / "collectives" / f"test_{name}.py"
    spec = importlib.util.spec_from_file_location(f"over_mpi_{name}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    cloudpickle.register_pickle_by_value(module)  # ranks cannot import it by this name
    return module


def _batches(name):
    found = vars(_module(name))
    return {key: each for key, each in found.items() if isinstance(each, Batch)}


def _checks(name, batch, size):
    checks = _batches(name)[batch]._checks.get(size, ())
    return [check for check in checks if check.__name__ not in LEFT_OUT]


@cache
def _reports(name, batch, size, hosts):
    return mpi_spawn(
        run_checks, size, _checks(name, batch, size), hosts=hosts,
        transport="auto" if hosts else "mpi", environment=_batches(name)[batch]._environment,
    )  # fmt: skip


def _named():
    for name in MODULES:
        for batch in _batches(name):
            for size, hosts in WAYS:
                for check in _checks(name, batch, size):
                    is_quick = hosts == "aab" and name in QUICK
                    yield pytest.param(
                        name, batch, size, hosts, check.__name__,
                        id=f"{name}-{size}{hosts}-{check.__name__}",
                        marks=[] if is_quick else [pytest.mark.full],
                    )  # fmt: skip


@pytest.mark.parametrize("name, batch, size, hosts, check", list(_named()))
def test_check(name, batch, size, hosts, check):
    found = _reports(name, batch, size, hosts)
    problems = [f"rank {rank}: {each[check]}" for rank, each in enumerate(found) if each[check]]
    assert not problems, "\n".join(problems)
