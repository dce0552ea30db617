"""What a rank of a contender does: asleep until asked, it makes cases ready, times and checks them.

Requests and answers are lines of JSON over one socket:

    {"do": "prepare", "key": 3, "case": {…}, "variant": "ring"}   {"most_calls": null, …}
    {"do": "time", "key": 3, "calls": 1000}                       {"seconds": 0.02}
    {"do": "part", "key": 3, "calls": 9, "part": "both", …}       {"seconds": 0.02}
    {"do": "check", "key": 3, "plant": 0}                         {"wrong": 0}
    {"do": "release", "key": 3}                                   {}
    {"do": "leave"}

An answer may be {"refused": text}, what this library does not carry, or {"failed": text}. Between
requests the rank is blocked in reading the socket: it takes nothing from whoever runs meanwhile.
"""

from __future__ import annotations

import json
import os
import socket
import traceback
from collections.abc import Callable
from functools import partial
from io import BufferedRWPair
from typing import Any, Protocol

from collectives.bench.cases import Case, NotCarried
from collectives.bench.overlap import OVERLAP, OverlapTask
from collectives.bench.tasks import Library, Task

Line = BufferedRWPair


class Introduced(Protocol):
    """What a rank says of itself first."""

    rank: int
    size: int

    def describe(self) -> dict[str, str]:
        """Its library, with version and settings."""


def dial(address: str) -> Line:
    """Connects to the benchmark's socket.

    It is a name in Linux's abstract namespace, or of another host: "tcp HOST PORT TOKEN".
    """
    kind, *words = address.split(" ")
    if kind != "tcp" or not words:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect("\0" + address)
        return connection.makefile("rwb")
    host, port, token = words
    stream = socket.create_connection((host, int(port)), timeout=60)
    stream.settimeout(None)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    line = stream.makefile("rwb")
    say(line, token=token)
    return line


def say(stream: Line, **words: Any) -> None:
    """Sends a line."""
    stream.write(json.dumps(words).encode() + b"\n")
    stream.flush()


def brief(error: BaseException) -> str:
    """An error in a line."""
    return f"{type(error).__name__}: {error}".split("\n")[0]


def serve(library: Library, stream: Line, cache_bytes: int) -> None:
    """Answers requests until told to leave, or until nobody asks any more."""
    tasks: dict[int, Any] = {}

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        return _answer(request, library, tasks, cache_bytes)

    answer_requests(stream, library, answer, NotCarried)


def answer_requests(
    stream: Line,
    who: Introduced,
    answer: Callable[[dict[str, Any]], dict[str, Any]],
    refusal: type[BaseException],
) -> None:
    """Says who this rank is, then answers requests until told to leave.

    Args:
        stream: to the benchmark.
        who: what the rank says of itself.
        answer: gives the answer to a request.
        refusal: what it raises of a request that is refused; all else is a failure.
    """
    say(
        stream,
        rank=who.rank,
        size=who.size,
        cores=sorted(os.sched_getaffinity(0)),
        description=who.describe(),
    )
    while line := stream.readline():
        request = json.loads(line)
        if request["do"] == "leave":
            return
        try:
            found = answer(request)
        except refusal as reason:
            found = {"refused": str(reason)}
        except Exception as error:
            traceback.print_exc()
            found = {"failed": brief(error)}
        say(stream, **found)


def _answer(
    request: dict[str, Any], library: Library, tasks: dict[int, Any], cache_bytes: int
) -> dict[str, Any]:
    do, key = request["do"], request["key"]
    if do == "prepare":
        case = Case(**request["case"])
        kind = OverlapTask if case.collective == OVERLAP else Task
        make = getattr(library, "task", partial(kind, library))
        tasks[key] = make(case, request["variant"], cache_bytes)
        return {"most_calls": tasks[key].most_calls, "expected": tasks[key].expected()}
    if do == "time":
        return {"seconds": tasks[key].seconds(request["calls"])}
    if do == "part":
        part, units = request["part"], request["units"]
        return {"seconds": tasks[key].part_seconds(request["calls"], part, units)}
    if do == "check":
        return dict(tasks[key].check(request["plant"]))
    if do == "release":
        tasks.pop(key, None)
        return {}
    raise ValueError(f"unknown request {do!r}; expected prepare, time, part, check, release")
