"""The program of a contender's rank in `collectives bench train`: trains when it is asked to.

Requests and answers are lines of JSON over one socket, as in `collectives.bench.serving`:

    {"do": "prepare", "key": 1, "config": {…}}    {"facts": {…}}
    {"do": "first", "key": 1, "count": 5}         {"rows": […], "norms": [1.3, …]}
    {"do": "steps", "key": 1, "count": 20}        {"rows": [[loss, began, data, …], …]}
    {"do": "release", "key": 1}                   {}
    {"do": "leave"}

Between requests the rank is blocked in reading the socket: it takes nothing from whoever runs.
"""

from __future__ import annotations

import json
import sys
import traceback
from typing import Any

from collectives.bench.serving import answer_requests, brief, dial, say
from trainers.bench.stepping import Training, Way, connect
from trainers.errors import TrainerError
from trainers.precision import subnormals_flushed


def main(options: dict[str, Any]) -> int:
    """Connects and serves; returns the exit code."""
    stream = dial(options["address"])
    try:
        way = connect(options)
    except Exception as error:
        traceback.print_exc()
        say(stream, failed=brief(error))
        return 1
    prepared: dict[int, Training] = {}
    with subnormals_flushed():  # for every way alike
        answer_requests(stream, way, lambda request: _answer(request, way, prepared), TrainerError)
    way.close()
    return 0


def _answer(request: dict[str, Any], way: Way, prepared: dict[int, Training]) -> dict[str, Any]:
    do, key = request["do"], request["key"]
    if do == "prepare":
        prepared[key] = Training(way, request["config"])
        return {"facts": prepared[key].facts}
    if do == "first":
        rows, norms = prepared[key].first_steps(request["count"])
        return {"rows": rows, "norms": norms}
    if do == "steps":
        return {"rows": prepared[key].steps(request["count"])}
    if do == "release":
        prepared.pop(key, None)
        return {}
    raise ValueError(f"unknown request {do!r}; expected prepare, first, steps or release")


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
