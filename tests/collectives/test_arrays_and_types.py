"""Arrays of every kind, layout and element type, numpy's and torch's; and those refused."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import torch
from harness.batches import Batch
from harness.errors import refused, still_works

ranks = Batch()

MOVING = ("broadcast", "gather", "allgather", "scatter", "alltoall")
REDUCING = ("allreduce", "reduce", "reduce_scatter")
RECORD = np.dtype([("id", "<i4"), ("at", "<f8", (2, 3)), ("in", [("a", "u1"), ("b", "<i8")])])
PADDED = np.dtype([("a", "i1"), ("b", "<f8")], align=True)
MANY = np.dtype([(f"a field with a long name, number {i}", "<f4") for i in range(60)])


def moved(comm, name, rows):
    """(what the collective gives, what it must give) of `rows`, row r being rank r's part."""
    size, rank = comm.size, comm.rank
    if name == "broadcast":
        return comm.broadcast(rows[rank], root=size - 1), rows[size - 1]
    if name == "gather":
        found = comm.gather(rows[rank], root=0)
        return (found, rows) if rank == 0 else (None, None)
    if name == "allgather":
        return comm.allgather(rows[rank]), rows
    if name == "scatter":
        return comm.scatter(rows if rank == 0 else None), rows[rank]
    return comm.alltoall(rows), rows[[rank] * size]


def raw(x):
    """The bytes, whatever the type."""
    # tobytes() does not keep what lies between the fields of a record.
    return x if x is None else x.tolist() if x.dtype == PADDED else x.tobytes()


@ranks(1, 2)
def test_numpy_types_that_are_only_moved(comm):
    for dtype in (
        "complex64", "complex128", "M8[ns]", "m8[s]", "S5", "U3", ">f4", ">i8", "longdouble", "V7",
        np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.int4), RECORD, PADDED, MANY,
    ):  # fmt: skip
        dtype = np.dtype(dtype)
        count = comm.size * 4 * dtype.itemsize
        rows = (np.arange(count) % 61).astype(np.uint8).view(dtype).reshape(comm.size, 4)
        for name in MOVING:
            found, wanted = moved(comm, name, rows)
            assert raw(found) == raw(wanted), (dtype, name)
            assert found is None or (found.dtype, found.shape) == (dtype, wanted.shape), (
                dtype, name, found.dtype)  # fmt: skip
        out = np.zeros(4, dtype)
        assert comm.broadcast(rows[comm.rank], out=out) is out and raw(out) == raw(rows[0])
        x = rows[comm.rank].copy()
        assert comm.broadcast(x, out=x) is x and raw(x) == raw(rows[0])


@ranks(2)
def test_what_cannot_be_reduced_is_refused_by_name(comm):
    for dtype in ("complex64", "complex128", "M8[ns]", "m8[s]", "S5", ">f4", "longdouble", RECORD):
        x = np.zeros((comm.size, 2), dtype)
        for name in REDUCING:
            refused(comm, TypeError, ["sum is not defined for", "float32"],
                    lambda x=x, name=name: getattr(comm, name)(x))  # fmt: skip
    refused(comm, TypeError, ["sum is not defined for <U1;"],
            lambda: comm.allreduce(np.array(["a"])))  # fmt: skip
    for dtype in (torch.complex64, torch.complex128, torch.float8_e4m3fn):
        x = torch.zeros((comm.size, 2), dtype=dtype)
        refused(comm, TypeError, ["sum is not defined for", str(dtype)[6:]],
                lambda x=x: comm.allreduce(x))  # fmt: skip


@ranks(2)
def test_every_type_that_reduces_does_in_both_families(comm):
    types = ["float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16",
             "uint32", "uint64", "bool"]  # fmt: skip
    for dtype in types:
        x = (np.arange(9) % 3 + comm.rank).astype(dtype)
        both = [(np.arange(9) % 3 + rank).astype(dtype) for rank in range(comm.size)]
        wanted = (both[0] | both[1]) if dtype == "bool" else (both[0] + both[1])
        found = comm.allreduce(x)
        assert found.dtype == x.dtype and np.array_equal(found, wanted), dtype
        found = comm.allreduce(torch.from_numpy(x))
        assert isinstance(found, torch.Tensor), dtype
        assert np.array_equal(found.numpy(), wanted) and found.numpy().dtype == x.dtype, dtype


