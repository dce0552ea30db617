"""Every wrong argument is refused before anything is sent, naming expected and found."""

from __future__ import annotations

import numpy as np
from harness.batches import Batch
from harness.errors import raising, refused, still_works

from collectives.schedule import algorithm, recv, send

ranks = Batch()

PLAIN = ("allreduce", "reduce", "broadcast", "gather", "allgather")
MATRIX = ("scatter", "reduce_scatter", "alltoall")
ROOTED = ("reduce", "broadcast", "gather", "scatter")
REDUCING = ("allreduce", "reduce", "reduce_scatter")


@ranks(1, 3)
def test_op(comm):
    x = np.ones((comm.size, 2), np.float32)
    for name in REDUCING:
        call = getattr(comm, name)
        refused(comm, ValueError, ["sum, prod, min, max", "avg", "'sun'", "did you mean sum?"],
                lambda c=call: c(x, op="sun"))  # fmt: skip
        refused(comm, TypeError, ["op must be one of", "None"], lambda c=call: c(x, op=None))
        refused(comm, TypeError, ["op must be one of", "['sum']"], lambda c=call: c(x, op=["sum"]))
        refused(comm, TypeError, ["op must be one of", "7"], lambda c=call: c(x, op=7))
        refused(comm, TypeError, ["band takes integers and bool", "float32"],
                lambda c=call: c(x, op="band"))  # fmt: skip
        refused(comm, TypeError, ["avg takes float16", "int64"],
                lambda c=call: c(x.astype(int), op="avg"))  # fmt: skip
        refused(comm, TypeError, ["avg takes", "bool"],
                lambda c=call: c(x.astype(bool), op="avg"))  # fmt: skip
        refused(comm, TypeError, ["not defined for complex64", "float16"],
                lambda c=call: c(x.astype(np.complex64)))  # fmt: skip


@ranks(1, 3)
def test_root(comm):
    x = np.ones((comm.size, 2))
    for name in ROOTED:
        call = getattr(comm, name)
        for root in (comm.size, -1, 99):
            refused(comm, ValueError, [f"root must be in 0..{comm.size - 1}", f"found {root}"],
                    lambda c=call, r=root: c(x, root=r))  # fmt: skip
        for root in (0.0, "0", None, [0]):
            refused(comm, TypeError, ["root must be an integer", repr(root)],
                    lambda c=call, r=root: c(x, root=r))  # fmt: skip
        call(x, root=np.int8(0))
    refused(comm, ValueError, ["root must be in"],
            lambda: comm.broadcast_object(1, root=comm.size))  # fmt: skip


@ranks(1, 3)
def test_leading_axis(comm):
    size = comm.size
    for name in MATRIX:
        if name == "scatter" and comm.rank:
            continue  # what others pass is not read
        for x in (np.ones((size + 1, 2)), np.ones(()), np.ones((0, size))):
            call = getattr(comm, name)
            before = comm._engine.calls
            try:
                call(x)
            except ValueError as error:
                for word in (f"leading axis of length {size}", "number of ranks", str(x.shape)):
                    assert word in str(error), error
            else:
                raise AssertionError(name)
            assert comm._engine.calls == before
    still_works(comm)


@ranks(1, 3)
def test_out(comm):
    size, rank = comm.size, comm.rank
    x = np.ones((size, 2), np.float32)
    for name in (*PLAIN, *MATRIX):
        call = getattr(comm, name)
        keywords = {"root": 0} if name in ROOTED else {}
        if rank != 0 and name in ("reduce", "gather", "scatter"):
            for _ in range(6 if name == "scatter" else 5):
                still_works(comm)  # out counts at the root; of scatter see test_calls
            continue
        shape = {
            "gather": (size, size, 2), "allgather": (size, size, 2), "scatter": (2,),
            "reduce_scatter": (2,),
        }.get(name, (size, 2))  # fmt: skip
        wrong = [
            (np.zeros((*shape, 1), np.float32), ValueError, [str(shape), str((*shape, 1))]),
            (np.zeros(shape), TypeError, ["float32", "float64"]),
            (np.zeros(shape, ">f4"), TypeError, ["float32", ">f4"]),
            ([0.0], TypeError, ["builtins.list"]),
            (np.float32(0), TypeError, ["numpy.float32"]),
        ]
        if name == "scatter":
            wrong.append((np.zeros(7, np.float32), ValueError, ["(2,)", "(7,)"]))
        for out, kind, words in wrong:
            refused(comm, kind, ["out", *words],
                    lambda c=call, o=out, k=keywords: c(x, out=o, **k))  # fmt: skip
    read_only = np.zeros(2, np.float32)
    read_only.flags.writeable = False
    if rank == 0:
        refused(comm, ValueError, ["out", "read-only"], lambda: comm.scatter(x, out=read_only))
    else:
        still_works(comm)


