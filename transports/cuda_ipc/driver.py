"""What cupy has no words for, from the driver itself: words that streams wait for and set.

`cuStreamBatchMemOp` takes several at once, in order. The structures are those of cuda.h, where
each operation is a union of 48 bytes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache

from transports.cuda_ipc.device import DeviceError, Signal

LIBRARY = "libcuda.so.1"
NOT_READY = 600
NOT_SUPPORTED = 801

_WAIT_32, _WRITE_32 = 1, 2
_WAIT_AND = 2  # until (*address & value) != 0
_WRITE_DEFAULT = 0  # after a barrier: what came before on the stream is visible to all
_MOST_OPERATIONS = 255  # of one call
_RELAXED = 2  # what a thread may do while another captures: anything


class MemoryOperation(ctypes.Structure):
    """`CUstreamBatchMemOpParams`, as far as 32-bit waits and writes need it."""

    _fields_ = (
        ("operation", ctypes.c_uint),
        ("address", ctypes.c_uint64),
        ("value", ctypes.c_uint64),
        ("flags", ctypes.c_uint),
        ("alias", ctypes.c_uint64),
        ("rest", ctypes.c_uint64),
    )


class DriverError(DeviceError):
    """An error of the driver's; `code` is its `CUresult`."""

    def __init__(self, call: str, code: int, text: str) -> None:
        super().__init__(f"{call}: {text} ({code})")
        self.code = code


@cache
def _library() -> ctypes.CDLL:
    try:
        return ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise DeviceError(f"there is no NVIDIA driver: {error}") from None


def call_driver(name: str, *arguments: object) -> None:
    """Call a function of the driver.

    Raises:
        DeviceError: it says that something went wrong, or there is no driver.
    """
    library = _library()
    code = getattr(library, name)(*arguments)
    if code != 0:
        text = ctypes.c_char_p()
        library.cuGetErrorString(code, ctypes.byref(text))
        said = text.value.decode() if text.value else "an error without a name"
        raise DriverError(name, code, said)


def operations_of(signals: Sequence[Signal]) -> list[ctypes.Array[MemoryOperation]]:
    """Signals as the driver reads them, as many a call as it takes."""
    each = [
        MemoryOperation(
            operation=_WAIT_32 if waits else _WRITE_32,
            address=flag,
            value=int(state),
            flags=_WAIT_AND if waits else _WRITE_DEFAULT,
        )
        for flag, state, waits in signals
    ]
    return [
        (MemoryOperation * len(part))(*part)
        for begin in range(0, len(each), _MOST_OPERATIONS)
        if (part := each[begin : begin + _MOST_OPERATIONS])
    ]


def put_operations(stream: int, batches: Sequence[ctypes.Array[MemoryOperation]]) -> None:
    """Put them on a stream.

    Raises:
        DeviceError: it does not take them; with `code` NOT_SUPPORTED it never will.
    """
    for batch in batches:
        call_driver(
            "cuStreamBatchMemOp_v2", ctypes.c_void_p(stream), ctypes.c_uint(len(batch)), batch,
            ctypes.c_uint(0),
        )  # fmt: skip


def write_word(stream: int, address: int, value: int) -> None:
    """Set a word once all that is before it on the stream is done."""
    call_driver(
        "cuStreamWriteValue32_v2", ctypes.c_void_p(stream), ctypes.c_uint64(address),
        ctypes.c_uint32(value), ctypes.c_uint(_WRITE_DEFAULT),
    )  # fmt: skip


def is_done(stream: int) -> bool:
    """Whether all that was put on a stream is.

    By the driver and not by cupy, which keeps the interpreter's lock while it asks: a driver whose
    queues are full may not answer before another thread lets go what fills them.

    Raises:
        DeviceError: something of it, or on its device, went wrong.
    """
    try:
        call_driver("cuStreamQuery", ctypes.c_void_p(stream))
    except DriverError as error:
        if error.code == NOT_READY:
            return False
        raise
    return True


def allow_captures() -> None:
    """What this thread asks the driver is no reason to end a capture of another."""
    call_driver("cuThreadExchangeStreamCaptureMode", ctypes.byref(ctypes.c_int(_RELAXED)))


def device_pointer(host: int) -> int:
    """Where streams reach registered host memory."""
    found = ctypes.c_uint64()
    call_driver(
        "cuMemHostGetDevicePointer_v2", ctypes.byref(found), ctypes.c_void_p(host), ctypes.c_uint(0)
    )
    return int(found.value)


def uuid_of(ordinal: int) -> str:
    """Of the device with that number here; of a part of one, where it is divided (MIG)."""
    handle, raw = ctypes.c_int(), (ctypes.c_ubyte * 16)()
    call_driver("cuDeviceGet", ctypes.byref(handle), ctypes.c_int(ordinal))
    call_driver("cuDeviceGetUuid_v2", raw, handle)
    return bytes(raw).hex()
