"""In which type a model computes: float32, or bfloat16 where all ranks' processors have it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from collectives import Communicator

Precision = Literal["auto", "float32", "bfloat16"]

# Words among the processor's features (x86: flags, Arm: Features) that mean products of bfloat16 in
# hardware. Without them they are emulated, slower than float32.
_WORDS = {"avx512_bf16", "amx_bf16", "bf16"}


def has_native_bfloat16(description: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this machine's processor multiplies bfloat16 by itself."""
    try:
        text = description.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return not _WORDS.isdisjoint(text.split())


@contextlib.contextmanager
def subnormals_flushed() -> Iterator[None]:
    """While it lasts, this thread takes numbers too small to be normal for zero.

    Averages of gradients that have stopped coming shrink to such numbers, with which some
    processors take a hundred times as long: a step of an optimizer grew from 0.8 to 16 ms.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def agreed_precision(comm: Communicator, wanted: Precision, *, fast: bool) -> torch.dtype:
    """The type all ranks compute in: with `auto`, bfloat16 only if all are `fast` in it."""
    all_are = wanted == "auto" and all(comm.allgather_object(fast))
    return precision_of(wanted, fast=all_are)


def precision_of(wanted: Precision, *, fast: bool) -> torch.dtype:
    """The type to compute in, where processors are `fast` in bfloat16 or not."""
    return torch.bfloat16 if wanted == "bfloat16" or (wanted == "auto" and fast) else torch.float32
