"""From a checkpoint and an image file to an enlarged image file."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from trainers.checkpoints import load_weights, read_checkpoint, write_whole
from trainers.errors import DataError
from trainers.super_resolution.enlargement import enlarged_image
from trainers.super_resolution.network import Net
from trainers.super_resolution.photographs import open_image

TASK = "super_resolution"


def trained_network(path: Path) -> Net:
    """The network in a checkpoint, or in the latest checkpoint of a run's folder."""
    checkpoint = read_checkpoint(path)
    checkpoint.check_task(TASK, path)
    network = Net(checkpoint.config["model"]["upscale_factor"])
    load_weights(network, checkpoint.best_weights, str(path))
    return network


def upscale_file(checkpoint: Path, source: Path, target: Path) -> tuple[tuple[int, int], ...]:
    """Enlarges the image in `source` into `target`; returns the sizes (width, height) of both."""
    suffixes = Image.registered_extensions()
    writable = sorted(suffix for suffix, kind in suffixes.items() if kind in Image.SAVE)
    if target.suffix.lower() not in writable:
        raise DataError(
            f"{target}: expected a name that ends as an image's does (.png, .jpg, .tif, ...), "
            f"found {target.suffix!r}"
        )
    if not target.parent.is_dir():
        raise DataError(f"{target}: the folder {target.parent} does not exist")
    network = trained_network(checkpoint)
    image = open_image(source)
    result = enlarged_image(network, image, network.upscale_factor)
    encoded = io.BytesIO()
    try:
        profile = result.info.get("icc_profile")
        result.save(encoded, suffixes[target.suffix.lower()], icc_profile=profile)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{target}: this kind of file cannot hold an image of mode {result.mode}: {error}; "
            "try .png"
        ) from error
    write_whole(target, encoded.getvalue())
    return image.size, result.size
