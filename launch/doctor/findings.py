"""What a check has found: a line of the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """How well what was found will do."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line.

    Attributes:
        subject: what was looked at.
        verdict: whether it will do.
        found: what was found.
        advice: what to do, as an imperative sentence; empty where all is well.
        details: what was found, one by one.
    """

    subject: str
    verdict: Verdict
    found: str
    advice: str = ""
    details: tuple[str, ...] = ()


def fine(subject: str, found: str, details: Sequence[str] = ()) -> Finding:
    """All is well."""
    return Finding(subject=subject, verdict=Verdict.OK, found=found, details=tuple(details))


def warning(subject: str, found: str, advice: str, details: Sequence[str] = ()) -> Finding:
    """It works, but slower than it might, or not everywhere, or without noticing something."""
    verdict = Verdict.WARNING
    return Finding(
        subject=subject, verdict=verdict, found=found, advice=advice, details=tuple(details)
    )


def problem(subject: str, found: str, advice: str, details: Sequence[str] = ()) -> Finding:
    """It does not work."""
    verdict = Verdict.PROBLEM
    return Finding(
        subject=subject, verdict=verdict, found=found, advice=advice, details=tuple(details)
    )


def size_text(size: float) -> str:
    """Bytes as people say them: 1.5 GiB."""
    for unit, name in ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size:.0f} bytes"
