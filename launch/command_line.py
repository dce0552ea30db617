"""The `collectives` command: finds the sub-command by name in launch/commands and runs it."""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from launch import commands
from launch.commands import CommandError

PROGRAM = "collectives"


def command_names() -> list[str]:
    """The names of all sub-commands, from the files in launch/commands."""
    (folder,) = commands.__path__
    files = (path.stem for path in Path(folder).glob("*.py"))
    return sorted(name.replace("_", "-") for name in files if not name.startswith("_"))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv` (by default the process's own) and returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    names = command_names()
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview(names))
        return 0
    if words == ["--version"]:
        from collectives.version import __version__

        print(f"{PROGRAM} {__version__}")
        return 0
    name, rest = words[0], words[1:]
    if name not in names:
        print(f"{PROGRAM}: error: {_unknown(name, names)}", file=sys.stderr)
        return 2
    command = _load(name)
    parser = argparse.ArgumentParser(
        prog=f"{PROGRAM} {name}",
        description=getattr(command, "DESCRIPTION", command.HELP),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.configure(parser)
    rest_words: list[str] | None = None
    if hasattr(command, "separate"):
        rest, rest_words = command.separate(rest)
    try:
        if getattr(command, "INTERMIXED", False):
            arguments = parser.parse_intermixed_args(rest)
        else:
            arguments = parser.parse_args(rest)
        if rest_words is not None:
            arguments.rest = rest_words
    except SystemExit as end:  # argparse has printed what was wrong, or the help
        return end.code if isinstance(end.code, int) else 1
    try:
        return int(command.execute(arguments))
    except CommandError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # who read our output has seen enough, as `| head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def _load(name: str) -> ModuleType:
    return importlib.import_module(f"{commands.__name__}.{name.replace('-', '_')}")


def _overview(names: Sequence[str]) -> str:
    width = max(map(len, names))
    lines = [f"usage: {PROGRAM} COMMAND ...", "", "commands:"]
    lines += [f"  {name:<{width}}  {_load(name).HELP}" for name in names]
    lines += [
        "",
        f"`{PROGRAM} COMMAND --help` says more about one of them;",
        f"`{PROGRAM} --version` which version this is.",
    ]
    return "\n".join(lines)


def _unknown(name: str, names: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    return f"unknown command {name!r}; the commands are {', '.join(names)}.{hint}"
