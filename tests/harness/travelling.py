"""How functions of test modules travel to ranks: by value, with no more than what they name.

By name, a rank would import the whole file: torch included where one test of it needs torch, and
that takes seconds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import ModuleType

import cloudpickle


@contextlib.contextmanager
def by_value(module: ModuleType) -> Iterator[None]:
    """Functions of `module` travel by value, as those of collected test modules always do."""
    if module.__name__ in cloudpickle.list_registry_pickle_by_value():
        yield
        return
    cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(module)
