"""`comm.explain`: what runs and why, what else could, predicted and measured."""

from __future__ import annotations

import numpy as np
import pytest
from harness.batches import Batch
from harness.errors import still_works

from collectives import explaining
from collectives.catalogue import find, names
from collectives.schedule import algorithm, recv, recv_reduce, send

ranks = Batch({"COLLECTIVES_TUNING": "off"})


@algorithm("allreduce")
def up_and_down(rank, size):
    if rank + 1 < size:
        yield recv_reduce(rank + 1, chunk=0)
    if rank > 0:
        yield send(rank - 1, chunk=0)
        yield recv(rank - 1, chunk=0)
    if rank + 1 < size:
        yield send(rank + 1, chunk=0)


@ranks(2, 3)
def test_what_runs_and_why(comm):
    x = np.ones(1 << 18, np.float32)
    found = comm.explain("allreduce", x)
    chosen = comm._table.choose("allreduce", size=comm.size, nbytes=x.nbytes)
    assert found.algorithm == find("allreduce", chosen).name
    assert found.call == f"allreduce among {comm.size} ranks, 1,048,576 bytes of float32 sum"
    assert "of the selection table (allreduce" in found.reason
    shown = [each.algorithm for each in found.candidates]
    assert set(shown) == {find("allreduce", name).name for name in names("allreduce")}
    assert [each.chosen for each in found.candidates].count(True) == 1
    times = [each.predicted for each in found.candidates if each.predicted is not None]
    assert times == sorted(times) and times[0] > 0
    assert all(each.predicted is not None or each.refused for each in found.candidates)
    assert all(each.measured is None for each in found.candidates)
    text = str(found)
    assert text.startswith(f"{found.call}: runs {found.algorithm}, by row")
    assert f"* {found.algorithm}" in text and "predictions fitted on" in text
    still_works(comm)


@ranks(2, 3)
def test_what_runs_instead_where_the_kernel_copies(comm):
    """Not what a call names, what is short, nor what would fold in another order."""
    for collective, count, named, instead in (
        ("allreduce", 1 << 16, None, "one_sided" if comm.size == 2 else ""),
        ("allreduce", 1 << 16, "ring", ""),
        ("allreduce", 1 << 10, None, ""),
        ("reduce", 1 << 17, None, "push" if comm.size == 2 else ""),
        ("reduce", (1 << 17) - 1, None, ""),
        ("allgather", 1 << 16, None, "one_sided"),
        ("broadcast", 1 << 16, None, "push_pull"),
        ("broadcast", 1 << 16, "tree", ""),
        ("gather", 1 << 16, None, "push"),
    ):
        x = np.ones(count, np.float32)
        found = comm.explain(collective, x, algorithm=named)
        assert found.instead == instead, (collective, count, named)
        words = f"; or {instead}, if copies of the kernel's are found to be quicker"
        assert (words in str(found)) == bool(instead)


@ranks(2)
def test_what_a_call_has_found_is_explained(comm):
    for collective in ("allreduce", "broadcast", "scatter", "gather"):
        x = np.ones((2, 1 << 16) if collective == "scatter" else 1 << 17, np.float32)
        call = getattr(comm, collective)

        def found(collective=collective, x=x):
            told = comm.explain(collective, x)
            return told.found, str(told).split("\n")[0]

        before, words = found()
        assert before == "" and words.endswith("are found to be quicker")
        call(x)
        during, words = found()
        assert during == "trying" and words.endswith("quicker, which is being tried")
        for _ in range(18):
            call(x)
        after, words = found()
        assert comm.allgather_object(after) in (["slower"] * 2, ["quicker"] * 2)
        instead = comm.explain(collective, x).instead
        quicker, slower = f"which they were, so {instead} runs", "not, when it was tried last"
        assert words.endswith(quicker if after == "quicker" else slower)
    if comm.rank == 0:
        before = comm._engine.calls
        work = comm.allreduce(x, async_op=True)
        while comm._engine.calls == before:
            pass
        assert comm.explain("broadcast", x).found == "", "while another call runs it is not known"
        comm.send(x[:1], dest=1)
        work.wait()
    else:
        comm.recv(x[:1], source=0)
        comm.allreduce(x)


@ranks(1)
def test_a_world_of_one_is_explained_too(comm):
    assert "runs " in str(comm.explain("allreduce", np.ones(3), measure=True, rounds=1))


@ranks(2)
def test_symmetric_arrays_have_more_candidates(comm):
    x = comm.empty(1 << 16, np.float32)
    found = comm.explain("allreduce", x, measure=True, rounds=1)
    assert not any(each.refused for each in found.candidates)
    assert {each.algorithm: each.measured for each in found.candidates}["one_sided"] > 0


