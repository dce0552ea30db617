"""The command line says what was expected and what was found, before anything starts."""

from __future__ import annotations

import argparse
import signal
import sys

import pytest

import collectives
from launch import command_line
from launch.command_line import command_names, main
from launch.commands import CommandError, run


def refused(capsys, *words: str) -> str:
    """What the command line says when it refuses."""
    assert main(list(words)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    return captured.err


def test_every_command_is_listed_and_keeps_the_interface(capsys):
    assert main([]) == 0
    listed = capsys.readouterr().out
    names = command_names()
    assert "run" in names
    for name in names:
        command = command_line._load(name)
        assert f"  {name}" in listed
        assert command.HELP in listed
        assert callable(command.configure)
        assert callable(command.execute)
        assert main([name, "--help"]) == 0
        assert f"usage: collectives {name}" in capsys.readouterr().out


def test_the_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"collectives {collectives.__version__}\n"


def test_listing_the_commands_is_light(launcher):
    code = (
        "import sys; from launch.command_line import main; main([]); "
        "print([m for m in ('torch', 'numpy', 'rich', 'collectives') if m in sys.modules])"
    )
    process = launcher.start(code, command=(sys.executable, "-c"))
    out, _ = process.communicate(timeout=30)
    assert out.splitlines()[-1] == "[]"


def test_an_unknown_command_lists_the_valid_ones_and_the_nearest(capsys):
    said = refused(capsys, "rnu", "-n", "2")
    assert "unknown command 'rnu'" in said
    assert ", ".join(command_names()) in said
    assert "Did you mean 'run'?" in said
    assert "Did you mean" not in refused(capsys, "xyzzy")


def test_a_missing_script_is_named_with_the_nearest(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("")
    said = refused(capsys, "run", "-n", "2", "trian.py")
    assert said == "collectives run: error: no such script: trian.py. Did you mean train.py?\n"
    said = refused(capsys, "run", "-n", "2", "sub/train.py")
    assert "no such script: sub/train.py (the folder sub does not exist)" in said
    assert refused(capsys, "run", "-n", "2", "xyzzy.py").endswith("no such script: xyzzy.py\n")


def test_a_directory_is_not_a_program(capsys, tmp_path):
    said = refused(capsys, "run", "-n", "2", str(tmp_path))
    assert f"expected a program to run, found a directory: {tmp_path}" in said


def test_a_file_that_is_no_program_is_refused(capsys, tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    said = refused(capsys, "run", "-n", "2", str(tmp_path / "notes.txt"))
    assert "expected a Python script (*.py) or an executable program, found neither" in said


def test_a_script_that_cannot_be_read_is_refused(capsys, tmp_path, monkeypatch):
    (tmp_path / "secret.py").write_text("")
    monkeypatch.setattr(run.os, "access", lambda path, mode: False)  # root may read everything
    assert "cannot read the script" in refused(capsys, "run", "-n", "1", f"{tmp_path}/secret.py")


def test_an_unknown_program_and_an_unknown_module_are_refused(capsys):
    said = refused(capsys, "run", "-n", "2", "no-such-program-here")
    assert "'no-such-program-here' is neither a file nor a command on PATH" in said
    said = refused(capsys, "run", "-n", "2", "-m", "no_such_module.part")
    assert "no module named 'no_such_module'" in said


@pytest.mark.parametrize("ranks", ["0", "-3"])
def test_less_than_one_rank_is_refused(capsys, ranks, tmp_path):
    (tmp_path / "x.py").write_text("")
    said = refused(capsys, "run", "-n", ranks, str(tmp_path / "x.py"))
    assert said == (
        f"collectives run: error: the number of ranks must be at least 1, not {ranks}\n"
    )
    said = refused(capsys, "run", "-n", "1", "--threads", ranks, str(tmp_path / "x.py"))
    assert f"the number of threads per rank must be at least 1, not {ranks}" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-m", "json"], "expected -n N, how many ranks to start"),
        (["-n", "two", "x.py"], "invalid int value: 'two'"),
        (["-n", "2"], "expected SCRIPT, -m MODULE or PROGRAM, found nothing"),
        (["-n", "2", "-m"], "expected a module after -m, found nothing"),
        (["-n", "2", "--no-bond", "x.py"], "unrecognized arguments: --no-bond"),
    ],
)
def test_wrong_words_are_refused(capsys, words, said):
    assert said in refused(capsys, "run", *words)


def test_options_with_a_value_are_known_to_the_separation():
    parser = argparse.ArgumentParser()
    run.configure(parser)
    valued = {
        name for action in parser._actions if action.nargs != 0 for name in action.option_strings
    }
    assert valued == set(run.OPTIONS_WITH_VALUE)


@pytest.mark.parametrize(
    ("words", "own"),
    [
        (["-n", "2", "x.py", "-n", "3"], 2),
        (["-n2", "--no-bind", "x.py"], 2),
        (["--threads=3", "-m", "x", "--", "y"], 1),
        (["--log-dir", "d", "--", "x.py"], 2),
        (["-n"], 2),
    ],
)
def test_our_words_end_where_the_program_begins(words, own):
    assert run.separate(words) == (words[:own], words[own:])


def test_a_script_runs_as_python_runs_it(launcher, program):
    script = program("""
        import sys
        print(sys.argv, sys.path[0], __name__, sys.executable)
    """)
    done = launcher("run", "-n", 1, "--", script, "--flag", "-n", "3", "--", "-m", "x")
    words = [script, "--flag", "-n", "3", "--", "-m", "x"]
    assert done.stdout == f"[0] {words} {launcher.folder} __main__ {sys.executable}\n"


@pytest.mark.parametrize("words", [["-m", "package.inner"], ["--", "-m", "package.inner"]])
def test_a_module_runs_as_python_runs_it(launcher, program, tmp_path, words):
    (tmp_path / "package").mkdir()
    program("import sys; print(sys.argv[1:], sys.path[0], __name__)", "package/inner.py")
    done = launcher("run", "-n", 2, *words, "--flag", "--", "-n", "3")
    expected = f"['--flag', '--', '-n', '3'] {tmp_path} __main__"
    assert sorted(done.stdout.splitlines()) == [f"[0] {expected}", f"[1] {expected}"], done.stderr


def test_programs_run_by_path_and_by_name(launcher, program, tmp_path):
    script = program('#!/bin/sh\necho $RANK "$@"\n', "script")
    (tmp_path / script).chmod(0o755)
    done = launcher("run", "-n", 2, "./script", "a b", "-x")
    assert sorted(done.stdout.splitlines()) == ["[0] 0 a b -x", "[1] 1 a b -x"]
    done = launcher("run", "-n", 1, script)
    assert done.stdout == "[0] 0\n"
    done = launcher("run", "-n", 1, "echo", "-n", "by name")
    assert done.stdout == "[0] by name\n"


def test_a_program_that_cannot_be_executed_says_so(launcher, program, tmp_path):
    script = program("this is no program\n", "broken")
    (tmp_path / script).chmod(0o755)
    done = launcher("run", "-n", 1, "./broken")
    assert done.returncode == 126
    assert done.stderr.endswith(f"cannot execute {tmp_path}/broken: Exec format error\n")


def test_run_job_looks_for_its_program():
    from launch.jobs import run_job

    with pytest.raises(FileNotFoundError, match="no program 'no-such-program'"):
        run_job(["no-such-program"], 1)


def test_errors_of_commands_are_printed_and_mistakes_of_ours_are_not(capsys, monkeypatch):
    def wrong(arguments):
        raise CommandError("expected this, found that")

    def broken(arguments):
        raise ZeroDivisionError

    def interrupted(arguments):
        raise KeyboardInterrupt

    words = ["run", "-n", "1", "x.py"]
    monkeypatch.setattr(run, "execute", wrong)
    assert refused(capsys, *words) == "collectives run: error: expected this, found that\n"
    monkeypatch.setattr(run, "execute", broken)
    with pytest.raises(ZeroDivisionError):
        main(words)
    monkeypatch.setattr(run, "execute", interrupted)
    assert main(words) == 130


def test_launch_has_no_other_names():
    import launch

    with pytest.raises(AttributeError, match="no attribute 'spwan'"):
        _ = launch.spwan
    assert launch.RankFailedError.__name__ == "RankFailedError"


def test_a_reader_that_has_seen_enough_is_no_error(monkeypatch, tmp_path):
    def execute(arguments):
        raise BrokenPipeError

    monkeypatch.setattr(run, "execute", execute)
    with (tmp_path / "output").open("w", encoding="utf-8") as output:
        monkeypatch.setattr(sys, "stdout", output)  # whose descriptor is replaced
        assert main(["run", "-n", "1", "program.py"]) == 128 + signal.SIGPIPE
