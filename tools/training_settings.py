"""Makes docs/training_settings.md from the dataclasses of configurations; `--check` compares.

What a setting means stands in its dataclass's docstring, beside its type and default, and nowhere
else. One that has no words there is an error.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import typing
from pathlib import Path
from typing import Any

import yaml

from trainers.configuration import TASKS, config_type, described_type
from trainers.run_config import RunConfig

PAGE = Path(__file__).parents[1] / "docs" / "training_settings.md"

OPENING = """\
# Settings of training

Every setting of `collectives train`, in the file or by `--set key=value`; `--print_config` shows
those of a run. Beside each other stand what a setting means, with its unit and what 0 or null
stands for, what is expected, and the default. `python tools/training_settings.py` makes this page
from the dataclasses, which are the settings' only definition.
"""
HEAD = "| setting | what it is | expected | default |\n|---|---|---|---|"


def page() -> str:
    """The whole page."""
    kinds = {task: config_type(task, "") for task in TASKS}
    common = [each for each in dataclasses.fields(RunConfig) if each.name not in ("task", "run")]
    names = {each.name for each in common}
    parts = [OPENING, "## Of every task\n", HEAD]
    tasks = " or ".join(map(repr, kinds))
    parts.append(f"| `task` | {_meanings(RunConfig)['task']} | {tasks} | none |")
    for field in common:
        parts += _rows(RunConfig, field, "")
    for task, kind in kinds.items():
        parts += [f"\n## `task: {task}`\n", HEAD]
        for field in dataclasses.fields(kind):
            if field.name not in names and field.name != "task":
                parts += _rows(kind, field, "")
    return "\n".join(parts) + "\n"


def _rows(kind: type[Any], field: dataclasses.Field[Any], prefix: str) -> list[str]:
    """The rows of a setting, or of all in a section."""
    inner = typing.get_type_hints(kind)[field.name]
    if dataclasses.is_dataclass(inner) and isinstance(inner, type):
        section = f"{prefix}{field.name}."
        return [row for each in dataclasses.fields(inner) for row in _rows(inner, each, section)]
    meanings = _meanings(kind)
    if field.name not in meanings:
        raise SystemExit(f"{kind.__name__}: expected {field.name} in its docstring, found nothing")
    cells = (
        f"`{prefix}{field.name}`",
        meanings[field.name],
        described_type(inner),
        f"`{_default(field)}`",
    )
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"]


def _default(field: dataclasses.Field[Any]) -> str:
    """As it is written in a file."""
    made = field.default
    if field.default_factory is not dataclasses.MISSING:
        made = field.default_factory()
    if isinstance(made, Path):
        made = str(made)
    if isinstance(made, tuple):
        made = list(made)
    return yaml.safe_dump(made, default_flow_style=True, width=1000).removesuffix("\n...\n").strip()


def _meanings(kind: type[Any]) -> dict[str, str]:
    """Name -> words, of the part `Attributes:` of the docstrings of a dataclass and its bases."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        attributes = (inspect.cleandoc(each.__doc__ or "") + "\n").partition("Attributes:\n")[2]
        entries = re.findall(r"^ {4}(\w+): ((?:.+\n)(?: {8}.+\n)*)", attributes, flags=re.MULTILINE)
        found |= {name: " ".join(words.split()) for name, words in entries}
    return found


def main() -> int:
    """Writes the page, or compares it."""
    made = page()
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == made:
        print("up to date")
        return 0
    if "--check" in sys.argv[1:]:
        print(f"{PAGE.name}: stale; python tools/training_settings.py")
        return 1
    PAGE.write_text(made, encoding="utf-8")
    print(f"{PAGE.name}: written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
