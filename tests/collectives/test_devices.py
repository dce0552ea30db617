"""Calls on arrays of devices, through the public door, on emulated ones."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from harness.batches import Batch
from harness.device_arrays import (
    address,
    check_uneven_counts,
    emulated_only,
    environment,
    given,
    kind_here,
    new_array,
    on_device,
    part,
    total,
)
from harness.errors import raising

import collectives
import launch

DEVICES = environment("devices=2,seed=1")
ranks = Batch(DEVICES)
few_slots = Batch(DEVICES | {
    "COLLECTIVES_DEVICE_SLOTS": "2", "COLLECTIVES_DEVICE_SLOT_BYTES": "256",
})  # fmt: skip
hosted = Batch(environment("devices=2,hosted=1,seed=1"))
apart = Batch(environment("devices=2,apart=0-1,seed=1"))


def last_text(comm):
    return list(comm._device_calls.values())[-1].agreement.text


@ranks(1, 2, 3)
def test_new_arrays_and_in_place(comm):
    x = on_device(given(comm.rank))
    y = comm.allreduce(x)
    assert np.array_equal(y.get(), total(comm)) and np.array_equal(x.get(), given(comm.rank))
    assert comm.allreduce(x, out=x) is x
    assert np.array_equal(x.get(), total(comm))
    assert np.array_equal(comm.broadcast(y, root=comm.size - 1).get(), total(comm))


@ranks(2)
def test_host_and_device_take_turns(comm):
    for turn in range(20):
        x = on_device(given(comm.rank + turn))
        y = comm.allreduce(x, async_op=True)
        assert comm.allreduce(np.ones(3))[0] == 2
        assert np.array_equal(y.wait().get(), given(turn) + given(turn + 1))


@few_slots(2, 3)
def test_many_calls_in_a_row(comm):
    """Slots and flags are used again and again; nobody waits for anybody between."""
    works = [
        comm.allreduce(on_device(given(comm.rank + turn)), async_op=True, algorithm=algorithm)
        for turn in range(10)
        for algorithm in ("ring", "tree", "one_shot")
    ]
    for number, work in enumerate(works):
        wanted = sum(given(rank + number // 3) for rank in range(comm.size))
        assert np.array_equal(work.wait().get(), wanted)


@ranks(2)
def test_a_work(comm):
    work = comm.allreduce(on_device(given(comm.rank)), async_op=True)
    assert np.array_equal(work.wait(timeout=30).get(), total(comm))
    assert work.done() and work.ended >= work.began > 0
    assert work.wait() is work.wait()


@ranks(2, 3)
def test_scatter_tells_where_the_array_lies(comm):
    root = comm.size - 1
    rows = np.stack([given(rank, 6) for rank in range(comm.size)])
    x = on_device(rows) if comm.rank == root else None
    for number in range(3):
        mine = comm.scatter(x, root=root)
        assert np.array_equal(mine.get(), given(comm.rank, 6)), number
    assert np.array_equal(comm.scatter(x, root=root, async_op=True).wait().get(), mine.get())
    out = on_device(np.zeros(6, np.float32))
    assert comm.scatter(x, root=root, out=out) is out
    assert np.array_equal(out.get(), given(comm.rank, 6))
    parts = [2, *[1] * (comm.size - 1)]
    flat = on_device(np.arange(sum(parts), dtype=np.int64)) if comm.rank == root else None
    begin = sum(parts[: comm.rank])
    wanted = np.arange(begin, begin + parts[comm.rank])
    assert np.array_equal(comm.scatter(flat, root=root, counts=parts).get(), wanted)


@few_slots(2, 3)
def test_uneven_counts(comm):
    check_uneven_counts(comm, [3, 0, 70][: comm.size])
    rows = on_device(np.arange(comm.size * 4).reshape(comm.size, 4) + 100 * comm.rank)
    comm.alltoall(rows, out=rows)  # in place it reads a copy
    assert rows.get()[0, 0] == 4 * comm.rank


@ranks(2)
def test_it_says_which_algorithm_and_why(comm):
    x = on_device(np.zeros(1 << 18, np.float32))
    found = comm.explain("allreduce", x)
    assert found.algorithm == "two_shot" and "row 3" in found.reason
    assert all(each.predicted is None for each in found.candidates)
    comm.allreduce(x)
    assert "by two_shot on devices" in last_text(comm)
    assert comm.predict("allreduce", x) is None
    y = comm.empty(1 << 18, np.float32, device="cuda")
    assert comm.explain("allreduce", y).algorithm == "one_sided"
    measured = comm.explain("allreduce", y, measure=True, rounds=1)
    assert all(each.measured or each.refused for each in measured.candidates)


@ranks(3)
def test_deterministic(comm):
    each = [np.array([1e8, 1.0, -1e8, 3.0], np.float32) * factor for factor in (1, -3, 2)]
    x = on_device(each[comm.rank])
    found = comm.allreduce(x, deterministic=True)
    assert np.array_equal(found.get(), (each[0] + each[1]) + each[2])
    with raising(ValueError, "deterministic=True needs", "double_binary_tree"):
        comm.allreduce(x, deterministic=True, algorithm="double_binary_tree")


@ranks(2)
def test_counts_that_do_not_fit(comm):
    x = on_device(np.zeros(4))
    with raising(collectives.MismatchError, "sends 2 elements to rank", "receives 3"):
        comm.alltoall(x, counts=((2, 2), (3, 3)))


@ranks(1, 2, 3)
def test_symmetric_arrays(comm):
    x = comm.empty(1000, device="cuda")
    out = comm.empty((1000,), np.float32, device="cuda")
    x.set(given(comm.rank))
    comm.allreduce(x, out=out, algorithm="one_sided")
    assert np.array_equal(out.get(), total(comm)) and "by one_sided" in last_text(comm)
    comm.allreduce(part(x, 100, 200), out=part(x, 100, 200), algorithm="one_sided")
    wanted = given(comm.rank)
    wanted[100:200] = total(comm)[100:200]
    assert np.array_equal(x.get(), wanted) and "by one_sided" in last_text(comm)
    comm.allreduce(x)  # its result lies in no memory that all reach
    assert comm.size == 1 or "one_sided" not in last_text(comm)
    half = comm.split(0, key=-comm.rank)  # the other way round
    half.allreduce(x, out=out, algorithm="one_sided")
    assert "by one_sided" in last_text(half)
    assert np.array_equal(out.get()[:100], total(comm)[:100])
    half.close()


@ranks(2)
def test_symmetric_memory_is_used_again(comm):
    x = comm.empty(1 << 19, device="cuda")
    begin = address(x)
    del x
    gc.collect()
    y = comm.empty(1 << 19, device="cuda")
    assert address(y) == begin
    z = comm.empty(1 << 20, device="cuda")
    assert address(z) != begin


@emulated_only
@ranks(2)
def test_symmetric_memory_that_is_too_short_is_given_back(comm):
    x, y = comm.empty(1 << 19, device="cuda"), comm.empty(1 << 20, device="cuda")
    del x
    gc.collect()
    free = comm._connected.device._free
    comm.empty(1 << 22, device="cuda")
    assert comm._connected.device._free == free - (16 << 20) + (2 << 20)
    assert y.nbytes == 4 << 20  # which was in use


@ranks(2)
def test_symmetric_arrays_at_other_places_do_not_fit(comm):
    x = comm.empty(1000, device="cuda")
    with raising(collectives.MismatchError, "one_sided", "+0", "+400"):
        mine = part(x, 0, 100) if comm.rank == 0 else part(x, 100, 200)
        comm.allreduce(mine, out=mine, algorithm="one_sided")
        comm.close()


@emulated_only
@apart(2)
def test_devices_that_do_not_reach_each_other(comm):
    x = on_device(given(comm.rank))
    assert np.array_equal(comm.allreduce(x).get(), total(comm))
    y = comm.empty(1000, device="cuda")  # an ordinary array
    y.set(given(comm.rank))
    comm.allreduce(y, out=y)
    assert np.array_equal(y.get(), total(comm)) and "one_sided" not in last_text(comm)


@emulated_only
@ranks(2)
def test_arrays_on_another_device_are_refused(comm):
    from transports.cuda_ipc.emulated_array import emulated_device

    x, other = on_device(given(comm.rank)), emulated_device(1 - comm.rank)
    comm.allreduce(x)
    with raising(ValueError, "x:", "device"):
        comm.allreduce(on_device(given(0), other))
    with raising(ValueError, "out:", "device"):
        comm.allreduce(x, out=on_device(given(0), other))
    assert np.array_equal(comm.allreduce(x).get(), total(comm))


@ranks(2)
def test_arguments_are_refused_before_anything_is_sent(comm):
    x = on_device(given(comm.rank))
    comm.allreduce(x)
    for call, kind, words in (
        (lambda: comm.allreduce(x, out=np.zeros(1000, "f4")), TypeError, ("array as x", "numpy")),
        (lambda: comm.allreduce(x, out=new_array(999)), ValueError, ("(1000,)", "(999,)")),
        (lambda: comm.allreduce(x, op="mean"), ValueError, ("op must be", "mean")),
        (lambda: comm.allreduce(part(x, 0, 600), out=part(x, 300, 900)), ValueError, ("overlap",)),
        (lambda: comm.allreduce(x, algorithm="rings"), ValueError, ("rings", "ring")),
        (lambda: comm.allreduce(x, algorithm="one_sided"), ValueError, ("comm.empty",)),
        (lambda: comm.empty(3, device="gpu"), ValueError, ("cuda:N", "gpu")),
        (lambda: comm.empty(3, device="cuda:77"), ValueError, ("device", "77")),
        (lambda: comm.send(x, dest=2), ValueError, ("dest", "2")),
        (lambda: comm.recv(x, source=0, tag=-2), ValueError, ("tag", "-2")),
    ):  # fmt: skip
        with raising(kind, *words):
            call()
    assert np.array_equal(comm.allreduce(x).get(), total(comm))


@ranks(2)
def test_memory_that_is_not_there(comm):
    with raising(MemoryError, "empty", "rank 0", "bytes"):
        comm.empty(1 << 40, np.float32, device="cuda")
    assert np.array_equal(comm.allreduce(on_device(given(comm.rank))).get(), total(comm))


@emulated_only
def test_memory_that_cannot_be_shared():
    def body(comm):
        with raising(collectives.CollectiveError, "rank 0", "between processes"):
            comm.allreduce(on_device(given(comm.rank)))
        return float(comm.allreduce(np.ones(1))[0])

    machine = {"COLLECTIVES_EMULATED_DEVICES": "devices=1,unshared=1"}
    assert launch.spawn(body, 2, environment=machine, timeout=60) == [2.0, 2.0]


def test_transport_shm_refuses_them():
    def body():
        with collectives.init(transport="shm") as comm, raising(TypeError, "host memory only"):
            comm.allreduce(on_device(np.ones(3)))

    from harness.processes import Ranks

    with Ranks(body, 1, environment=DEVICES) as job:
        assert [outcome.text for outcome in job.outcomes()] == [""]


def test_transport_cuda_ipc_connects_at_once():
    def body():
        with collectives.init(transport="cuda_ipc") as comm:
            assert comm.transport == "cuda_ipc"
            x = comm.empty(1000, device="cuda")
            x.set(given(comm.rank))
            comm.allreduce(x, out=x)
            assert np.array_equal(x.get(), total(comm))
            return comm.device

    from harness.processes import Ranks

    each = {"each": lambda rank: {"LOCAL_RANK": str(rank)}}
    with Ranks(body, 3, environment=DEVICES, **each) as job:
        outcomes = job.outcomes()
    assert [outcome.text for outcome in outcomes] == [""] * 3
    if kind_here() == "emulated":
        assert [outcome.value for outcome in outcomes] == [0, 1, 0]


@emulated_only
def test_without_any_device_cuda_ipc_says_so():
    def body():
        with raising((ModuleNotFoundError, collectives.CollectiveError), "CUDA"):
            collectives.init(transport="cuda_ipc")

    from harness.processes import Ranks

    with Ranks(body, 1, environment={"COLLECTIVES_EMULATED_DEVICES": ""}) as job:
        assert [outcome.text for outcome in job.outcomes()] == [""]


@pytest.mark.parametrize("text", ["0", "two", "devices=1,pears=2", "apart=0"])
def test_a_machine_that_makes_no_sense(text):
    from transports.cuda_ipc.emulation import parse_machine

    with pytest.raises(ValueError, match="COLLECTIVES_EMULATED_DEVICES"):
        parse_machine(text)


@ranks(3)
def test_counts_that_change_between_others_only(comm):
    """Rank 0 sends and receives as before; what the two others exchange is another."""
    for between in (2, 5, 2):
        sent = [[1, 1, 1], [1, 1, between], [1, between, 1]]
        mine, taken = sent[comm.rank], [row[comm.rank] for row in sent]
        x = on_device(np.repeat(np.arange(3) + 10 * comm.rank, mine))
        found = comm.alltoall(x, counts=(mine, taken))
        assert np.array_equal(found.get(), np.repeat(10 * np.arange(3) + comm.rank, taken))


@emulated_only
@hosted(2, 3)
def test_without_memory_operations_hosts_wait(comm):
    for algorithm in ("ring", "tree", "one_shot", "two_shot"):
        x = on_device(given(comm.rank))
        assert np.array_equal(comm.allreduce(x, algorithm=algorithm).get(), total(comm))
    y = comm.empty(1000, device="cuda")
    y.set(given(comm.rank))
    comm.allreduce(y, out=y, algorithm="one_sided")
    assert np.array_equal(y.get(), total(comm))


def test_more_ranks_than_a_fold_takes_are_refused():
    def body():
        from collectives import device_connecting

        device_connecting.MOST_OPERANDS = 0
        with collectives.init() as comm, raising(ValueError, "at most 0 ranks", "found 1"):
            comm.empty(3, device="cuda")

    from harness.processes import Ranks

    with Ranks(body, 1, environment=DEVICES) as job:
        assert [outcome.text for outcome in job.outcomes()] == [""]


@emulated_only
def test_host_memory_that_a_device_does_not_take():
    def body(comm):
        from transports.cuda_ipc.device import DeviceError
        from transports.cuda_ipc.emulated_array import emulated_device

        def refuse(address, nbytes):
            raise DeviceError("no more registered memory")

        if comm.rank == 1:
            emulated_device().register = refuse
        with raising(collectives.CollectiveError, "rank 1", "no more registered memory"):
            comm.allreduce(on_device(given(comm.rank)))
        assert not emulated_device()._registered
        return float(comm.allreduce(np.ones(1))[0])

    assert launch.spawn(body, 2, environment=DEVICES, timeout=60) == [2.0, 2.0]


@emulated_only
def test_devices_that_are_apart_are_named_once(capfd):
    def body(comm):
        for _ in range(3):
            comm.allreduce(on_device(given(comm.rank))).get()
        return comm.rank

    machine = {"COLLECTIVES_EMULATED_DEVICES": "devices=2,apart=0-1"}
    launch.spawn(body, 2, environment=machine, timeout=60)
    said = capfd.readouterr()
    assert (said.out + said.err).count("messages between ranks 0 and 1 go by the host's") == 1


@ranks(2)
def test_numbers_too_small_to_be_normal_stay(comm):
    tiny = np.float32(2.0**-140)
    mine = (np.arange(1, 9) * (1 + comm.rank) * tiny).astype(np.float32)
    both = [(np.arange(1, 9) * (1 + rank) * tiny).astype(np.float32) for rank in range(2)]
    for op, wanted in (("sum", both[0] + both[1]), ("max", both[1]), ("min", both[0])):
        assert np.array_equal(comm.allreduce(on_device(mine), op=op).get(), wanted)
    assert (wanted > 0).all()


@emulated_only
@ranks(2)
def test_arrays_that_are_not_contiguous(comm):
    import torch

    x, out = (comm.empty((6, 50), torch.float32, device="cuda") for _ in range(2))
    values = torch.arange(300.0).reshape(6, 50) + comm.rank
    x.copy_(values)
    out.zero_()
    total = 2 * torch.arange(300.0).reshape(6, 50) + 1
    assert torch.equal(comm.allreduce(x.t()), total.t())
    assert comm.allreduce(x[:, ::2], out=out[:, ::2]) is not None
    assert torch.equal(out[:, ::2], total[:, ::2]) and not out[:, 1::2].any()
    assert torch.equal(x, values), "the input stays"