@ranks(2)
def test_bfloat16_in_both_families(comm):
    values = np.array([1.5, -2.0, 256.0, np.inf, 3.0]) * (comm.rank + 1)
    for x in (values.astype(ml_dtypes.bfloat16), torch.tensor(values, dtype=torch.bfloat16)):
        kind, dtype = type(x), x.dtype
        for name in REDUCING[:2]:
            found = getattr(comm, name)(x)
            if found is None:
                continue
            assert type(found) is kind and found.dtype == dtype
            assert [float(v) for v in found] == [4.5, -6.0, 768.0, np.inf, 9.0]
        rows = comm.allgather(x)
        assert rows.dtype == dtype and float(rows[1][0]) == 3.0
        again = comm.scatter(rows if comm.rank == 0 else None)
        assert type(again) is kind and again.dtype == dtype
        assert float(again[0]) == 1.5 * (comm.rank + 1)
        assert float(comm.allreduce(x, op="avg")[0]) == 2.25


@ranks(2)
def test_one_rank_may_bring_numpy_and_another_torch(comm):
    x = np.arange(4.0, dtype=np.float32)
    found = comm.allreduce(x if comm.rank == 0 else torch.from_numpy(x))
    assert isinstance(found, np.ndarray if comm.rank == 0 else torch.Tensor)
    assert found.tolist() == [0, 2, 4, 6]


@ranks(1, 2)
def test_layouts_of_numpy(comm):
    base = np.arange(24.0).reshape(4, 6)
    layouts = {
        "fortran": np.asfortranarray(base),
        "transposed": base.T,
        "strided": base[::2, ::3],
        "backwards": base[::-1, ::-1],
        "spread": np.broadcast_to(base[0], (3, 6)),
        "scalar": np.array(3.5),
        "numpy scalar": np.float64(3.5),
        "empty": np.empty((0, 3)),
        "empty behind": np.empty((3, 0)),
        "one": np.ones((1, 1, 1)),
    }
    for name, x in layouts.items():
        kept = np.array(x)
        found = comm.allreduce(x)
        assert found.shape == np.shape(x), name
        assert np.array_equal(found, comm.size * kept), name
        assert np.array_equal(x, kept), name
        rows = comm.allgather(x)
        assert rows.shape == (comm.size, *np.shape(x)), name
        assert all(np.array_equal(row, kept) for row in rows), name
        assert np.array_equal(comm.alltoall(rows), rows), name
        assert np.array_equal(comm.scatter(rows[:, ...]), kept), name
        assert np.array_equal(comm.reduce_scatter(rows), comm.size * kept), name


@ranks(1, 2)
def test_out_of_any_layout(comm):
    x = np.arange(6.0).reshape(2, 3)
    base = np.zeros((6, 9))
    outs = {
        "strided": base[::3, ::3],
        "backwards": np.zeros((2, 3))[::-1, ::-1],
        "fortran": np.zeros((2, 3), order="F"),
    }
    for name, out in outs.items():
        out[...] = 0
        assert comm.allreduce(x, out=out) is out, name
        assert np.array_equal(out, comm.size * x), name
        assert comm.scatter(np.stack([x] * comm.size), out=out) is out, name
        assert np.array_equal(out, x), name
        assert comm.allreduce(x, out=out, async_op=True).wait() is out, name
        assert np.array_equal(out, comm.size * x), name
    assert np.count_nonzero(base) == 5  # nothing beside the view was written
    view = np.arange(12.0).reshape(4, 3)[::2]
    kept = view.copy()
    assert comm.allreduce(view, out=view) is view
    assert np.array_equal(view, comm.size * kept)
    every = np.zeros((3, comm.size)).T
    comm.allgather(np.arange(3.0) + comm.rank, out=every)
    assert every.tolist() == [[r, r + 1, r + 2] for r in range(comm.size)]


