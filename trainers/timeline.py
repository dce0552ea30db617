"""The last steps of a run in time: a file that ui.perfetto.dev and chrome://tracing open.

Each rank is a process with two rows: what its program did, and the allreduces of its buckets. The
format is the Trace Event Format: complete events ("X") with begin and length in microseconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainers.step_times import StepRecord

if TYPE_CHECKING:
    from collectives import Communicator

PROGRAM, COMMUNICATION = 0, 1
"""The two rows of a rank."""

LOSS = "part of the loss"
"""This rank's: those of all ranks add up to the mean over the global batch."""


def write_trace(
    path: Path, comm: Communicator, records: Iterable[StepRecord], bucket_bytes: Sequence[int]
) -> None:
    """Writes the steps of all ranks into one file, on rank 0. A collective call.

    Args:
        path: of the file.
        comm: the ranks.
        records: this rank's steps.
        bucket_bytes: of each bucket.
    """
    everyones: list[list[StepRecord]] = comm.allgather_object(list(records))
    if comm.rank != 0:
        return
    origin = min((each[0].began for each in everyones if each), default=0.0)
    events = [
        event
        for rank, theirs in enumerate(everyones)
        for event in _events(rank, theirs, bucket_bytes, origin)
    ]
    path.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}), encoding="utf-8")


def _events(
    rank: int, records: Sequence[StepRecord], bucket_bytes: Sequence[int], origin: float
) -> Iterator[dict[str, Any]]:
    yield {"ph": "M", "name": "process_name", "pid": rank, "args": {"name": f"rank {rank}"}}
    for row, name in ((PROGRAM, "program"), (COMMUNICATION, "communication")):
        yield {
            "ph": "M", "name": "thread_name", "pid": rank, "tid": row, "args": {"name": name}
        }  # fmt: skip

    def event(row: int, name: str, begin: float, end: float, **facts: Any) -> dict[str, Any]:
        return {
            "ph": "X", "name": name, "pid": rank, "tid": row, "ts": 1e6 * (begin - origin),
            "dur": 1e6 * (end - begin), "args": facts,
        }  # fmt: skip

    for each in records:
        ready, done = each.backward.ready, each.backward.done
        facts = {LOSS: each.loss}
        yield event(PROGRAM, f"step {each.step + 1}", each.began, each.ended, **facts)
        if each.data:
            yield event(PROGRAM, "data", each.began, each.began + each.data)
        yield event(PROGRAM, "forward", each.began + each.data, each.forward)
        yield event(PROGRAM, "backward", each.forward, ready)
        yield event(PROGRAM, "late and exposed", ready, done)
        yield event(PROGRAM, "optimizer", done, each.ended)
        for number, (begin, end) in enumerate(each.backward.calls):
            name = f"allreduce {number + 1}"
            yield event(COMMUNICATION, name, begin, end, bytes=bucket_bytes[number])
