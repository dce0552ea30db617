"""The folder of a run: made, an earlier run in it moved aside, a checkpoint in it gone on from."""

from __future__ import annotations

from pathlib import Path

from trainers.checkpoints import all_checkpoints, latest, read_bytes, unpacked
from trainers.configuration import as_data, differences
from trainers.errors import CheckpointError
from trainers.run_config import RunConfig


def checkpoint_to_resume(config: RunConfig) -> tuple[Path, bytes, list[str]]:
    """The latest checkpoint of the run's folder, its bytes, and the settings changed since.

    Raises:
        CheckpointError: there is none, or it is of another task or model, or beyond the run's end.
    """
    path = latest(config.run)
    data = read_bytes(path)
    checkpoint = unpacked(data, path)
    checkpoint.check_task(config.task, path)
    wanted = as_data(config)
    changed = differences(checkpoint.config, wanted)
    for key in changed:
        section, _, name = key.partition(".")
        if (
            section == "model"
            or key.startswith("lora.")  # not `lora`, which older checkpoints do not have
            or key in ("optimizer.kind", "train.average")
        ):
            old, new = checkpoint.config.get(section), wanted.get(section)
            found, expected = (part.get(name) if part else None for part in (old, new))
            raise CheckpointError(
                f"{path} is of another model or optimizer: {key}: expected {expected!r} as "
                f"configured, found {found!r}"
            )
    if checkpoint.step > config.train.steps:
        raise CheckpointError(
            f"{path} is beyond the end of the run: expected at most {config.train.steps} steps, "
            f"found {checkpoint.step}"
        )
    return path, data, [key for key in changed if key != "run"]


def begin_folder(folder: Path) -> Path | None:
    """Makes the folder of a new run; an earlier run there is moved aside, to the path returned."""
    aside = None
    try:
        if all_checkpoints(folder):
            numbers = range(1, 1_000_000)
            aside = next(p for n in numbers if not (p := Path(f"{folder}.{n}")).exists())
            folder.rename(aside)
        check_folder(folder)
    except OSError as error:
        raise CheckpointError(f"cannot make the run's folder {folder}: {error.strerror}") from error
    return aside


def check_folder(folder: Path) -> None:
    """Makes the run's folder if need be and refuses one where nothing can be written."""
    probe = folder / ".writable"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise CheckpointError(
            f"cannot write into the run's folder {folder}: {error.strerror}"
        ) from error
