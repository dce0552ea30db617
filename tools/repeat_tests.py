"""Repeats tests until what happens rarely has happened: half of the times with every core busy.

    .venv/bin/python tools/repeat_tests.py --times 50 tests/launch tests/collectives/test_async.py

Every file is a run of pytest of its own; without names, one test of each kind of program with many
processes is, all in one run. --together runs go on at a time, in turn with idle and with busy
cores. Every run is a line in the record (JSON lines, added to); --table alone shows what the record
holds. A run that fails leaves its whole output in the folder beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

# One of each kind of program with many processes: how they start, meet, talk, sleep, fail, are
# killed and end. Repeated as one run of pytest.
RUNNING: set[subprocess.Popen[str]] = set()
ONE_OF_EACH = "one of each kind"
MANY_PROCESSES = [
    "tests/launch/test_spawning.py::test_a_killed_rank_is_named_with_its_signal",
    "tests/launch/test_failures.py::test_the_first_traceback_comes_last_and_once",
    "tests/launch/test_stopping.py::test_a_stop_ends_the_whole_family[2-130]",
    "tests/launch/test_stopping.py::test_killing_the_launcher_leaves_nothing",
    "tests/launch/test_joining.py::test_two_jobs_at_once_do_not_meet",
    "tests/launch/test_bench.py::test_a_planted_error_is_counted_and_fails_the_run",
    "tests/collectives/test_contract.py::test_a_lost_peer[kill inside]",
    "tests/collectives/test_mismatch.py::test_calls_that_do_not_fit_together[2]",
    "tests/collectives/test_contract.py::test_ctrl_c_ends_any_wait[allreduce]",
    "tests/collectives/test_contract.py::test_ranks_that_are_done_may_leave_without_closing",
    "tests/collectives/test_async.py::test_every_collective[3]",
    "tests/collectives/test_initialization.py::test_a_rank_that_never_comes_is_named",
    "tests/collectives/test_repeated_calls.py::test_the_same_call_many_times[2]",
    "tests/collectives/test_waiting.py::test_ranks_that_come_late_with_and_without_membarrier[one]",
    "tests/collectives/test_symmetric.py::test_a_killed_rank_leaves_nothing",
    "tests/collectives/test_one_sided_agreement.py::test_a_rank_that_is_killed[inside]",
    "tests/transports/test_point_to_point.py::test_random_program[3-300-processes]",
    "tests/transports/test_point_to_point.py::test_a_killed_peer",
    "tests/transports/test_rendezvous.py",
    "tests/transports/test_engine.py",
    "tests/transports/test_waking.py",
    "tests/transports/test_conformance_shm.py::test_every_algorithm[3-fewest]",
    "tests/transports/test_acting.py::test_only_what_could_act_counts[forked-True]",
    "tests/collectives/test_circles.py::test_none_can_go_on[tag-words1]",
    "tests/collectives/test_circles.py::test_what_can_go_on_does[work that ended]",
    "tests/collectives/test_silence.py::test_a_time_out_says_the_same",
    "tests/collectives/test_shrink.py::test_who_leads_the_meeting_is_lost_too[some go]",
    "tests/collectives/test_faults.py::test_freezes_and_goes_on[middle]",
    "tests/collectives/test_interrupted.py::test_an_abort_that_is_interrupted_reaches_the_others",
    "tests/collectives/test_lending.py::test_a_rank_that_is_killed_after_lending",
    "tests/collectives/test_lending.py::test_it_is_tried_and_the_results_are_the_same",
    "tests/collectives/test_kernel_copies_in_trouble.py::test_a_rank_that_is_killed_in_the_midst[0.02]",
    "tests/collectives/test_kernel_copies_in_trouble.py::test_a_rank_that_is_killed_in_the_midst_of_what_is_around_a_root[gather-1]",
    "tests/collectives/test_kernel_copies_in_trouble.py::test_nobody_writes_to_the_array_of_a_call_that_was_interrupted",
    "tests/collectives/test_kernel_copies_in_trouble.py::test_an_array_that_a_stopped_rank_may_write_to_is_kept[numpy]",
    "tests/collectives/test_kernel_copies_in_trouble.py::test_a_writer_that_has_only_closed_is_waited_for",
    "tests/collectives/test_kernel_copies_in_trouble.py::test_the_middle_of_a_call_is_in_it[1-broadcast]",
    "tests/collectives/test_kernel_copies.py::test_all_ranks_find_the_same_quicker",
    "tests/collectives/test_kernel_copies.py::test_around_a_root_all_find_the_same[9000-3]",
    "tests/collectives/test_kernel_copies.py::test_who_runs_ahead_finds_the_same[reduce-0]",
    "tests/collectives/test_symmetric.py::test_a_rank_that_is_killed_while_they_meet_is_lost_to_all[0]",
    "tests/launch/test_inject.py::test_a_fault_is_met_and_named",
    "tests/launch/test_keep_going.py::test_those_that_are_left_shrink_and_finish",
    "tests/soak/test_faults.py::test_every_kind_of_fault",
    "tests/collectives/test_devices_by_the_host.py::test_asynchronous_scatters_keep_their_place[3]",
    "tests/collectives/test_devices_in_graphs.py",
    "tests/trainers/test_on_devices.py::test_a_rank_that_dies_in_a_backward_is_named",
    "tests/trainers/test_on_devices.py::test_sharded_weights_are_those_of_the_whole[2]",
]


def runs_of(paths: list[str]) -> dict[str, list[str]]:
    """Tests by the name of the run: of each file named, and of those in the folders named."""
    found: list[str] = []
    for path in paths:
        inside = sorted(map(str, Path(path).glob("test_*.py")))
        if not inside and not Path(path).is_file():
            raise SystemExit(f"repeat_tests: no tests in {path}")
        found += inside or [path]
    return {file: [file] for file in found}


@contextlib.contextmanager
def busy_cores(wanted: bool) -> Iterator[None]:
    """Gives every core something else to do, while it lasts."""
    cores = len(os.sched_getaffinity(0)) if wanted else 0
    # Each looks after us: killed, this process would leave them behind.
    program = f"import os\nwhile os.getppid() == {os.getpid()}: pass"
    loops = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(cores)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


@contextlib.contextmanager
def alone(lock: Path | None) -> Iterator[None]:
    """Holds the lock that those who measure on this machine take, as flock(1) does."""
    if lock is None:
        yield
        return
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def batches(
    times: int, names: list[str], together: int
) -> Iterator[tuple[bool, list[tuple[int, str]]]]:
    """All repeats, so many at a time: a batch with idle cores, one with busy ones, in turn."""
    everything = [(number, name) for number in range(times) for name in names]
    sorts = [[each for each in everything if each[0] % 2 == busy] for busy in (False, True)]
    for first in range(0, len(sorts[0]), together):
        for busy, sort in enumerate(sorts):
            if batch := sort[first : first + together]:
                yield bool(busy), batch


def run_once(
    number: int, name: str, *, tests: dict[str, list[str]], busy: bool, failures: Path
) -> dict[str, Any]:
    """One run: its record."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests[name]]
    began = time.monotonic()
    # In a group of its own: what a run must have ended it tells by command and group, too.
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, process_group=0
    ) as process:
        RUNNING.add(process)
        output, _ = process.communicate()
        RUNNING.discard(process)
    seconds = time.monotonic() - began
    last = output.strip().rpartition("\n")[2]
    if process.returncode:
        failures.mkdir(parents=True, exist_ok=True)
        kept = f"{name.replace('/', '.').replace(' ', '-')}-{number}{'-busy' * busy}.txt"
        (failures / kept).write_text(output)
    return {
        "tests": name,
        "number": number,
        "busy": busy,
        "code": process.returncode,
        "seconds": round(seconds, 2),
        "load": round(os.getloadavg()[0], 1),
        "said": last,
    }


