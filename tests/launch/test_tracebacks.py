"""Of tracebacks that follow from the first, or repeat it, one line is shown; of others, all."""

from __future__ import annotations

import re

import pytest

from launch.console import Console
from launch.failures import Failure
from launch.processes import Ended, Output, Stream
from launch.report import Report
from launch.tracebacks import Shortened, shorten, told
from transports.telling import listed

HEADER = "Traceback (most recent call last):"
CAUSE = f"""{HEADER}
  File "/user/train.py", line 7, in step
    raise ValueError("boom")
ValueError: boom"""
FOLLOWED = "\nThe above exception was the direct cause of the following exception:\n\n"


def lines(text: str) -> list[bytes]:
    return text.encode().splitlines()


def raised(error: str, line: int = 14, after: str = "") -> list[bytes]:
    """A traceback as ranks print it, of an error raised in user code at `line`."""
    return lines(f'{HEADER}\n  File "/user/train.py", line {line}, in step\n{error}\n{after}')


LOST = "transports.errors.PeerLostError: rank 1 (pid 7 on host) ended before allreduce #3"
ABORTED = f"collectives.AbortedError: rank 1 raised ValueError:\n{CAUSE}\n"


@pytest.mark.parametrize(
    ("ranks", "words"),
    [
        ([4], "rank 4"),
        ([2, 0], "ranks 0, 2"),
        ([7, 0, 2, 3, 4], "ranks 0, 2-4, 7"),
        ([0, 1], "ranks 0-1"),
    ],
)
def test_ranks_in_words(ranks, words):
    assert listed(ranks) == words


def test_consequences_are_a_line_for_all_that_say_the_same():
    tracebacks = {3: raised(LOST), 0: raised(LOST), 2: raised(LOST, line=20), 4: raised(ABORTED)}
    lost = "PeerLostError: rank 1 (pid 7 on host) ended before allreduce #3"
    assert shorten(tracebacks, lines(CAUSE), cause_known=True) == Shortened(
        whole=[],
        lines=[
            f"ranks 0, 3 ended by it at /user/train.py:14: {lost}",
            f"rank 2 ended by it at /user/train.py:20: {lost}",
            "rank 4 ended by it at /user/train.py:14: AbortedError: rank 1 raised ValueError",
        ],
    )
    stopped = shorten({0: raised(LOST), 1: []}, (), cause_known=False)
    assert stopped.lines == [f"rank 0 ended at /user/train.py:14: {lost}"]


def test_the_same_error_on_every_rank_is_told_once():
    mismatch = "transports.errors.MismatchError: ranks are in different calls: …"
    tracebacks = {0: raised(mismatch), 2: raised(mismatch, line=20), 3: raised(mismatch)}
    shown = shorten(tracebacks, raised(mismatch), cause_known=True)
    assert shown.whole == []
    assert shown.lines == [
        "ranks 0, 3 raised it too at /user/train.py:14: MismatchError",
        "rank 2 raised it too at /user/train.py:20: MismatchError",
    ]
    shown = shorten({0: lines(CAUSE), 2: lines(CAUSE)}, lines(CAUSE), cause_known=True)
    assert shown == Shortened([], ["ranks 0, 2 raised it too at /user/train.py:7: ValueError"])


def test_other_tracebacks_are_whole_and_equal_ones_once():
    own, other = raised("KeyError: 'own'"), raised("KeyError: 'own'", line=15)
    syntax = lines('  File "train.py", line 1\n    x = = 1\nSyntaxError: invalid syntax')
    tracebacks = {5: own, 0: other, 2: own, 3: syntax}
    shown = shorten(tracebacks, lines(CAUSE), cause_known=True)
    assert shown.whole == [(5, own), (0, other), (3, syntax)]
    assert shown.lines == ["rank 2 raised the same as rank 5 at /user/train.py:14: KeyError"]


def test_what_a_rank_says_after_its_consequence_is_not_lost():
    own = f"{FOLLOWED}{HEADER}\nOSError: no space left for the checkpoint"
    for error in (LOST, ABORTED):
        tracebacks = {0: raised(error, after=own), 2: raised(error, after=own), 3: raised(error)}
        shown = shorten(tracebacks, lines(CAUSE), cause_known=True)
        assert shown.whole == [(0, tuple(lines(own.lstrip("\n"))))]
        assert [line.partition(" ended by it")[0] for line in shown.lines] == [
            "ranks 0, 2",
            "rank 3",
        ]


WAITED = """transports.errors.CollectiveTimeout: barrier #3: rank 0 has waited 9 s for rank 1
  rank 1 (pid 7 on host) is in no collective
    its Python stack, the innermost first:
      train.py:91 in evaluate"""


