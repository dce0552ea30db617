"""Element types and reduction operations, as users name them and as the native engine numbers them.

Any type can be moved; reductions are defined for those listed here.
"""

from __future__ import annotations

from collectives.specs import nearest

KERNEL_DTYPES = {
    "float16": 0,
    "bfloat16": 1,
    "float32": 2,
    "float64": 3,
    "int8": 4,
    "int16": 5,
    "int32": 6,
    "int64": 7,
    "uint8": 8,
    "uint16": 9,
    "uint32": 10,
    "uint64": 11,
    "bool": 12,
}
"""The numbers of `DType` in transports/native/kernels.hpp."""

KERNEL_OPS = {
    "sum": 0,
    "prod": 1,
    "min": 2,
    "max": 3,
    "band": 4,
    "bor": 5,
    "bxor": 6,
    "land": 7,
    "lor": 8,
    "lxor": 9,
}
"""The numbers of `Op` in transports/native/kernels.hpp."""

OPS = (*KERNEL_OPS, "avg")
_FLOATS = ("float16", "bfloat16", "float32", "float64")


def reduction(dtype: str, op: str | None) -> tuple[int, int, bool]:
    """The native (dtype, op, average) of a reduction.

    Raises:
        ValueError: there is no such op; the text lists the valid ones.
        TypeError: the op is no name, or not defined for the dtype.
    """
    if not isinstance(op, str):
        raise TypeError(f"op must be one of {', '.join(OPS)}, found {op!r}")
    if op not in OPS:
        raise ValueError(f"op must be one of {', '.join(OPS)}, found {op!r}" + nearest(op, OPS))
    if dtype not in KERNEL_DTYPES:
        raise TypeError(
            f"{op} is not defined for {dtype}; reductions take {', '.join(KERNEL_DTYPES)}"
        )
    number = KERNEL_DTYPES[dtype]
    if op == "avg":
        if dtype not in _FLOATS:
            raise TypeError(f"avg takes {', '.join(_FLOATS)}, found {dtype}")
        return number, KERNEL_OPS["sum"], True
    if dtype in _FLOATS and KERNEL_OPS[op] >= KERNEL_OPS["band"]:
        raise TypeError(f"{op} takes integers and bool, found {dtype}")
    return number, KERNEL_OPS[op], False