@ranks(1, 3)
def test_algorithm(comm):
    @algorithm("broadcast")
    def star(rank, size, root):
        if rank != root:
            yield recv(root, chunk=0)
        elif size > 1:
            yield send([peer for peer in range(size) if peer != root], chunk=0)

    @algorithm("allreduce", sizes=(17,))
    def of_seventeen(rank, size):
        yield from ()

    x = np.ones((comm.size, 2))
    for name in (*PLAIN, *MATRIX):
        call = getattr(comm, name)
        given = x if comm.rank == 0 or name != "scatter" else None
        refused(comm, ValueError, ["unknown algorithm 'rng'", name, "ring", "did you mean ring?"],
                lambda c=call, g=given: c(g, algorithm="rng"))  # fmt: skip
        for wrong in (5, ["ring"], len):
            refused(comm, TypeError, ["algorithm must be a name", type(wrong).__name__],
                    lambda c=call, g=given, w=wrong: c(g, algorithm=w))  # fmt: skip
        if name != "broadcast":
            refused(comm, ValueError, ["star does broadcast", f"expected one for {name}"],
                    lambda c=call, g=given: c(g, algorithm=star))  # fmt: skip
    refused(comm, ValueError, ["unknown algorithm"], lambda: comm.barrier(algorithm="rng"))
    refused(comm, ValueError, ["of_seventeen", f"not written for {comm.size} ranks"],
            lambda: comm.allreduce(x, algorithm=of_seventeen))  # fmt: skip
    refused(comm, ValueError, ["relays" if comm.size > 3 else "counts"],
            lambda: comm.alltoall(x, counts=([1], [1, 2, 3, 4]), algorithm="bruck"))  # fmt: skip


@ranks(1, 3)
def test_timeout(comm):
    x = np.ones((comm.size, 2))
    for asynchronous in (False, True):
        for name in (*PLAIN, *MATRIX):
            call = getattr(comm, name)
            given = x if comm.rank == 0 or name != "scatter" else None
            for timeout, kind in ((0, ValueError), (-1.0, ValueError), (float("nan"), ValueError),
                                  ("soon", TypeError), ("5", TypeError), (b"5", TypeError),
                                  ([], TypeError)):  # fmt: skip
                refused(comm, kind, ["timeout must be", repr(timeout)],
                        lambda c=call, g=given, t=timeout, a=asynchronous:
                        c(g, timeout=t, async_op=a))  # fmt: skip
        refused(comm, ValueError, ["timeout must be positive"],
                lambda a=asynchronous: comm.barrier(timeout=0, async_op=a))  # fmt: skip
    assert comm.allreduce(x, timeout=5).shape == x.shape
    assert comm.allreduce(x, timeout=np.float32(5)).shape == x.shape


@ranks(1, 3)
def test_deterministic(comm):
    x = np.ones((comm.size, 2))
    for name in REDUCING:
        call = getattr(comm, name)
        for flag in ("yes", "", None, 2, 0.5, []):
            refused(comm, TypeError, ["deterministic must be True or False", f"found {flag!r}"],
                    lambda c=call, f=flag: c(x, deterministic=f))  # fmt: skip
        for flag in (True, 1, np.True_, False, 0, np.False_):
            call(x, deterministic=flag)


@ranks(1, 3)
def test_keywords_only_after_the_array(comm):
    x = np.ones(2)
    for call in (
        lambda: comm.allreduce(x, x),
        lambda: comm.broadcast(x, 0),
        lambda: comm.broadcast_object(x, 0),
        lambda: comm.barrier("ring"),
        lambda: comm.allreduce(x, root=0),
        lambda: comm.allreduce(),
    ):
        refused(comm, TypeError, ["argument"], call)


@ranks(3)
def test_a_wrong_argument_on_one_rank_sends_nothing_from_it(comm):
    if comm.rank == 1:
        with raising(ValueError, "sun"):
            comm.allreduce(np.ones(3), op="sun")
    still_works(comm)
