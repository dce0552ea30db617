"""What the pages on training show and list is what there is."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from trainers.configuration import TASKS, config_type

ROOT = Path(__file__).parents[2]
SETTINGS = (ROOT / "docs/training_settings.md").read_text(encoding="utf-8")


def test_the_page_of_settings_is_made_from_their_definitions():
    command = [sys.executable, "tools/training_settings.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("task", TASKS)
def test_every_setting_is_on_the_page(task):
    """By the configuration as plain data, not by what makes the page."""
    common, _, rest = SETTINGS.partition("## `task: ")
    own = common + next(each for each in rest.split("## `task: ") if each.startswith(task))
    rows = re.findall(r"^\| `([\w.]+)` \| (.*?) \| .+ \| .+ \|$", own, flags=re.MULTILINE)
    listed = [name for name, _ in rows]
    assert sorted(listed) == sorted(dotted(config_type(task, "")))
    assert all(len(meaning) > 10 for _, meaning in rows)


def dotted(kind):
    """The names that the command line takes, as `--print_config` has them."""
    from trainers.configuration import as_data

    def names(data, prefix=""):
        for key, value in data.items():
            if isinstance(value, dict):
                yield from names(value, f"{prefix}{key}.")
            else:
                yield prefix + key

    return names(as_data(kind()))


def test_a_setting_without_words_is_refused():
    spec = importlib.util.spec_from_file_location("page", ROOT / "tools/training_settings.py")
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    from dataclasses import dataclass, fields

    @dataclass
    class Silent:
        """Of which one has words.

        Attributes:
            told: something.
        """

        told: int = 0
        untold: int = 0

    told, untold = fields(Silent)
    assert page._rows(Silent, told, "a.") == ["| `a.told` | something. | a whole number | `0` |"]
    with pytest.raises(SystemExit, match="Silent: expected untold in its docstring"):
        page._rows(Silent, untold, "")


EXAMPLE = (ROOT / "examples/whole_loop.py").read_text(encoding="utf-8")


def losses_of(ranks, folder, epochs):
    """What the example says, by epoch."""
    command = [sys.executable, "-m", "launch", "run", "-n", str(ranks), "examples/whole_loop.py"]
    done = subprocess.run(
        [*command, str(folder), str(epochs)], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    found = re.findall(r"^\[0\] epoch (\d+): loss (\S+)$", done.stdout, flags=re.MULTILINE)
    return {int(epoch): float(loss) for epoch, loss in found}


def by_definition(epochs):
    """The same by plain torch, a batch at once."""
    inputs = torch.randn(131, 8, generator=torch.Generator().manual_seed(1))
    targets = inputs.sum(1, keepdim=True)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    found = {}
    for epoch in range(epochs):
        order = torch.randperm(131, generator=torch.Generator().manual_seed(epoch))
        whole = 0.0
        for batch in order.split(32):
            optimizer.zero_grad()
            loss = (net(inputs[batch]) - targets[batch]).square().mean()
            loss.backward()
            whole += loss.item() * len(batch)
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
        found[epoch + 1] = whole / 131
    return found


@pytest.mark.full
def test_the_whole_loop_of_the_training_page_is_what_one_process_does(tmp_path):
    shown = (ROOT / "docs/training.md").read_text(encoding="utf-8")
    assert f"```python\n{EXAMPLE}```" in shown
    expected = pytest.approx(by_definition(6), abs=2e-4)
    assert losses_of(3, tmp_path / "three", 6) == expected
    part = losses_of(2, tmp_path / "two", 3)
    assert (part | losses_of(2, tmp_path / "two", 6)) == expected
    assert max(part) == 3
    (tmp_path / "two" / "rank-0-of-2.pt").unlink()
    with pytest.raises(AssertionError, match="the files are of different epochs"):
        losses_of(2, tmp_path / "two", 7)
