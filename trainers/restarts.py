"""A run whose launcher starts it anew after a failure goes on from its own last checkpoint.

Its own: the folder may hold an earlier run, and this one may have been killed before it moved that
aside. So a run leaves its name in its folder, the one that its launcher gives to all its starts,
and a restarted one goes on only where it finds that name. Nothing is left to guess by times or by
numbers of steps.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from trainers.checkpoints import all_checkpoints, write_whole

FILE = "run-id"
UNNAMED = ("", "none")  # torchrun calls every run "none" unless it is given a name


@dataclass(frozen=True)
class Start:
    """Which start of which run this is.

    Attributes:
        run: its name, equal at every start; empty if its launcher gives none.
        restart: how often it has been started before.
    """

    run: str = ""
    restart: int = 0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Self:
        """From the variables of torchrun, which our launcher sets too."""
        environment = os.environ if environment is None else environment
        run = environment.get("TORCHELASTIC_RUN_ID", "")
        restart = int(environment.get("TORCHELASTIC_RESTART_COUNT") or 0)
        return cls("" if run in UNNAMED else run, restart)

    def claim(self, folder: Path) -> None:
        """Makes the folder this run's, and no earlier one's."""
        if self.run:
            write_whole(folder / FILE, f"{self.run}\n".encode())
        else:
            (folder / FILE).unlink(missing_ok=True)

    def owns(self, folder: Path) -> bool:
        """Whether an earlier start of this run has claimed the folder."""
        try:
            claimed = (folder / FILE).read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return False
        return bool(self.run) and claimed == self.run

    def goes_on(self, folder: Path) -> bool:
        """Whether this start finds checkpoints of an earlier start of the same run."""
        return self.restart > 0 and self.owns(folder) and bool(all_checkpoints(folder))
