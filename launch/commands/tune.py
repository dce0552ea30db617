"""Measures this machine: fits the cost model, and writes which algorithm is best when."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from launch.commands import CommandError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from collectives.communicator import Communicator
    from collectives.cost.fitting import Judged
    from collectives.cost.measuring import Measurement
    from collectives.cost.parameters import Parameters
    from collectives.cost.work import Room

HELP = "measure this machine: fit the cost model, write its selection table"
DESCRIPTION = """\
Starts ranks, measures every algorithm of every collective at many sizes, and writes

    selection.toml       which algorithm runs when: collectives.init takes it from there
    model.toml           the parameters of the cost model, for comm.explain
    measurements.jsonl   the times themselves

into this machine's folder in the user's cache (COLLECTIVES_TUNING names another, and `off` keeps
collectives.init from using any). Leave the machine alone meanwhile; on one that others use too, run
it again with --add: of all times measured, the best count. docs/cost.md says more.
"""

MEASUREMENTS = "measurements.jsonl"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument(
        "-n", "--ranks", default=None, metavar="N[,N…]",
        help="numbers of ranks to measure (default: as many as there are cores, at most 8)",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="where to write the files")
    parser.add_argument(
        "--add", action="store_true", help="keep the earlier measurements there; the best count"
    )
    parser.add_argument(
        "--no-measure", action="store_true", help="measure nothing: work on those there already"
    )
    parser.add_argument(
        "--sweeps", type=int, default=5, metavar="K", help="how often to measure all (default 5)"
    )
    parser.add_argument(
        "--largest", default="64M", metavar="SIZE", help="measure up to here (default 64M)"
    )
    parser.add_argument(
        "--default", action="store_true",
        help="write a table for every machine: for more ranks than measured, by prediction",
    )  # fmt: skip


def execute(arguments: argparse.Namespace) -> int:
    """Measures, fits, writes."""
    from collectives import tuned

    try:
        ranks = _ranks(arguments.ranks)
        place = arguments.output or tuned.folder()
        if place is None:
            raise ValueError("COLLECTIVES_TUNING is off: expected --output FOLDER")
        measurements = _measurements(arguments, ranks, place / MEASUREMENTS)
        _write(place, measurements, for_all=arguments.default)
    except (ValueError, OSError) as error:
        raise CommandError(str(error)) from None
    return 0


def _ranks(text: str | None) -> list[int]:
    import os

    if text is None:
        return [max(2, min(8, len(os.sched_getaffinity(0))))]
    try:
        found = sorted({int(word) for word in text.split(",")})
    except ValueError:
        found = []
    if not found or found[0] < 2:
        raise ValueError(f"-n must be numbers of ranks >= 2, such as 2 or 2,4, found {text!r}")
    return found


def _measurements(
    arguments: argparse.Namespace, ranks: Sequence[int], file: Path
) -> list[Measurement]:
    """What is to be worked on; written to the file first."""
    from collectives.cost.measuring import FIT_SIZES, HELD_OUT_SIZES
    from collectives.cost.records import merged, read_measurements, write_measurements
    from launch.commands.explain import parse_bytes

    if arguments.sweeps < 1:
        raise ValueError(f"--sweeps must be at least 1, found {arguments.sweeps}")
    largest = parse_bytes(arguments.largest)
    sizes = [size for size in FIT_SIZES + HELD_OUT_SIZES if size <= largest]
    if not any(size in FIT_SIZES for size in sizes):
        raise ValueError(f"--largest must be at least {FIT_SIZES[0]} bytes, found {largest}")
    if arguments.no_measure and not file.exists():
        raise ValueError(f"there is no {file}: measure first, without --no-measure")
    known = read_measurements(file) if arguments.add or arguments.no_measure else []
    if arguments.no_measure:
        return known
    file.parent.mkdir(parents=True, exist_ok=True)
    for size in ranks:
        found = _measure(size, sizes, arguments.sweeps)
        known = merged(known, found)
        write_measurements(known, file)
    return known


def _measure(size: int, sizes: Sequence[int], sweeps: int) -> list[Measurement]:
    import time

    from launch.spawning import spawn

    print(f"{size} ranks: every algorithm at {len(sizes)} sizes, {sweeps} times", flush=True)
    begin = time.monotonic()
    found = spawn(_measure_here, size, tuple(sizes), sweeps)[0]
    seconds = time.monotonic() - begin
    print(f"{size} ranks: {len(found)} calls measured in {seconds:.0f} s")
    return found


def _measure_here(comm: Communicator, sizes: tuple[int, ...], sweeps: int) -> list[Measurement]:
    import time

    from collectives.cost.measuring import measure_all

    begin = time.monotonic()

    def tell(sweep: int) -> None:
        if comm.rank == 0:
            seconds = time.monotonic() - begin
            print(f"  sweep {sweep} of {sweeps} done after {seconds:.0f} s", flush=True)

    return measure_all(comm, sizes, sweeps=sweeps, tell=tell)


def _write(place: Path, measurements: Sequence[Measurement], *, for_all: bool) -> None:
    from collectives import tuned
    from collectives.cost.choosing import as_toml, chosen_table, predicted_table
    from collectives.selection import default_table

    room = _room()
    model, judged = _model(measurements, room)
    _show_errors(judged)
    ranks = sorted({each.ranks for each in measurements})
    base, beyond = default_table(), "the package's table"
    if for_all:
        base, beyond = predicted_table(_BEYOND, model, room), "by prediction"
    heading = f"{_HEADING}\n\nMeasured by `collectives tune` among {_listed(ranks)} ranks on "
    heading += f"{model.machine}; for more ranks {beyond}."
    table = chosen_table(measurements, base)
    (place / tuned.MODEL).write_text(model.as_toml(), encoding="utf-8")
    (place / tuned.TABLE).write_text(as_toml(table, heading), encoding="utf-8")
    print(f"written to {place}: {tuned.TABLE}, {tuned.MODEL}, {MEASUREMENTS}")


def _room() -> Room:
    """The channels that ranks get, and the cores they share."""
    import os

    from collectives import settings
    from collectives.cost.work import Room

    geometry = settings.geometry()
    return Room(
        slots=geometry.slots,
        slot_bytes=geometry.slot_bytes,
        depth=geometry.depth,
        cores=len(os.sched_getaffinity(0)),
    )


def _model(measurements: Sequence[Measurement], room: Room) -> tuple[Parameters, list[Judged]]:
    """The model fitted to the sizes that are for it, and its predictions of the others."""
    from collectives import tuned
    from collectives.cost.fitting import fit, held_out, judge, median_errors
    from collectives.cost.parameters import Parameters

    roomy = [each for each in measurements if each.ranks <= room.cores]
    if len(roomy) < len(measurements):
        which = "left out of the model" if roomy else "all there is, and predicted coarsely"
        print(f"measured with more ranks than the {room.cores} cores: {which}")
    usable = roomy or measurements
    judges = set(held_out(usable))
    values = fit([each for each in usable if each not in judges], room)
    judged = judge([each for each in usable if each in judges], values, room)
    model = Parameters(
        values=values,
        ranks=min(each.ranks for each in usable),
        machine=tuned.machine_name(),
        errors=median_errors(judged, _LEAST_JUDGED),
    )
    return model, judged


def _show_errors(judged: Sequence[Judged]) -> None:
    """How far predictions are off, at sizes that were not fitted."""
    from statistics import median

    from collectives.cost.fitting import median_errors
    from launch.commands.algorithms import console_on_stdout, plain_table

    above = median_errors(judged, _LEAST_JUDGED)
    below = median_errors(each for each in judged if each.measured.nbytes < _LEAST_JUDGED)
    table = plain_table("collective", "algorithm", "below 64 KiB", "from 64 KiB up")
    for column in table.columns[2:]:
        column.justify = "right"
    for name in below:
        collective, algorithm = name.split()
        shown = f"{above[name]:.0%}" if name in above else ""
        table.add_row(collective, algorithm, f"{below[name]:.0%}", shown)
    print("median error of the model's predictions, at sizes that were not fitted:")
    console_on_stdout().print(table)
    large = [abs(each.error) for each in judged if each.measured.nbytes >= _LEAST_JUDGED]
    if large:
        within = sum(error <= _GOOD for error in large) / len(large)
        print(
            f"from 64 KiB up: median {median(large):.0%}, within {_GOOD:.0%} in {within:.0%} of "
            f"{len(large)} cases"
        )


_LEAST_JUDGED = 1 << 16
_GOOD = 0.25
_BEYOND = (4, 8, 16)  # numbers of ranks of which the package's table has rows by prediction

_HEADING = """\
Which algorithm runs: the first row that fits a call is taken.

collective   what is called
below        the call's bytes must be fewer (left out: any). Bytes of one rank's full array:
             allreduce, reduce, broadcast the array; reduce_scatter, scatter, alltoall the array
             with the leading axis; gather, allgather the gathered array
sizes        [least, most] ranks (left out: any)
uneven       true: the row is for counts= calls too (left out: true)
symmetric    true: the row is for a one-sided algorithm, and fits calls whose arrays it can
             reach: those from comm.empty (left out: false)
algorithm    its name in the catalogue"""


def _listed(numbers: Sequence[int]) -> str:
    return " and ".join(filter(None, (", ".join(map(str, numbers[:-1])), str(numbers[-1]))))
