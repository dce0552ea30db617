"""Lines of all ranks arrive whole, marked, on the stream they were written to, none lost."""

from __future__ import annotations

import collections
import os
import pty
import re
import select
import subprocess
import sys
import time

import pytest

from launch.console import Console, DescriptorSink
from launch.output import (
    CONSEQUENCE_KEPT,
    LARGEST_KEPT,
    LONGEST_LINE,
    TRACEBACK_KEPT,
    LineCutter,
    TracebackKeeper,
)
from launch.processes import Stream

TRACEBACK = [b"Traceback (most recent call last):", b'  File "x.py", line 1', b"ValueError: no"]


class MemorySink:
    def __init__(self, terminal: bool = False) -> None:
        self.written = b""
        self.terminal = terminal
        self.error = None

    def write(self, data: bytes) -> None:
        self.written += data


def feed(*pieces: bytes) -> tuple[list[bytes], LineCutter]:
    cutter = LineCutter()
    return [line for piece in pieces for line in cutter.feed(piece)], cutter


def test_lines_are_put_together_from_pieces():
    lines, cutter = feed(b"one\ntw", b"o", b"\n\nthr", b"ee")
    assert lines == [b"one", b"two", b""]
    assert cutter.partial == b"three"
    assert not cutter.overwriting
    assert cutter.finish() == [b"three"]
    assert cutter.finish() == []


@pytest.mark.parametrize(
    "pieces",
    [
        (b"\r10%\r20%\r100%\n",),
        (b"\r10%", b"\r20%", b"\r100%", b"\n"),
        (b"10%\r", b"20%\r", b"100%\r", b"\n"),
        (b"10%", b"\r", b"100%\r\n"),
    ],
)
def test_a_progress_bar_is_its_last_state(pieces):
    lines, _ = feed(*pieces)
    assert lines == [b"100%"]


def test_a_progress_bar_is_seen_while_it_grows_and_takes_no_memory():
    cutter = LineCutter()
    for step in range(10_000):
        assert cutter.feed(b"\r%d%%" % step) == []
    assert cutter.overwriting
    assert cutter.partial == b"9999%"
    assert len(cutter._rest) < 16


def test_windows_line_ends_are_line_ends():
    assert feed(b"one\r\ntwo\r", b"\n")[0] == [b"one", b"two"]


def test_output_without_line_ends_does_not_fill_memory():
    piece = bytes(1 << 22)
    lines, cutter = feed(*[piece] * 9)
    assert max(map(len, lines)) == LONGEST_LINE
    assert sum(map(len, lines)) + len(cutter.partial) == 9 * len(piece)


def test_a_traceback_is_kept_until_it_is_overdue():
    keeper = TracebackKeeper()
    assert keeper.feed([b"before", *TRACEBACK], now=10.0) == [b"before"]
    assert keeper.kept == TRACEBACK
    assert not keeper.overdue(10.0 + TRACEBACK_KEPT / 2)
    assert keeper.overdue(10.0 + TRACEBACK_KEPT)
    assert keeper.feed([b"after"], now=11.0 + TRACEBACK_KEPT) == [*TRACEBACK, b"after"]
    assert not keeper.kept


def test_a_traceback_that_another_rank_caused_is_kept_longer():
    keeper = TracebackKeeper()
    keeper.feed([*TRACEBACK, b"transports.errors.AbortedError: rank 0 raised E:"], now=10.0)
    assert not keeper.overdue(10.0 + CONSEQUENCE_KEPT - 0.1)
    assert keeper.overdue(10.0 + CONSEQUENCE_KEPT)
    keeper.release()
    keeper.feed(TRACEBACK, now=50.0)
    assert keeper.overdue(50.0 + TRACEBACK_KEPT), "the next is one like any"


@pytest.mark.parametrize(
    "first",
    [
        b"  + Exception Group Traceback (most recent call last):",
        b'  File "script.py", line 3',  # of a syntax error
        b"Fatal Python error: Segmentation fault",
        b"terminate called after throwing an instance of 'std::bad_alloc'",
    ],
)
def test_what_begins_a_traceback(first):
    keeper = TracebackKeeper()
    assert keeper.feed([b"before", first, b"more"], now=1.0) == [b"before"]
    assert keeper.release() == [first, b"more"]


