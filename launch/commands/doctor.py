"""Looks at this machine for whatever ranks need, and says what is missing and what to do."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from launch.commands import CommandError

if TYPE_CHECKING:
    from launch.doctor.findings import Finding

HELP = "look at this machine: what ranks need, what is missing, what to do"
DESCRIPTION = """\
Looks at the package, cores, memory, shared memory, limits, kernel, MPI, GPUs, network, Ray, tuning
and processes left behind, and has two ranks compute something. Every line is `ok`, a `warning` (it
works, but slower or not everywhere) or a `problem`, the last two with what to do. No check takes
longer than its time limit. The exit code is 0 if there is no problem, else 1.

A process is left behind if `collectives run` or launch.spawn started it or one of its parents, and
that launcher has gone. --clean ends such processes of yours, and no others.
"""

_STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red"}
_VERDICT, _SUBJECT = len("warning"), len("process numbers")
_MARGIN = " " * (_VERDICT + _SUBJECT + 4)
_LEAST_ROOM = 30  # on a terminal that is narrower, lines are cut anyhow


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument(
        "-n", "--ranks", type=int, metavar="N",
        help="how many ranks are to be started (default: as many as there are cores)",
    )  # fmt: skip
    parser.add_argument(
        "--clean", nargs="?", const="", metavar="JOB",
        help="end processes that were left behind: all of yours, or those of one job",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print all that was found as JSON")


def execute(arguments: argparse.Namespace) -> int:
    """Looks and reports."""
    from launch.doctor.examination import examine
    from launch.doctor.findings import Verdict

    ranks = arguments.ranks
    if ranks is None:
        ranks = max(2, len(os.sched_getaffinity(0)))
    if ranks < 1:
        raise CommandError(f"the number of ranks must be at least 1, not {ranks}")
    found = examine(ranks, arguments.clean)
    shown = _show_json(found) if arguments.json else _show_lines(found)
    return int(any(each.verdict is Verdict.PROBLEM for each in shown))


def _show_json(found: Iterable[Finding]) -> list[Finding]:
    import json
    from dataclasses import asdict

    shown = list(found)
    counts = {verdict: _count(shown, verdict) for verdict in _STYLES}
    report = {"counts": counts, "findings": [asdict(each) for each in shown]}
    print(json.dumps(report, indent=2, ensure_ascii=False))
    return shown


def _show_lines(found: Iterable[Finding]) -> list[Finding]:
    """Prints each as soon as it is known."""
    import textwrap

    from rich.text import Text

    from launch.commands.algorithms import console_on_stdout

    console = console_on_stdout()
    room = max(_LEAST_ROOM, console.width - len(_MARGIN))
    shown = []
    for each in found:
        shown.append(each)
        said = [each.found, *each.details, *([f"→ {each.advice}"] if each.advice else [])]
        lines = [part for line in said for part in textwrap.wrap(line, room)]
        verdict = (f"{each.verdict:<{_VERDICT}}", _STYLES[each.verdict])
        text = f"  {each.subject:<{_SUBJECT}}  " + f"\n{_MARGIN}".join(lines)
        console.print(Text.assemble(verdict, text), soft_wrap=True)
    counts = {verdict: _count(shown, verdict) for verdict in _STYLES}
    text = f"{counts['ok']} ok, {_counted(counts['warning'], 'warning')}, "
    console.print(Text(text + _counted(counts["problem"], "problem")))
    return shown


def _count(found: Iterable[Finding], verdict: str) -> int:
    return sum(each.verdict == verdict for each in found)


def _counted(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'s' * (number > 1)}"
