"""What is built and shipped: one version, a changelog, files that name no machine or registry."""

from __future__ import annotations

import ast
import re
import subprocess
import sysconfig
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import collectives
from transports import _native

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def tracked_files() -> list[Path]:
    """Every file of the source tree: what git sees, or, in an unpacked sdist, all but products."""
    if (ROOT / ".git").exists():
        listing = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        paths = [ROOT / name for name in listing.stdout.split("\0") if name]
    else:
        products = re.compile(r"/(\.venv[^/]*|build|dist|runs|__pycache__|\.\w+_cache)/")
        paths = [path for path in ROOT.rglob("*") if not products.search(f"{path}/")]
    return [path for path in paths if path.is_file()]


def test_the_version_is_said_once():
    assert collectives.__version__ == PROJECT["version"]
    assert metadata.version(PROJECT["name"]) == PROJECT["version"]


def test_the_changelog_tells_of_this_version():
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert PROJECT["version"] in headings or "Unreleased" in headings


def test_the_license_is_whole():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text


def test_a_constraint_exists_for_every_requirement():
    pinned = {
        canonical(line.split("==")[0])
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    }
    extras = PROJECT["optional-dependencies"]
    wanted = [*PROJECT["dependencies"], *(name for extra in extras.values() for name in extra)]
    missing = {canonical(re.split(r"[<>=!~;\[ ]", name)[0]) for name in wanted} - pinned
    assert not missing


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_constraint_is_exact():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    wrong = [x for x in lines if x and not x.startswith("#") and not re.fullmatch(r"\S+==\S+", x)]
    assert not wrong


def test_the_command_is_installed():
    assert (Path(sysconfig.get_path("scripts")) / "collectives").is_file()


def test_the_stub_matches_the_compiled_module():
    tree = ast.parse((ROOT / "transports" / "_native.pyi").read_text())
    described = set()
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            described.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            described.add(node.target.id)
    compiled = {name for name in dir(_native) if not name.startswith("_")}
    assert {name for name in described if not name.startswith("_")} == compiled


# Joined here so that this file does not contain what it looks for.
FORBIDDEN = [
    ".".join(parts)
    for parts in [
        ("pypi", "org"),
        ("files", "pythonhosted", "org"),
        ("download", "pytorch", "org"),
        ("deb", "debian", "org"),
        ("archive", "ubuntu", "com"),
        ("registry", "npmjs", "org"),
        ("conda", "anaconda", "org"),
    ]
]


@pytest.mark.parametrize("host", FORBIDDEN)
def test_no_file_names_a_registry(host):
    # Where packages come from is the affair of whoever installs: pip's and apt's own settings.
    naming = [
        str(path.relative_to(ROOT))
        for path in tracked_files()
        if host.encode() in path.read_bytes()
    ]
    assert not naming


def test_no_file_names_the_folders_of_one_machine():
    # A home folder in a source file is somebody's own.
    homes = re.compile(rb"(?<![\w.])/(?:home|Users|root)/[a-z][\w.-]*/")
    naming = [str(p.relative_to(ROOT)) for p in tracked_files() if homes.search(p.read_bytes())]
    assert not naming