def test_a_flood_after_a_traceback_is_let_through():
    keeper = TracebackKeeper()
    flood = [b"x" * 1000] * (LARGEST_KEPT // 1000 + 10)
    assert keeper.feed([*TRACEBACK, *flood, b"end"], now=1.0) == [*TRACEBACK, *flood, b"end"]
    assert not keeper.kept


def test_each_stream_goes_to_its_own(launcher, program):
    script = program("""
        import sys
        print("to out")
        print("to err", file=sys.stderr)
        print("no end", end="")
    """)
    done = launcher("run", "-n", 2, script)
    assert sorted(done.stdout.splitlines()) == [
        "[0] no end", "[0] to out", "[1] no end", "[1] to out",
    ]  # fmt: skip
    assert sorted(done.stderr.splitlines()[1:]) == ["[0] to err", "[1] to err"]


def test_the_mark_can_be_left_out(launcher, program):
    done = launcher("run", "-n", 2, "--no-prefix", program("print('plain')"))
    assert done.stdout == "plain\nplain\n"


def test_log_files_hold_what_a_rank_wrote_byte_for_byte(launcher, program, tmp_path):
    script = program(r"""
        import os
        os.write(1, b"out %s\r50%%\r100%%\n\xff" % os.environ["RANK"].encode())
    """)
    done = launcher("run", "-n", 2, "--log-dir", "new/logs", script)
    assert done.returncode == 0, done.stderr
    for rank in range(2):
        log = tmp_path / "new" / "logs" / f"rank-{rank}.log"
        assert log.read_bytes() == b"out %d\r50%%\r100%%\n\xff" % rank


def test_a_log_folder_that_cannot_be_made_is_an_error(launcher, program, tmp_path):
    (tmp_path / "taken").write_text("")
    done = launcher("run", "-n", 2, "--log-dir", "taken", program("print('ran')"))
    assert done.returncode == 2
    assert "collectives run: error:" in done.stderr
    assert "taken" in done.stderr
    assert done.stdout == ""


def test_a_torrent_arrives_whole(launcher, program):
    lines = 30_000
    script = program(f"""
        import os, sys
        rank = os.environ["RANK"]
        for number in range({lines}):
            stream = sys.stdout if number % 2 else sys.stderr
            stream.write(f"{{rank}} {{number}} {{'x' * (number % 150)}}\\n")
    """)
    done = launcher("run", "-n", 2, script)
    assert done.returncode == 0
    seen = collections.defaultdict(list)
    for line in (done.stdout + done.stderr.partition("\n")[2]).splitlines():
        match = re.fullmatch(r"\[(\d)\] (\d) (\d+) (x*)", line)
        assert match, f"torn: {line!r}"
        assert match[1] == match[2]
        assert len(match[4]) == int(match[3]) % 150
        seen[match[1]].append(int(match[3]))
    for rank in "01":
        odd = [number for number in seen[rank] if number % 2]
        even = [number for number in seen[rank] if not number % 2]
        assert odd == list(range(1, lines, 2))  # in the order they were written
        assert even == list(range(0, lines, 2))


def test_a_long_line_without_an_end_is_not_torn(launcher, program):
    done = launcher("run", "-n", 1, program("print('y' * 3_000_000, end='')"))
    assert done.stdout == "[0] " + "y" * 3_000_000 + "\n"


def test_a_reader_who_has_had_enough_ends_the_job(launcher, program):
    script = program("""
        while True:
            print("on and on")
    """)
    process = launcher.start("run", "-n", 2, script)
    assert process.stdout.readline().endswith("on and on\n")
    process.stdout.close()
    assert process.wait(timeout=30) == 128 + 13
    assert "Traceback" not in process.stderr.read()


def test_a_full_disk_is_said(launcher, program):
    process = subprocess.run(
        [sys.executable, "-m", "launch", "run", "-n", "1", program("print('lost')")],
        cwd=launcher.folder,
        env=launcher.environment(),
        stdout=os.open("/dev/full", os.O_WRONLY),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.returncode == 1
    assert "collectives: cannot write: No space left on device" in process.stderr


def test_a_descriptor_that_does_not_block_still_gets_all(tmp_path):
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    content = b"z" * 500_000
    with (tmp_path / "copy").open("wb") as copy:
        reader = subprocess.Popen(["cat"], stdin=reading, stdout=copy)
    os.close(reading)
    DescriptorSink(writing).write(content)
    os.close(writing)
    assert reader.wait(timeout=30) == 0
    assert (tmp_path / "copy").read_bytes() == content


def test_progress_into_a_file_is_shown_now_and_then(monkeypatch):
    out = MemorySink()
    console = Console(out, MemorySink())
    clock = iter([100.0, 100.1, 100.2, 101.3])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    for state in (b"1%", b"2%", b"3%", b"4%"):
        console.show_partial(0, Stream.OUT, state, overwriting=True)
    console.show_lines(0, Stream.OUT, [b"4%", b"done"])
    assert out.written == b"[0] 1%\n[0] 4%\n[0] done\n"


def test_a_begun_line_is_not_shown_in_a_file():
    out = MemorySink()
    console = Console(out, MemorySink())
    console.show_partial(0, Stream.OUT, b"begun", overwriting=False)
    console.show_lines(0, Stream.OUT, [b"begun and ended"])
    assert out.written == b"[0] begun and ended\n"


def test_a_terminal_shows_the_begun_line_below_the_others(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "20")
    screen = MemorySink(terminal=True)
    console = Console(screen, screen)
    console.show_partial(0, Stream.ERR, b"10%", overwriting=True)
    console.show_lines(1, Stream.OUT, [b"hello"])
    console.show_partial(0, Stream.ERR, b"wide " * 10, overwriting=True)
    console.show_lines(0, Stream.ERR, [b"100%"])
    clear = b"\r\x1b[K"
    assert screen.written == b"".join([
        b"[0] 10%", clear, b"[1] hello\n", b"[0] 10%",
        clear, b"[0] wide wide wide ", clear, b"[0] 100%\n",
    ])  # fmt: skip


def test_on_a_terminal_marks_are_coloured_and_the_width_is_told(launcher, program):
    script = program("import shutil; print(shutil.get_terminal_size().columns)")
    controller, terminal = pty.openpty()
    environment = launcher.environment({"NO_COLOR": None, "COLUMNS": None, "TERM": "xterm"})
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            PTY_PARENT,
            sys.executable,
            "-m",
            "launch",
            "run",
            "-n",
            "1",
            script,
        ],
        cwd=launcher.folder,
        env=environment,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    seen = b""
    while select.select([controller], [], [], 30)[0]:
        try:
            data = os.read(controller, 4096)
        except OSError:  # the other side has closed
            break
        if not data:
            break
        seen += data
    assert process.wait(timeout=30) == 0
    os.close(controller)
    assert b"\x1b[36m[0]\x1b[0m 96\r\n" in seen


PTY_PARENT = """
import fcntl, os, struct, sys, termios
fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_rank_0_reads_our_stdin_and_the_others_none(launcher, program):
    script = program("import sys; print(repr(sys.stdin.read()))")
    done = launcher("run", "-n", 2, script, text="data")
    assert sorted(done.stdout.splitlines()) == ["[0] 'data'", "[1] ''"]


@pytest.mark.parametrize(
    ("closing", "expected"),
    [("<&-", ["[0] ''"]), (">&-", []), ("2>&-", ["[0] ''"]), ("<&- >&- 2>&-", [])],
)
def test_closed_streams_are_no_trouble(launcher, program, closing, expected):
    script = program("import sys; print(repr(sys.stdin.read()))")
    command = f"{sys.executable} -m launch run -n 1 {script} {closing}"
    process = launcher.start(command, command=("sh", "-c"))
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out.splitlines()) == (0, expected), err