def table(record: Path) -> str:
    """Markdown: runs and failures of every file, and its seconds."""
    runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in record.read_text().splitlines():
        run = json.loads(line)
        runs[run["tests"]].append(run)
    lines = [
        "| tests | runs | of them busy | failed | seconds: least, median, most | busy |",
        "|---|---|---|---|---|---|",
    ]
    for name, own in runs.items():
        spread = []
        for busy in (False, True):
            seconds = sorted(run["seconds"] for run in own if run["busy"] is busy)
            spread.append(
                f"{seconds[0]:.1f}, {median(seconds):.1f}, {seconds[-1]:.1f}" if seconds else "–"
            )
        counts = (len(own), sum(run["busy"] for run in own), sum(run["code"] != 0 for run in own))
        lines.append(f"| {name} | {' | '.join(map(str, counts))} | {' | '.join(spread)} |")
    total = [run for own in runs.values() for run in own]
    failed = sum(run["code"] != 0 for run in total)
    hours = sum(run["seconds"] for run in total) / 3600
    return "\n".join([*lines, "", f"{len(total)} runs, {failed} failed, {hours:.1f} hours."])


def main() -> int:
    """Repeats, and shows the table; 1 if a run failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("tests", nargs="*", help="files or folders; default: one of each kind")
    parser.add_argument("--times", type=int, default=50, help="runs of each (default 50)")
    parser.add_argument("--together", type=int, default=1, help="runs at a time (default 1)")
    parser.add_argument("--record", type=Path, default=Path("build/repeats.jsonl"))
    parser.add_argument("--table", action="store_true", help="run nothing, show the record")
    parser.add_argument("--lock", type=Path, metavar="FILE", help="hold its lock during each run")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(arguments.record))
        return 0
    tests = runs_of(arguments.tests) if arguments.tests else {ONE_OF_EACH: MANY_PROCESSES}
    arguments.record.parent.mkdir(parents=True, exist_ok=True)
    failures = arguments.record.with_suffix(".failures")
    failed = 0
    for busy, batch in batches(arguments.times, list(tests), arguments.together):
        with (
            alone(arguments.lock),
            busy_cores(busy),
            ThreadPoolExecutor(arguments.together) as pool,
        ):
            run = partial(run_once, tests=tests, busy=busy, failures=failures)
            try:
                runs = list(pool.map(run, *zip(*batch, strict=True)))
            except KeyboardInterrupt:  # it does not reach other groups by itself
                for process in list(RUNNING):
                    process.send_signal(signal.SIGINT)
                raise
        with arguments.record.open("a") as record:
            record.writelines(json.dumps(run) + "\n" for run in runs)
        for run in runs:
            which = f"{run['number'] + 1}/{arguments.times} {run['tests']}"
            print(f"{which}{' busy' * busy}: {run['said']}")
        sys.stdout.flush()
        failed += sum(run["code"] != 0 for run in runs)
    print(table(arguments.record))
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
