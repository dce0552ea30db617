"""What `collectives tune` has left on this machine: its selection table and its model.

They lie in one folder, by default in the user's cache under the machine's name, since a home folder
may be shared by machines of several kinds. Where there is none, those of the package count.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from collectives import settings
from collectives.cost.parameters import Parameters
from collectives.selection import SelectionTable, default_table

TABLE = "selection.toml"
MODEL = "model.toml"

_PACKAGE_MODEL = Path(__file__).with_name("cost") / MODEL


def machine_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Processor and number of cores, such as "AMD EPYC, 2 cores"."""
    try:
        with cpuinfo.open(encoding="utf-8", errors="replace") as file:
            head = file.read(4096)
    except OSError:
        head = ""
    found = re.search(r"^(?:model name|CPU part)\s*:\s*(.+)$", head, re.MULTILINE)
    cores = os.cpu_count() or 1
    return f"{found[1].strip() if found else 'processor'}, {cores} core{'s' * (cores > 1)}"


def folder() -> Path | None:
    """Where this machine's files lie, or would; None if the user wants none."""
    place = settings.tuning_folder()
    if place is None:
        return None
    named, is_final = place
    return named if is_final else named / re.sub(r"[^A-Za-z0-9]+", "-", machine_name()).strip("-")


def machine_table() -> SelectionTable:
    """This machine's selection table, or the package's where it has not been tuned.

    Raises:
        ValueError: there is a file, but it is no such table.
    """
    text = _read(TABLE)
    if text is None:
        return default_table()
    try:
        return SelectionTable.from_toml(text)
    except ValueError as error:
        raise _unusable(TABLE, error) from None


def machine_model() -> Parameters:
    """This machine's model, or the package's where it has not been tuned.

    Raises:
        ValueError: there is a file, but it is no such model.
    """
    text = _read(MODEL)
    if text is None:
        return Parameters.from_toml(_PACKAGE_MODEL.read_text(encoding="utf-8"))
    try:
        return Parameters.from_toml(text)
    except ValueError as error:
        raise _unusable(MODEL, error) from None


def _read(name: str) -> str | None:
    place = folder()
    try:
        return None if place is None else (place / name).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None


def _unusable(name: str, error: ValueError) -> ValueError:
    return ValueError(
        f"{folder()}/{name}: {error}; run `collectives tune` again, remove the file, or set "
        "COLLECTIVES_TUNING=off"
    )
