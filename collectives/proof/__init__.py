"""Proof that a schedule achieves its collective, with the least buffering any engine has.

`verify` runs all ranks of an algorithm symbolically: every chunk carries the *expression* of how
it was made, and every rank has a single slot. One-sided steps run on one memory a rank, with
vector clocks that tell which access is ordered after which. What it finds is a `ProofError` naming
rank, step, chunk, expected and found; what it passes is a `Certificate`.
"""

from collectives.proof.failure import ProofError
from collectives.proof.verification import Certificate, verify

__all__ = ["Certificate", "ProofError", "verify"]
