"""The model of this transport: what is counted, who waits for whom, and how passes go on."""

from __future__ import annotations

import numpy as np
import pytest

from collectives import dtypes
from collectives.calls import _native_plan
from collectives.catalogue import CATALOGUE, find
from collectives.cost.parameters import KNOTS, NAMES, PLACE, Parameters, on_curve
from collectives.cost.shared_memory import composition, predict
from collectives.cost.work import Room, segment_bytes, workload
from collectives.lowering import lower
from transports import _native

ROOM = Room(slots=8, slot_bytes=1 << 16, depth=16, cores=64)
ALGORITHMS = {f"{a.collective} {a.name}": a for a in CATALOGUE.values()}


def only(**seconds):
    """Parameters that are 0 but for the events named, and for streams named, everywhere."""
    values = np.zeros(len(NAMES))
    for name, value in seconds.items():
        places = [PLACE[name]] if name in PLACE else [PLACE[f"{name}.{knot}"] for knot in KNOTS]
        values[places] = value
    return values


def seconds(collective, name, size, nbytes, values, room=ROOM, **options):
    algo = find(collective, name)
    return float(composition(algo, size, nbytes, values, room, **options) @ values)


def test_a_message_is_stored_once_and_fetched_by_each():
    nbytes = 1 << 12
    store = workload(find("broadcast", "linear"), 5, nbytes, ROOM).works
    stored = store[:, [PLACE[f"store.{knot}"] for knot in KNOTS]].sum(axis=1)
    fetched = store[:, [PLACE[f"fetch.{knot}"] for knot in KNOTS]].sum(axis=1)
    assert set(stored) == {0, nbytes} and set(fetched) == {0, nbytes}
    assert store[:, PLACE["post"]].max() == 4
    assert seconds("broadcast", "linear", 5, nbytes, only(store=1)) == pytest.approx(nbytes)


def test_short_messages_take_no_slot():
    load = workload(find("allreduce", "one_shot"), 2, 40, ROOM)
    assert not any(doing.in_slot for rank in load.ranks for doing in rank[0])
    assert seconds("allreduce", "one_shot", 2, 40, only(store=1, fetch=1)) == 0
    assert seconds("allreduce", "one_shot", 2, 44, only(store=1)) == 44


def test_reducing_is_counted_by_what_is_added():
    assert seconds("allreduce", "one_shot", 4, 4096, only(reduce=1)) == 3 * 4096
    assert seconds("allreduce", "ring", 4, 4096, only(reduce=1)) == 3 * 1024


def test_the_critical_path_of_a_ring_has_two_rounds_of_arrivals():
    for size in (2, 3, 5):
        arrivals = seconds("allreduce", "ring", size, 4096, only(arrival=1))
        assert arrivals == 2 * (size - 1)


def test_calls_in_a_row_run_ahead_as_far_as_slots_allow():
    # A broadcast's root does not wait for anybody but for slots, so latency is hidden.
    assert seconds("broadcast", "linear", 2, 4096, only(arrival=1, step=1)) == 1
    few = Room(slots=2, slot_bytes=1 << 16, depth=16, cores=64)
    assert seconds("broadcast", "linear", 2, 4096, only(arrival=4, step=1), few) > 3
    shallow = Room(slots=8, slot_bytes=1 << 16, depth=2, cores=64)
    assert seconds("broadcast", "linear", 2, 4, only(arrival=4, step=1), shallow) > 3


def test_many_passes_go_on_like_the_last():
    values = only(step=1, take=1, arrival=0.5) + only(store=1e-5, fetch=1e-5)
    passes = 40
    nbytes = 2 * passes * ROOM.slot_bytes
    algo = find("allreduce", "ring")
    whole = workload(algo, 2, nbytes, ROOM, most_passes=passes)
    assert len(whole.ranks[0]) == whole.passes == passes
    short = workload(algo, 2, nbytes, ROOM)
    assert len(short.ranks[0]) == 8 and short.passes == passes
    from collectives.cost.shared_memory import composition_of

    exact = float(composition_of(whole, values, ROOM) @ values)
    assert float(composition_of(short, values, ROOM) @ values) == pytest.approx(exact, rel=0.02)


def test_more_ranks_than_cores_share_them():
    values = only(step=1)
    roomy = seconds("barrier", "dissemination", 4, 0, values)
    crowded = seconds("barrier", "dissemination", 4, 0, values, Room(slots=8, slot_bytes=1 << 16,
                                                                    depth=16, cores=2))  # fmt: skip
    assert crowded == pytest.approx(2 * roomy)
    switching = only(step=1, switch=5)
    few = Room(slots=8, slot_bytes=1 << 16, depth=16, cores=2)
    assert seconds("barrier", "dissemination", 4, 0, switching, few) > crowded + 5
    assert seconds("barrier", "dissemination", 4, 0, switching) == roomy


