"""A carrier whose MPI fails: what no MPI library does on demand, by functions of our own."""

from __future__ import annotations

import ctypes
import os
from ctypes import CFUNCTYPE, POINTER, c_int, c_void_p
from types import SimpleNamespace

import pytest

from transports import _native
from transports.errors import PeerLostError
from transports.mpi.library import FUNCTIONS, MpiError, _addresses
from transports.mpi.world import World
from transports.shm.connection import Geometry, offer

SEND = CFUNCTYPE(c_int, c_void_p, c_int, c_void_p, c_int, c_int, c_void_p, c_void_p)
ONE = CFUNCTYPE(c_int, c_void_p)
TEST = CFUNCTYPE(c_int, c_void_p, POINTER(c_int), c_void_p)
TEXT = CFUNCTYPE(c_int, c_int, POINTER(ctypes.c_char * 1024), POINTER(c_int))


class FailingMpi:
    """Takes receives, which never end, and fails in what is named."""

    def __init__(self, *fails: str) -> None:
        def code(name):
            return 5 if name in fails else 0

        def test(request, flag, status):
            flag[0] = 0
            return code("MPI_Test")

        def text(number, room, length):
            room[0].value = b"the wire is cut"
            return 0

        self._functions = [
            SEND(lambda *_: code("MPI_Isend")), SEND(lambda *_: code("MPI_Irecv")),
            SEND(lambda *_: code("MPI_Recv_init")), ONE(lambda _: code("MPI_Start")), TEST(test),
            ONE(lambda _: 0), ONE(lambda _: 0), TEXT(text),
        ]  # fmt: skip
        self.addresses = [ctypes.cast(each, c_void_p).value for each in self._functions]


@pytest.fixture
def region():
    descriptor = offer(Geometry(), 2)
    yield descriptor
    os.close(descriptor)


def carrier_on(region, mpi):
    return _native.Carrier(region, 0, mpi.addresses, 0, 0, -1, [0, 1], [0, 1], 0)


@pytest.mark.parametrize("failing", ["MPI_Isend", "MPI_Test"])
def test_what_mpi_fails_is_told_and_the_carrier_ends(region, failing):
    mpi = FailingMpi(failing)
    carrier = carrier_on(region, mpi)
    try:
        people = [("here", os.getpid(), -1), ("there", 1, -1)]
        engine = _native.Engine(region, 0, people, False, carrier)
        point_to_point = _native.PointToPoint(engine)
        words = f"rank 0 cannot reach the ranks of other hosts: {failing} failed: the wire is cut"
        with pytest.raises(PeerLostError, match=words):
            for _ in range(1000):
                operation = point_to_point.post_send(b"12345678", 8, 1, 0, "bytes")
                point_to_point.wait(operation, 5.0)
        assert carrier.broken and not carrier.done
        assert carrier.progress() is False  # and comes back
        point_to_point.close()
        engine.close()
    finally:
        carrier.stop()
    assert carrier.done


@pytest.mark.parametrize("failing", ["MPI_Recv_init", "MPI_Start"])
def test_an_mpi_that_takes_no_receives(region, failing):
    mpi = FailingMpi(failing)
    with pytest.raises(RuntimeError, match="MPI takes no receives"):
        carrier_on(region, mpi)


def test_arguments_that_do_not_fit(region):
    mpi = FailingMpi()
    with pytest.raises(ValueError, match="expected the addresses of 8 functions, found 0"):
        _native.Carrier(region, 0, [], 0, 0, -1, [0, 1], [0, 1], 0)
    with pytest.raises(ValueError, match="a function of MPI is missing"):
        _native.Carrier(region, 0, [0] * 8, 0, 0, -1, [0, 1], [0, 1], 0)
    with pytest.raises(ValueError, match="one of 2 ranks, expected 3"):
        _native.Carrier(region, 0, mpi.addresses, 0, 0, -1, [0, 1, 2], [0, 1, 1], 0)
    with pytest.raises(ValueError, match="a host for each rank"):
        _native.Carrier(region, 0, mpi.addresses, 0, 0, -1, [0, 1], [0], 0)


def test_a_library_without_a_function_and_tags_that_end():
    with pytest.raises(MpiError, match=r"has no MPI_Isend"):
        _addresses(SimpleNamespace(__file__=_native.__file__), FUNCTIONS)
    world = SimpleNamespace(Get_rank=lambda: 0, Get_size=lambda: 1, Get_attr=lambda _: 32767)
    library = SimpleNamespace(mpi=SimpleNamespace(COMM_WORLD=world, TAG_UB=0))
    found = World(library)
    assert found.tag_of(8) == 48
    with pytest.raises(MpiError, match="communicator 5461 would need tags beyond 32767"):
        found.tag_of(5461)
