"""The shape of the house: imports point down, files stay small, names stay distinct."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = ("transports", "collectives", "trainers", "launch")
"""From the ground up: a module imports its own layer and those before it."""

MODULES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))
SOURCES = MODULES + sorted(
    path
    for folder in ("native", "cuda_ipc")
    for path in (ROOT / "transports" / folder).glob("*")
    if path.suffix in {".cpp", ".hpp", ".cu", ".cuh"}
)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported_packages(tree: ast.AST) -> set[str]:
    """Top-level names of every import in a module, those within functions included."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down(path):
    layer = path.relative_to(ROOT).parts[0]
    above = set(LAYERS[LAYERS.index(layer) + 1 :])
    upward = imported_packages(ast.parse(path.read_text())) & above
    assert not upward, f"{name_of(path)} imports {sorted(upward)}, which lies above {layer}"


def test_the_import_check_sees_an_import_inside_a_function():
    assert imported_packages(ast.parse("def f():\n from launch.x import y\n import a.b")) == {
        "launch",
        "a",
    }


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_file_is_short(path):
    lines = len(path.read_text().splitlines())
    assert lines <= 400, f"{name_of(path)} has {lines} lines: one idea a file, up to 400"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_says_its_idea(path):
    assert ast.get_docstring(ast.parse(path.read_text())), f"{name_of(path)} has no docstring"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_names_say_something(path):
    assert path.stem not in {"utils", "util", "helpers", "common", "manager", "misc"}


def test_no_public_function_has_a_modules_name():
    modules = {path.stem for path in MODULES} | {path.parent.name for path in MODULES}
    clashes = []
    for path in MODULES:
        for node in ast.parse(path.read_text()).body:
            function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            if function and not node.name.startswith("_") and node.name in modules - {path.stem}:
                clashes.append(f"{name_of(path)}: {node.name}")
    assert not clashes


def run_python(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("package", ["collectives", "transports", "launch"])
def test_importing_loads_nothing_heavy(package):
    program = f"""
import sys, {package}
heavy = {{"torch", "cupy", "mpi4py", "ray", "matplotlib", "skimage", "sklearn", "ml_dtypes"}}
print(sorted(heavy & set(sys.modules)))
"""
    assert run_python(program) == "[]"
