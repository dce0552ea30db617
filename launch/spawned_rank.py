"""The program of a rank of `launch.spawn`: reads the call, makes it, leaves the answer.

Run as a script with two file descriptors, of the call and of the answer. Both files begin with a
line of JSON; pickled bytes follow:

    call     {"path": sys.path, "argv": sys.argv}              (function, arguments)
    answer   {"kind": "returned"}                              the result
             {"kind": "raised", "summary": …, "traceback": …,  the exception, or nothing if it
              "consequence": …, "time": …}                     cannot be pickled

Whether an answer is whole is told by the exit code: 0 after "returned", 1 after "raised".
"""

from __future__ import annotations

import json
import mmap
import os
import sys
import time
import traceback
from typing import Any, BinaryIO


def read_call(descriptor: int) -> tuple[Any, tuple[Any, ...]]:
    """Function and arguments; sets sys.path and sys.argv as they are where spawn was called."""
    # Mapped, since all ranks share one file and with it one reading position.
    with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as call:
        setting = json.loads(call.readline())
        sys.path[:] = setting["path"]
        sys.argv[:] = setting["argv"]
        import cloudpickle  # found by the path just set

        function, args = cloudpickle.load(call)
        return function, args


def leave_answer(file: BinaryIO, header: dict[str, object], value: object) -> None:
    """Writes an answer; raises what pickling raises."""
    import cloudpickle

    file.seek(0)
    file.truncate()
    file.write(json.dumps(header).encode() + b"\n")
    cloudpickle.dump(value, file)
    file.flush()


def leave_error(file: BinaryIO, error: Exception) -> None:
    """Writes the answer of a call that raised, with the exception itself if that can travel."""
    import cloudpickle

    header: dict[str, object] = {
        "kind": "raised",
        "time": time.monotonic(),
        "summary": "".join(traceback.format_exception_only(error)).strip(),
        "traceback": "".join(traceback.format_exception(error)),
        "consequence": stems_from_peer(error),
    }
    try:
        cloudpickle.loads(cloudpickle.dumps(error))
    except Exception:  # it may do anything, and the header says enough
        leave_answer(file, header, None)
    else:
        leave_answer(file, header, error)


def stems_from_peer(error: BaseException) -> bool:
    """Whether this failure only tells of another rank's."""
    from transports.errors import AbortedError, PeerLostError

    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        if isinstance(current, PeerLostError | AbortedError):
            return True
        seen.add(id(current))
        current = current.__cause__ or current.__context__
    return False


def answer_call(call: int, answer: int) -> int:
    """Makes the call and returns the exit code."""
    for descriptor in (call, answer):
        os.set_inheritable(descriptor, False)
    with open(answer, "wb") as file:
        try:
            function, args = read_call(call)
            import collectives

            with collectives.init() as comm:
                result = function(comm, *args)
                try:
                    leave_answer(file, {"kind": "returned"}, result)
                except Exception as error:
                    raise TypeError(
                        f"the result of rank {comm.rank}, of type {type(result).__name__}, "
                        f"cannot be pickled: {error}"
                    ) from error
        except Exception as error:
            leave_error(file, error)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(answer_call(int(sys.argv[1]), int(sys.argv[2])))
