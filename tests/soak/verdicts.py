"""What may come of a fault, and whether it did."""

from __future__ import annotations

import collectives
from soak.fault_kinds import CALLS, ENDS, Fault
from soak.faulty import Clock, Told
from soak.forked_ranks import Ending

HANG, CRASH, WRONG, LEAK, CLASS, MISSED, NAME = (
    "hang", "crash", "wrong answer", "leak", "wrong error class", "missed", "not named",
)  # fmt: skip
ANOMALIES = (HANG, CRASH, WRONG, LEAK, CLASS, MISSED, NAME)
"""All that is wrong, the worst first. `missed`: a rank has noticed nothing and should have."""

ANY_ERROR = {
    name for name in dir(collectives)
    if isinstance(kind := getattr(collectives, name), type)
    and issubclass(kind, collectives.CollectiveError)
}  # fmt: skip


def allowed(fault: Fault) -> set[str]:
    """What a rank other than the faulty one may raise; empty: it must raise nothing."""
    if fault.kind == "freezes for a moment":
        return set()
    if fault.kind == "bad bytes":
        return ANY_ERROR | {""}
    if fault.kind in ENDS:
        found = "PeerLostError"
    elif fault.kind == "freezes for ever":
        found = "CollectiveTimeout"
    elif fault.kind == "raises":
        found = "AbortedError"
    else:
        return {"MismatchError"}
    # On a communicator without the faulty rank others hear of whoever left it for that reason.
    return {found, "PeerLostError", "AbortedError"} if fault.has_splits else {found}


def judge(fault: Fault, endings: list[Ending], clock: Clock) -> list[tuple[str, str]]:
    """Anomalies, each with the words for it."""
    found: list[tuple[str, str]] = []
    makes_another_call = fault.kind.startswith("other ") or fault.kind in CALLS
    for rank, ending in enumerate(endings):
        is_faulty = rank == fault.rank
        told: Told | None = ending.value
        who = f"rank {rank}" + (" (the faulty one)" if is_faulty else "")
        if told is None:
            if is_faulty and (fault.kind in ENDS or fault.kind == "freezes for ever"):
                continue
            kind = HANG if ending.is_late else CRASH
            found.append((kind, f"{who}: exit code {ending.code}: {ending.output}"))
            continue
        what = f"{who}, operation {told.number}: {told.error}: {told.text}"
        if told.left:
            found.append((LEAK, f"{who}: left over: {told.left}"))
        if told.error == "WrongResult":
            found.append((WRONG, what))
        elif is_faulty and not makes_another_call and fault.kind != "bad bytes":
            expected = {"raises": "Stumble", "leaves early": "SystemExit"}.get(fault.kind, "")
            if told.error != expected:
                found.append((CLASS, f"{what}; expected {expected or 'nothing'}"))
        else:
            found += _judge_error(fault, told, what)
    return found


def _judge_error(fault: Fault, told: Told, what: str) -> list[tuple[str, str]]:
    may = allowed(fault)
    if told.error in may:
        # A receive from anyone fails by the end of all others.
        named = f"rank {fault.rank}" in told.text or "every other rank ended" in told.text
        if fault.kind in (*ENDS, "freezes for ever") and not fault.has_splits and not named:
            return [(NAME, what)]
        return []
    if not told.error:
        return [(MISSED, what)] if may else []
    return [(CLASS, f"{what}; expected {' or '.join(sorted(may)) or 'nothing'}")]


def detections(fault: Fault, clock: Clock, size: int) -> list[float]:
    """Seconds from the fault to each other rank's raise."""
    begin = clock.at(0)
    return [
        (at - begin) / 1e9
        for rank in range(size)
        if rank != fault.rank and begin and (at := clock.at(rank + 1))
    ]