@ranks(2)
def test_a_call_that_names_its_algorithm(comm):
    x = np.ones((2, 4))
    found = comm.explain("alltoall", x, algorithm="bruck")
    assert found.algorithm == "bruck" and found.reason == "which the call names"
    assert "64 bytes of float64" in found.call
    assert comm.explain("reduce", x, root=1, op="max").call.endswith("float64 max, root 1")
    assert comm.explain("allgather", x).call.endswith("128 bytes of float64")
    assert comm.explain("barrier").call == "barrier among 2 ranks"
    named = comm.explain("allreduce", x, algorithm=up_and_down, measure=True, rounds=1)
    assert named.algorithm == "up_and_down" and "up_and_down" in str(named)
    assert {each.algorithm: each.measured for each in named.candidates}["up_and_down"] > 0


@ranks(3)
def test_what_cannot_run_is_listed_with_its_reason(comm):
    x = np.ones(5, np.float16)
    found = comm.explain("allreduce", x, deterministic=True)
    refused = {each.algorithm: each.refused for each in found.candidates}
    assert "folds in rank order" in refused["ring"] and not refused[found.algorithm]
    assert "rank order" in found.reason
    assert "deterministic=True needs" in str(found)
    assert "comm.empty" in refused["one_sided"]


@ranks(2)
def test_measured_means_that_all_ranks_call(comm):
    x = np.arange(1024.0)
    kept = x.copy()
    for collective in ("allreduce", "broadcast", "reduce", "gather", "allgather", "barrier"):
        found = comm.explain(
            collective, None if collective == "barrier" else x, measure=True, rounds=1
        )
        able = [each for each in found.candidates if not each.refused]
        assert able and all(each.measured > 0 for each in able)
        assert all(each.measured is None for each in found.candidates if each.refused)
        assert "measured" in str(found) and "µs" in str(found)
    rows = np.ones((2, 100))
    for collective in ("reduce_scatter", "scatter", "alltoall"):
        assert comm.explain(collective, rows, measure=True, rounds=1).candidates[0].measured
    assert (x == kept).all()
    still_works(comm)


@ranks(2)
def test_what_makes_no_call_is_refused(comm):
    with pytest.raises(ValueError, match="unknown collective 'alreduce'"):
        comm.explain("alreduce", np.ones(1))
    with pytest.raises(ValueError, match="explain allreduce: expected an array, found None"):
        comm.explain("allreduce")
    with pytest.raises(ValueError, match="expected a leading axis of length 2"):
        comm.explain("alltoall", np.ones(3))
    with pytest.raises(ValueError, match="unknown algorithm 'rng'"):
        comm.explain("allreduce", np.ones(1), algorithm="rng")
    with pytest.raises(TypeError):
        comm.explain("allreduce", [1.0])
    still_works(comm)


def test_times_are_readable():
    assert explaining._readable(1.5e-6) == "1.50 µs"
    assert explaining._readable(0.0025) == "2.50 ms"


def test_the_error_of_predictions_is_told_where_it_is_known():
    one = explaining.Candidate("ring", 1e-6, chosen=True)
    told = explaining.Explanation("a call", "ring", "why", (one,), "a machine", 0.125)
    assert str(told).endswith("fitted on a machine; median error of ring there 12%")
    assert "another machine" in str(explaining.Explanation("c", "ring", "w", (one,), "", None))


@ranks(2, 3)
def test_what_a_call_takes_is_what_explain_says(comm):
    for collective, x in (
        ("allreduce", np.ones(1 << 16, np.float32)),
        ("allreduce", comm.empty(1 << 16, np.float32)),
        ("allgather", np.ones(5000)),
        ("alltoall", np.ones((comm.size, 5000))),
        ("barrier", None),
    ):
        found = comm.explain(collective, x)
        (chosen,) = (each for each in found.candidates if each.chosen)
        assert comm.predict(collective, x) == chosen.predicted > 0
        assert comm.predict(collective, x, ranks=comm.size) == chosen.predicted
    x = np.ones(1 << 16, np.float32)
    assert comm.predict("allreduce", x, ranks=1) < comm.predict("allreduce", x)
    assert comm.predict("barrier", ranks=64) > comm.predict("barrier", ranks=2)
    assert comm.predict("reduce", x, root=9, ranks=16) > 0
    assert comm.predict("reduce_scatter", np.ones((5, 7)), ranks=5) > 0
    with pytest.raises(ValueError, match="ranks: expected 1 or more, found 0"):
        comm.predict("allreduce", x, ranks=0)
    with pytest.raises(ValueError, match="root"):
        comm.predict("reduce", x, root=4, ranks=4)
    with pytest.raises(ValueError, match="5"):
        comm.predict("reduce_scatter", np.ones((4, 7)), ranks=5)
    still_works(comm)


@ranks(2)
def test_a_model_that_was_not_fitted_predicts_nothing(comm):
    class Speechless:
        def tells_of(self, algo):
            return False

    before, explaining.machine_model = explaining.machine_model, Speechless
    try:
        assert comm.predict("allreduce", np.ones(8)) is None
    finally:
        explaining.machine_model = before