def test_one_sided_plans_read_and_write_the_memory_of_peers():
    nbytes = 1 << 20
    values = only(peek=1, poke=2)
    assert seconds("allreduce", "one_sided", 4, nbytes, values) == 3 * (nbytes / 4) * (1 + 2)
    load = workload(find("allreduce", "one_sided"), 4, nbytes, ROOM)
    assert load.passes == 1


@pytest.mark.parametrize("algo", ALGORITHMS.values(), ids=ALGORITHMS)
def test_every_algorithm_is_predicted(algo):
    values = only(step=1e-7, arrival=2e-7, take=1e-8, read=1e-11, write=1e-11, fetch=5e-11)
    for size in (1, 2, 5):
        times = [
            predict(algo, size, nbytes, Parameters(values=values, ranks=2), ROOM, root=size // 2)
            for nbytes in (0, 4 * size * size, 1 << 20)
        ]
        assert times[0] >= 0 and times == sorted(times)
        assert size == 1 or times[0] > 0


@pytest.mark.parametrize("algo", ALGORITHMS.values(), ids=ALGORITHMS)
def test_segments_are_those_of_the_engine(algo):
    if algo.one_sided:
        return
    for size, slot_bytes in ((2, 256), (5, 1 << 16)):
        plan = lower(algo, 0, size)
        item = 4 if algo.spec.reduces else 1
        if slot_bytes // item // plan.widest < 1:
            continue
        segment = segment_bytes(plan, slot_bytes, item)
        for factor in (1, 3):
            lengths = [segment // item * factor] * plan.chunk_count
            reduction = dtypes.reduction("float32", "sum") if algo.spec.reduces else None
            native = _native_plan(algo, 0, size, 0, (0,) * size)
            call = _native.Call(native, lengths, item, reduction, slot_bytes, "segments")
            assert call.passes == factor


def test_curves_are_interpolated_between_working_sets():
    assert on_curve(1) == ((0, 1.0), (1, 0.0))
    assert on_curve(KNOTS[2]) == ((1, 0.0), (2, 1.0))
    (low, near), (high, far) = on_curve(2 * KNOTS[2])
    assert (low, high) == (2, 3) and near == pytest.approx(far)
    assert on_curve(1 << 40)[1] == (len(KNOTS) - 1, 1.0)


def test_a_model_says_nothing_of_what_was_never_measured():
    messages = Parameters(values=only(step=1, fetch=1), ranks=2)
    assert messages.tells_of(find("allreduce", "ring"))
    assert not messages.tells_of(find("allreduce", "one_sided"))
    assert Parameters(values=only(peek=1), ranks=2).tells_of(find("allreduce", "one_sided"))


def test_parameters_travel_as_text():
    values = np.arange(1.0, len(NAMES) + 1) * 1e-9
    sent = Parameters(values=values, ranks=2, machine='a "big" one', errors={"gather tree": 0.125})
    found = Parameters.from_toml(sent.as_toml())
    assert np.allclose(found.values, values, rtol=1e-3)
    assert (found.ranks, found.machine, found.errors) == (2, sent.machine, sent.errors)


def test_bytes_are_quicker_where_the_others_wait():
    together = only(fetch=1, store=1)
    shared, alone = together.copy(), together.copy()
    alone[PLACE["alone"]] = 0.5
    # Both ranks of an exchange work all the time; in a tree they take turns.
    both = [seconds("allreduce", "one_shot", 2, 4096, each) for each in (shared, alone)]
    assert both[0] == both[1]
    turns = [seconds("allreduce", "tree", 2, 4096, each) for each in (shared, alone)]
    assert turns[1] == pytest.approx(turns[0] * 0.75)
    assert seconds("barrier", "tree", 2, 0, alone) == 0


WRONG = {
    "expected a share of at most 1 as alone, found 2": ("alone = 0", "alone = 2"),
    "needs a table seconds": ("[seconds]", "[secnds]"),
    "found 'stp'; did you mean step?": ('"step"', '"stp"'),
    "seconds needs step": ('"step" = 0', ""),
    "expected a number >= 0 as step, found -1": ('"step" = 0', '"step" = -1'),
    "expected a number >= 0 as reduce, found 'no'": ("reduce = 0", 'reduce = "no"'),
    "expected working_sets": ("[16384, ", "[16385, "),
    "expected 10 numbers as read, found [1]": (f"read = {[0] * len(KNOTS)}", "read = [1]"),
    "expected a number >= 0 as ranks, found None": ("ranks = 2", ""),
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_model_is_refused(text):
    whole = Parameters(values=np.zeros(len(NAMES)), ranks=2).as_toml()
    old, new = WRONG[text]
    assert old in whole
    with pytest.raises(ValueError) as caught:
        Parameters.from_toml(whole.replace(old, new, 1))
    assert text in str(caught.value)
