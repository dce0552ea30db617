"""Settings of a run: typed dataclasses, filled from a YAML file and `key=value` settings.

The dataclasses stand beside what they configure and are the only definition: the keys of the file,
those of `--set`, the types and the defaults shown by `--print_config` all come from them. A key
that does not exist is refused with the nearest one that does.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import json
import re
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonargparse
import yaml

from trainers.errors import ConfigurationError, TrainerError

if TYPE_CHECKING:
    from trainers.run_config import RunConfig

TASKS = {
    "super_resolution": "trainers.super_resolution.task:SuperResolutionConfig",
    "language_model": "trainers.language_model.task:LanguageModelConfig",
    "diffusion": "trainers.diffusion.task:DiffusionConfig",
}
"""Every task's name in a configuration, and where its dataclass is."""


def read_config(path: Path, overrides: Sequence[str] = (), origin: str | None = None) -> RunConfig:
    """The configuration in a file, with `key=value` settings put over it.

    Args:
        path: of the file.
        overrides: the settings.
        origin: what the file is called in messages; by default its path.

    Raises:
        ConfigurationError: no such file, not YAML, a key or value that does not fit; the message
            names the key, what was expected and what was found.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigurationError(f"cannot read the configuration {path}: {reason}") from error
    try:
        data = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path} is not YAML: {_on_one_line(error)}") from error
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}, {error}") from None
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise ConfigurationError(f"{path}: expected keys and values, found {data!r}")
    for setting in overrides:
        key, value = _parsed(setting)
        _put(data, key, value)
    return config_from(data, " --set ".join([origin or str(path), *overrides]))


def config_from(data: dict[str, Any], origin: str) -> RunConfig:
    """The configuration that plain data means; `origin` says in messages where it is from."""
    kind = config_type(data.get("task"), origin)
    _check_keys(kind, data, origin)
    parser = _parser(kind)
    try:
        # The name before version 4.49 is an older one.
        instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
        config = instantiate(parser.parse_object(data))
        made = typing.cast("RunConfig", kind(**vars(config)))
    except TrainerError:
        raise
    except (jsonargparse.ArgumentError, TypeError, ValueError) as error:
        if isinstance(error.__context__, TrainerError):
            raise error.__context__ from None
        refused = _in_our_words(kind, data, str(error)) or _on_one_line(error)
        raise ConfigurationError(f"{origin}: {refused}") from error
    return made


def as_data(config: RunConfig) -> dict[str, Any]:
    """A configuration as plain data, from which `config_from` makes it again."""
    # Through JSON, which has neither tuples nor paths: the same data as when read from a file.
    plain = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    return typing.cast("dict[str, Any]", plain)


def as_yaml(config: RunConfig) -> str:
    """A configuration as a file that gives it again, every default written out."""
    return yaml.safe_dump(as_data(config), sort_keys=False, default_flow_style=None)


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """The dotted names of settings that differ between two configurations as plain data."""
    found: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append(f"{prefix}{key}")
    return found


class _Loader(yaml.SafeLoader):
    """Which refuses a key given twice in one place, of which YAML's would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            line = key.start_mark.line + 1
            if name in lines:
                raise ConfigurationError(
                    f"line {line}: expected the key {name!r} once, found it in line {lines[name]} "
                    "too"
                )
            if name is not None:
                lines[name] = line
        return super().construct_mapping(node, deep)


def config_type(task: Any, origin: str) -> type[Any]:
    """The dataclass of a task's configuration; `origin` says in messages where the name is from."""
    if task is None:
        raise ConfigurationError(f"{origin}: expected `task:` to be one of {_listed()}, found none")
    if task not in TASKS:
        raise ConfigurationError(
            f"{origin}: task: expected one of {_listed()}, found {task!r}{_nearest(task, TASKS)}"
        )
    module, _, name = TASKS[task].partition(":")
    return typing.cast("type[Any]", getattr(importlib.import_module(module), name))


def _listed() -> str:
    return ", ".join(TASKS)


def _parser(kind: type[Any]) -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind)
    return parser