def test_further_lines_of_an_error_belong_to_it():
    says = told(raised(WAITED, after="\nbye"))
    assert says.error == b"CollectiveTimeout: barrier #3: rank 0 has waited 9 s for rank 1"
    assert (says.quoted, says.rest) == ((), (b"bye",))
    margin = "\n".join(f"  | {line}" for line in WAITED.splitlines())
    assert told(lines(f"{margin}\n  +----\nbye")).rest == (b"bye",)
    # Of several ranks that say the same, all of it is shown once, and after that no part of it.
    tracebacks = {
        0: raised(WAITED),
        1: raised(WAITED),
        2: raised(WAITED, after=f"{HEADER}\nOSError"),
    }
    shown = shorten(tracebacks, (), cause_known=False)
    assert shown.whole == [(0, raised(WAITED)), (2, (HEADER.encode(), b"OSError"))]
    shown = shorten({1: raised(WAITED)}, raised(WAITED), cause_known=True)
    assert shown == Shortened([], ["rank 1 raised it too at /user/train.py:14: CollectiveTimeout"])


CIRCLE = """
    import collectives, numpy as np
    with collectives.init(timeout=30) as comm:
        comm.recv(np.zeros(4), source=1 - comm.rank)
"""


def test_a_circle_is_told_once(launcher, program):
    done = launcher("run", "-n", 2, program(CIRCLE))
    assert done.returncode == 1
    assert done.stderr.count("the ranks wait for each other") == 1, done.stderr
    for rank in (0, 1):
        waits = rf"rank {rank} \(pid \d+ on .*\) waits to receive"
        assert len(re.findall(waits, done.stderr)) == 1, done.stderr


def test_a_quoted_chain_is_quoted_whole():
    chain = f"{CAUSE}\n{FOLLOWED}{HEADER}\nRuntimeError: in the data"
    says = told(raised(f"AbortedError: rank 1 raised RuntimeError:\n{chain}\n", after="\nbye"))
    assert says.quoted == tuple(lines(chain))
    assert says.rest == (b"bye",)


def test_a_line_without_frames_or_text_says_what_there_is():
    says = told([b"Fatal Python error: Aborted"])
    assert (says.error, says.where) == (b"Fatal Python error: Aborted", "")
    assert told([b"  | collectives.PeerLostError", b"  +-----"]).rest == ()


class Screen:
    error = None

    def __init__(self, terminal: bool) -> None:
        self.terminal = terminal
        self.written = b""

    def write(self, data: bytes) -> None:
        self.written += data


@pytest.mark.parametrize("terminal", [True, False])
def test_the_line_is_cut_to_a_terminals_width(monkeypatch, terminal):
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("NO_COLOR", "1")
    screen = Screen(terminal)
    with Report(Console(screen, screen), lambda rank: 7, 2) as report:
        report.take_output(Output(0, Stream.ERR, b"\n".join(raised(LOST)) + b"\n"), now=1.0)
        assert report.take_end(Ended(0, 1), now=1.0, by_us=False).consequence
        report.show_kept(Failure(rank=1, pid=7, code=-9, time=0.5))
    whole = "rank 0 ended by it at /user/train.py:14: PeerLostError: rank 1 (pid 7 on host) ended"
    shown = screen.written.decode()
    assert shown.startswith(whole[:59] + "…\n" if terminal else whole)


ONE_OF_FOUR = """
    import sys
    import numpy as np
    import collectives

    with collectives.init() as comm:
        comm.barrier()
        if comm.rank == 1 and sys.argv[1] == "raise":
            raise ValueError("boom")
        if comm.rank == 1 and sys.argv[1] == "leave":
            sys.exit(3)
        count = 3 if comm.rank == 1 else 4
        comm.allreduce(np.ones(count))
"""


def test_one_cause_among_four_ranks_is_one_traceback(launcher, program):
    done = launcher("run", "-n", 4, program(ONE_OF_FOUR), "raise")
    told_by_others, heading, *traceback = done.stderr.splitlines()[1:]
    assert told_by_others == (
        "ranks 0, 2-3 ended by it at program.py:12: AbortedError: rank 1 raised ValueError"
    )
    assert re.fullmatch(r"rank 1 \(pid \d+\) failed first, exit code 1:", heading)
    assert (traceback[0], traceback[-1]) == (HEADER, "ValueError: boom")
    assert traceback.count(HEADER) == 1


def test_all_tracebacks_are_shown_when_asked_for(launcher, program):
    done = launcher("run", "-n", 4, "--tracebacks", "all", program(ONE_OF_FOUR), "raise")
    for rank in (0, 2, 3):
        assert f"[{rank}] transports.errors.AbortedError: rank 1 raised ValueError:" in done.stderr
    assert done.stderr.endswith("\nValueError: boom\n")
    assert "ended by it" not in done.stderr


def test_an_error_that_all_ranks_raise_is_shown_once(launcher, program):
    done = launcher("run", "-n", 4, program(ONE_OF_FOUR), "mismatch")
    assert done.stderr.count("MismatchError: ranks are in different calls") == 1
    (line,) = [line for line in done.stderr.splitlines() if "raised it too" in line]
    assert re.fullmatch(r"ranks [0-9, -]+ raised it too at program.py:12: MismatchError", line)
    assert done.stderr.count(HEADER) == 1


def test_what_a_rank_left_with_is_known_from_the_others(launcher, program):
    done = launcher("run", "-n", 2, program(ONE_OF_FOUR), "leave")
    assert done.returncode == 3
    assert re.search(r"rank 1 .* failed first, exit code 3; it had told the others:", done.stderr)
    assert done.stderr.count("SystemExit: 3") == 1
    assert done.stderr.endswith("SystemExit: 3\n")