@ranks(1, 2)
def test_layouts_of_torch(comm):
    base = torch.arange(24.0).reshape(4, 6)
    z = torch.tensor([1 + 2j, 3 - 4j])
    layouts = {
        "transposed": base.T,
        "strided": base[::2, ::3],
        "expanded": base[0].expand(3, 6),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 3),
        "channels last": torch.arange(24.0).reshape(1, 2, 3, 4).to(
            memory_format=torch.channels_last),
        "negative": torch.tensor([1j, 2j]).conj().imag,
    }  # fmt: skip
    for name, x in layouts.items():
        kept = x.clone()
        found = comm.allreduce(x)
        assert isinstance(found, torch.Tensor) and found.shape == x.shape, name
        assert torch.equal(found, comm.size * kept) and torch.equal(x, kept), name
        assert torch.equal(comm.allgather(x)[-1], kept), name
    for x in (z, z.conj()):
        assert torch.equal(comm.broadcast(x), x.resolve_conj())
    out = torch.zeros(2, dtype=torch.complex64).conj()
    assert comm.broadcast(z, out=out) is out
    assert torch.equal(out, z)
    out = torch.zeros(6, 4).T
    assert comm.allreduce(base, out=out) is out
    assert torch.equal(out, comm.size * base)


@ranks(1, 2)
def test_tensors_that_require_gradients(comm):
    x = torch.nn.Parameter(torch.arange(3.0))
    found = comm.allreduce(x)
    assert not found.requires_grad and found.tolist() == [0, comm.size, 2 * comm.size]
    y = (x * 2)[::2]
    assert comm.allreduce(y).tolist() == [0, 4 * comm.size]
    assert comm.broadcast(x, out=x) is x and x.requires_grad
    assert comm.allreduce(torch.ones(3), out=x) is x
    assert x.tolist() == [comm.size] * 3


@ranks(1, 2)
def test_torch_default_device_is_not_ours(comm):
    torch.set_default_device("meta")
    try:
        x = torch.ones(3, device="cpu")
        assert comm.allreduce(x).device.type == "cpu"
        assert comm.scatter(torch.ones((comm.size, 2), device="cpu")).tolist() == [1, 1]
    finally:
        torch.set_default_device("cpu")


@ranks(1, 2)
def test_tensors_that_are_refused_by_name(comm):
    sparse = torch.eye(2).to_sparse()
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    quantized = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    for x, words in (
        (torch.ones(2, device="meta"), ["cpu", "meta"]),
        (sparse, ["dense", "sparse_coo"]),
        (nested, ["dense", "nested"]),
        (quantized, ["quantized", "qint8"]),
    ):
        for call in (comm.allreduce, comm.broadcast, comm.allgather):
            refused(comm, TypeError, words, lambda x=x, call=call: call(x))


@ranks(1, 2)
def test_arrays_that_are_refused_by_name(comm):
    for x, words in (
        (np.array([{}] * comm.size), ["object", "broadcast_object"]),
        (np.zeros(comm.size, [("a", "O")]), ["broadcast_object"]),
        (np.ma.array([1.0, 2.0], mask=[0, 1]), ["masked"]),
        ([1.0, 2.0], ["numpy array", "torch tensor", "cupy array", "builtins.list"]),
        (1.5, ["builtins.float"]),
        ("text", ["builtins.str"]),
        (None, ["NoneType", "scatter"]),
        (memoryview(b"ab"), ["memoryview"]),
    ):
        for call in (comm.allreduce, comm.broadcast, comm.allgather, comm.reduce, comm.gather,
                     comm.alltoall, comm.reduce_scatter):  # fmt: skip
            refused(comm, TypeError, words, lambda x=x, call=call: call(x))
    if comm.size == 1:
        refused(comm, TypeError, ["builtins.list"], lambda: comm.scatter([1]))