def _check_keys(kind: type[Any], data: dict[Any, Any], origin: str, prefix: str = "") -> None:
    """Refuses keys the dataclass does not have; the checks of types are the parser's."""
    types = typing.get_type_hints(kind)
    for key, value in data.items():
        if key not in types:
            name = f"{prefix}{key}"
            hint = _nearest(key, types, prefix) or _elsewhere(str(key))
            raise ConfigurationError(f"{origin}: unknown key {name!r}{hint}")
        inner = types[key]
        if dataclasses.is_dataclass(inner) and isinstance(inner, type):
            if not isinstance(value, dict):
                raise ConfigurationError(
                    f"{origin}: {prefix}{key}: expected keys below it "
                    f"({', '.join(typing.get_type_hints(inner))}), found {value!r}"
                )
            _check_keys(inner, value, origin, f"{prefix}{key}.")
        elif value is None and type(None) not in typing.get_args(inner):
            # Which the parser takes for a setting left out.
            raise ConfigurationError(
                f"{origin}: {prefix}{key}: expected {described_type(inner)}, found nothing"
            )


def _in_our_words(kind: type[Any], data: dict[str, Any], refusal: str) -> str | None:
    """Key, expected and found, of what the parser refuses in terms of Python's classes."""
    named = re.search(r'key "([\w.]+)"', refusal)
    if named is None:
        return None
    expected: Any = kind
    found: Any = data
    for part in named[1].split("."):
        if not dataclasses.is_dataclass(expected) or not isinstance(found, dict):
            return None
        types = typing.get_type_hints(expected)
        if part not in types or part not in found:
            return None
        expected, found = types[part], found[part]
    return f"{named[1]}: expected {described_type(expected)}, found {found!r}"


def described_type(kind: Any) -> str:
    """A type as people who write YAML know it: `a number`, `two numbers`, `'adam' or 'muon'`."""
    inner = typing.get_args(kind)
    origin = typing.get_origin(kind)
    if origin is typing.Literal:
        return " or ".join(map(repr, inner))
    if type(None) in inner:
        return (
            " or ".join(described_type(each) for each in inner if each is not type(None))
            + ", or null"
        )
    if origin is tuple and inner[-1] is not ...:
        return f"a list of {len(inner)}: {', '.join(map(described_type, inner))}"
    if origin in (list, tuple):
        return f"a list, each {described_type(inner[0])}"
    return _DESCRIBED.get(kind, str(kind))


_DESCRIBED = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    Path: "a path",
}


def _elsewhere(key: str) -> str:
    """A key that is right but for its place, or nearly right: looked for in every section."""
    every = {
        full.rsplit(".", 1)[-1]: full for task in TASKS for full in _dotted(config_type(task, ""))
    }
    close = difflib.get_close_matches(key, every, n=1)
    return f" (did you mean {every[close[0]]!r}?)" if close else ""


def _dotted(kind: type[Any], prefix: str = "") -> list[str]:
    names: list[str] = []
    for key, inner in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(inner) and isinstance(inner, type):
            names += _dotted(inner, f"{prefix}{key}.")
        names.append(f"{prefix}{key}")
    return names


def _nearest(name: Any, names: typing.Iterable[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(str(name), list(names), n=1)
    return f" (did you mean '{prefix}{close[0]}'?)" if close else ""


def _parsed(setting: str) -> tuple[str, Any]:
    key, equals, text = setting.partition("=")
    if not equals or not re.fullmatch(r"\w+(\.\w+)*", key):
        raise ConfigurationError(
            f"--set: expected key=value (as in train.epochs=3), found {setting!r}"
        )
    try:
        # 1e-3 is a number to people and, for want of a dot, a text to YAML.
        return key, float(text) if re.fullmatch(r"[-+]?\d+[eE][-+]?\d+", text) else yaml.safe_load(
            text
        )
    except yaml.YAMLError as error:
        raise ConfigurationError(f"--set {key}: not a YAML value: {text!r}") from error


def _put(data: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        inner = data.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ConfigurationError(f"--set {key}: {section!r} is a value, with no keys below it")
        data = inner
    data[last] = value


def _on_one_line(error: Exception) -> str:
    return " ".join(str(error).split())
