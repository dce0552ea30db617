"""Condenses pytest's JUnit reports to a page: what ran where, how long, and what did not pass.

    .venv/bin/python tools/test_report.py build/test-report.xml

It says of the machine and the packages what it finds when it is run: run it right after the tests,
with the same Python, as `make test-full` does. The page is Markdown, on stdout.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

PACKAGES = ("collectives-runtime", "numpy", "torch", "ml_dtypes", "hypothesis", "pytest")
SLOWEST = 10
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Test:
    """One test's line of the report."""

    name: str
    folder: str
    seconds: float
    outcome: str  # passed, failed, error or skipped
    said: str


def read_tests(suites: list[ElementTree.Element]) -> list[Test]:
    """Every test of the reports. One that failed to tidy up is there once, as an error."""
    found: dict[str, Test] = {}
    for case in (case for suite in suites for case in suite.iter("testcase")):
        module = case.get("classname", "")
        name = f"{module.replace('.', '/')}.py::{case.get('name')}" if module else case.get("name")
        outcome, said = "passed", ""
        for tag, word in (("failure", "failed"), ("error", "error"), ("skipped", "skipped")):
            if (part := case.find(tag)) is not None:
                outcome, said = word, part.get("message", "").strip().partition("\n")[0]
        test = Test(
            str(name), "/".join(module.split(".")[:2]), float(case.get("time", 0)), outcome, said
        )
        before = found.get(test.name)
        if before is None or before.outcome == "passed":
            found[test.name] = test
    return list(found.values())


def page(reports: list[Path], command: str) -> str:
    """The whole page."""
    suites = [suite for report in reports for suite in ElementTree.parse(report).iter("testsuite")]
    tests = read_tests(suites)
    begun = min((suite.get("timestamp", "") for suite in suites), default="")
    seconds = sum(float(suite.get("time", 0)) for suite in suites)
    counts = Counter(test.outcome for test in tests)
    words = ("passed", "failed", "error", "skipped")
    lines = [
        f"# `{command}`",
        "",
        ", ".join(f"{counts[word]} {word}" for word in words) + f" in {clock(seconds)}.",
        "",
        f"- begun: {begun[:16].replace('T', ' ')}",
        f"- source: {revision()}",
        f"- machine: {machine()}",
        f"- Python {platform.python_version()}, {', '.join(versions())}",
        "",
        "| tests | count | seconds |",
        "|---|---|---|",
    ]
    folders: dict[str, list[Test]] = defaultdict(list)
    for test in tests:
        folders[test.folder].append(test)
    for folder, own in sorted(folders.items()):
        lines.append(f"| {folder} | {len(own)} | {sum(test.seconds for test in own):.0f} |")
    lines += ["", f"## The slowest {SLOWEST}", "", "| seconds | test |", "|---|---|"]
    for test in sorted(tests, key=lambda test: -test.seconds)[:SLOWEST]:
        lines.append(f"| {test.seconds:.1f} | `{test.name}` |")
    for word, title in (("failed", "Failures"), ("error", "Errors"), ("skipped", "Skips")):
        if counts[word]:
            lines += ["", f"## {title}", ""]
            lines += [f"- `{t.name}`: {t.said}" for t in tests if t.outcome == word]
    return "\n".join(lines) + "\n"


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} minutes"


def machine() -> str:
    """The processor, what we may use of it, and the system."""
    name = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            name = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return (
        f"{len(os.sched_getaffinity(0))} cores of {name}, {memory:.0f} GiB, "
        f"{platform.system()} {platform.release().partition('-')[0]} {platform.machine()}; "
        f"load at the end {os.getloadavg()[1]:.1f}"
    )


def revision() -> str:
    """The commit, and whether something is changed on top of it."""

    def git(*words: str) -> str:
        try:
            done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
        except FileNotFoundError:  # a machine that has the sources without it
            return ""
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no")
    return (git("rev-parse", "--short=12", "HEAD") or "unknown") + ", with changes" * bool(changed)


def versions() -> list[str]:
    """The packages that matter, as installed here."""
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            found.append(f"no {name}")
    return found


def main() -> int:
    """Prints the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "reports", type=Path, nargs="+", help="what pytest --junitxml has written, in parts maybe"
    )
    parser.add_argument("--command", default="make test-full", help="what wrote it")
    arguments = parser.parse_args()
    for report in arguments.reports:
        if not report.is_file():
            print(f"test_report: no file {report}", file=sys.stderr)
            return 2
    print(page(arguments.reports, arguments.command), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