@ranks(1, 2)
def test_subclasses_of_arrays_are_arrays(comm):
    assert comm.allreduce(np.matrix([[1.0, 2.0]])).tolist() == [[comm.size, 2 * comm.size]]
    x = np.ones((comm.size, 2)).view(np.recarray)
    assert comm.alltoall(x).tolist() == x.tolist()


@ranks(1, 2)
def test_a_read_only_x_is_welcome(comm):
    x = np.arange(3.0)
    x.flags.writeable = False
    assert comm.allreduce(x).tolist() == [0, comm.size, 2 * comm.size]
    assert np.array_equal(comm.allgather(np.frombuffer(b"abc", np.uint8))[0], list(b"abc"))
    still_works(comm)


@ranks(2)
def test_a_read_only_out_is_refused(comm):
    x = np.arange(3.0)
    outs = [np.zeros(3), np.zeros(6)[::2], np.zeros(3, "M8[s]"), np.zeros(3, RECORD)]
    for out in outs:
        given = x.astype(out.dtype) if out.dtype != RECORD else np.zeros(3, RECORD)
        out.flags.writeable = False
        for asynchronous in (False, True):
            for call in (comm.broadcast, comm.alltoall):
                given = given[: comm.size] if call == comm.alltoall else given
                out = out[: comm.size] if call == comm.alltoall else out
                refused(comm, ValueError, ["out", "read-only"],
                        lambda c=call, g=given, o=out, a=asynchronous: c(g, out=o, async_op=a)
                        )  # fmt: skip
    refused(comm, ValueError, ["out"],
            lambda: comm.allreduce(torch.ones(3), out=torch.zeros(1).expand(3)))  # fmt: skip


@ranks(1, 2)
def test_partly_overlapping_x_and_out_are_refused(comm):
    memory = np.arange(40.0)
    tensor = torch.arange(40.0)
    views = [
        (memory[:10], memory[1:11]),
        (memory[:10], memory[9:19]),
        (memory[:20:2], memory[2:12]),
        (memory[:20:2], memory[2:22:2]),
        (memory[:10], memory[9::-1]),
        (memory[:9].reshape(3, 3), memory[:9].reshape(3, 3).T),
        (tensor[:10], tensor[1:11]),
        (tensor[:20:2], tensor[2:22:2]),
    ]
    for x, out in views:
        kept = memory.copy()
        for asynchronous in (False, True):
            for call in (comm.allreduce, comm.broadcast):
                refused(comm, ValueError, ["overlap", "out=x"],
                        lambda c=call, x=x, o=out, a=asynchronous: c(x, out=o, async_op=a)
                        )  # fmt: skip
        assert np.array_equal(memory, kept)
    if comm.size > 1:
        refused(comm, ValueError, ["overlap"],
                lambda: comm.alltoall(memory[: comm.size], out=memory[1 : comm.size + 1])
                )  # fmt: skip
        rows = np.zeros((comm.size, 3))
        refused(comm, ValueError, ["overlap"], lambda: comm.allgather(rows[0], out=rows))
        refused(comm, ValueError, ["overlap"], lambda: comm.reduce_scatter(rows, out=rows[1]))


@ranks(1, 2)
def test_views_that_share_no_element_do_not_overlap(comm):
    memory = np.arange(12.0)
    comm.allreduce(memory[::2], out=memory[1::2])
    assert memory[1::2].tolist() == [comm.size * v for v in (0, 2, 4, 6, 8, 10)]
    tensor = torch.arange(12.0)
    comm.allreduce(tensor[::2], out=tensor[1::2])
    assert tensor[1::2].tolist() == memory[1::2].tolist()
    same = memory[:]
    comm.allreduce(memory, out=same)  # another view of the very same memory
    strided = memory[::3]
    comm.allreduce(strided, out=memory[::3])
