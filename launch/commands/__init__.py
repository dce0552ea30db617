"""The sub-commands of `collectives`: one file each, found by looking into this folder.

A command is a module `launch/commands/<name>.py` with three names:

    HELP = "one line for the list of commands"

    def configure(parser: argparse.ArgumentParser) -> None:
        '''Adds this command's arguments to its own parser (its prog is set already).'''

    def execute(arguments: argparse.Namespace) -> int:
        '''Does it and returns the exit code.'''

The file's name is the command's name, with `_` written `-` on the command line. An optional
`DESCRIPTION` is a longer text for `collectives <name> --help`, printed as it stands; with
`INTERMIXED = True` options may also follow positional arguments.
A command that hands words on to another program adds

    def separate(words: Sequence[str]) -> tuple[list[str], list[str]]:
        '''Its own words, and the others: found untouched as `arguments.rest`.'''

Listing the commands imports every one of them, so a command imports nothing heavy at its top:
torch, numpy, collectives and trainers are imported inside `execute` (or `configure`).

What the user got wrong (a file that does not exist, a key that is unknown) is raised as
`CommandError(text)`, which names what was expected and what was found: it is printed as
`collectives <name>: error: <text>` without a traceback, and the exit code is 2. Every other
exception is a mistake of ours and keeps its traceback.

A command that starts ranks does so through `launch.jobs`:

    from launch.jobs import module_command, run_job

    return run_job(module_command("trainers.something", ["--flag", "1"]), ranks=arguments.ranks)

which starts, watches and ends the ranks as `collectives run` does and returns the exit code.
"""

from __future__ import annotations


class CommandError(Exception):
    """A mistake of the person at the command line; printed without a traceback, exit code 2."""
