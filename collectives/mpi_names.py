"""What MPI calls our operations and types; needs nothing, so that any Python with an MPI has it."""

from __future__ import annotations

OPS = {
    "sum": "SUM", "prod": "PROD", "min": "MIN", "max": "MAX", "band": "BAND", "bor": "BOR",
    "bxor": "BXOR", "land": "LAND", "lor": "LOR", "lxor": "LXOR",
}  # fmt: skip
"""Attributes of mpi4py.MPI; avg is none of MPI's."""

TYPES = {"float32": "FLOAT", "float64": "DOUBLE", "bool": "C_BOOL"} | {
    name: f"{name.upper()}_T"
    for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
}
"""Those that every MPI library reduces: no 16-bit floats."""
