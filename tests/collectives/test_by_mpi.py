"""The MPI library's own collectives, by algorithm="mpi": the definition's results, and refusals."""

from __future__ import annotations

import numpy as np
import pytest
from harness.conformance import Case, run_case
from harness.errors import refused
from harness.under_mpi import mpi_spawn

import collectives
from collectives.specs import SPECS


def everything(comm):
    problems = []
    for collective in SPECS:
        if collective == "barrier":
            comm.barrier(algorithm="mpi")
            continue
        ops = ("sum", "max", "prod") if SPECS[collective].reduces else ("sum",)
        for kind in ("numpy", "torch"):
            for dtype in ("float32", "float64", "int8", "int64", "uint8", "bool"):
                for op in ops:
                    if dtype == "bool" and SPECS[collective].reduces:
                        op = "lor"
                    for root in range(comm.size) if SPECS[collective].rooted else (0,):
                        case = Case(collective, "mpi", kind, dtype, 5, op, root)
                        problems.append(run_case(comm, case))
    return [problem for problem in problems if problem]


@pytest.mark.parametrize("hosts", [pytest.param("", marks=pytest.mark.full), "aab"])
def test_what_the_definition_says(hosts):
    for problems in mpi_spawn(everything, 3, hosts=hosts, transport="auto" if hosts else "mpi"):
        assert not problems, problems[:5]


def again_and_in_place(comm):
    x, out = np.arange(6, dtype=np.float32) + comm.rank, np.empty(6, np.float32)
    for turn in range(3):  # the second time it is known
        x += turn
        wanted = sum(np.arange(6) + rank for rank in range(comm.size)) + comm.size * sum(
            range(turn + 1)
        )
        assert comm.allreduce(x, out=out, algorithm="mpi") is out
        assert (out == wanted).all(), turn
    for _ in range(2):
        x[...] = comm.rank + 1
        assert comm.allreduce(x, out=x, algorithm="mpi", op="max") is x
        assert (x == comm.size).all()
    # The same memory as another array, where MPI needs them apart.
    rows = np.full((comm.size, 3), comm.rank, np.int32)
    for _ in range(2):
        rows[...] = comm.rank
        comm.alltoall(rows, out=rows[:], algorithm="mpi")
        assert (rows == np.arange(comm.size)[:, None]).all()
    # An array in the place of one that has gone.
    for length in (4, 5, 6):
        y = np.ones(length)
        assert (comm.allreduce(y, out=np.empty(length), algorithm="mpi") == comm.size).all()
    part = comm.split(comm.rank % 2)
    found = part.allreduce(np.ones(2), algorithm="mpi") if comm.rank % 2 == 0 else None
    part.close()
    return None if found is None else found.tolist()


def test_again_in_place_and_in_a_split():
    assert mpi_spawn(again_and_in_place, 3, transport="mpi") == [[2, 2], None, [2, 2]]


def refusals(comm):
    x = np.ones((comm.size, 4), np.float32)
    for words, keywords in (
        (["does not take async_op="], {"async_op": True}),
        (["does not take deterministic="], {"deterministic": True}),
        (["does not take timeout="], {"timeout": 5}),
        (["MPI has sum", "'avg'"], {"op": "avg"}),
        (["expected a contiguous out"], {"out": np.ones((4, comm.size), np.float32).T}),
        (["x and out overlap"], {"out": np.ones(9 * comm.size, np.float32)}),
    ):
        if "out" in keywords and keywords["out"].ndim == 1:
            whole = keywords["out"]
            mine, keywords = whole[: 4 * comm.size], {"out": whole[1 : 4 * comm.size + 1]}
        else:
            mine = x
        refused(
            comm, ValueError, words,
            lambda m=mine, k=keywords: comm.allreduce(m, algorithm="mpi", **k),
        )  # fmt: skip
    refused(comm, ValueError, ["contiguous x in host memory"],
            lambda: comm.allreduce(x.T, algorithm="mpi"))  # fmt: skip
    refused(comm, TypeError, ["MPI reduces float32", "found float16"],
            lambda: comm.allreduce(x.astype(np.float16), algorithm="mpi"))  # fmt: skip
    refused(comm, TypeError, ["MPI has no max of bool"],
            lambda: comm.allreduce(x > 0, op="max", algorithm="mpi"))  # fmt: skip
    refused(comm, ValueError, ["allgather", "does not take counts="],
            lambda: comm.allgather(x, counts=[comm.size] * comm.size, algorithm="mpi"))  # fmt: skip
    refused(comm, ValueError, ["scatter", "does not take async_op="],
            lambda: comm.scatter(x, async_op=True, algorithm="mpi"))  # fmt: skip
    comm.close()
    with pytest.raises(collectives.CollectiveError, match="closed"):
        comm.allreduce(x, algorithm="mpi")


def test_what_it_does_not_take_is_refused_by_name():
    mpi_spawn(refusals, 2, transport="mpi")


def test_shared_memory_has_no_mpi():
    with collectives.init() as comm, pytest.raises(ValueError, match="shared memory connects"):
        comm.allreduce(np.ones(2), algorithm="mpi")
