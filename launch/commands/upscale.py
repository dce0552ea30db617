"""`collectives upscale`: enlarges any image with a network that `collectives train` has trained."""

from __future__ import annotations

import argparse
from pathlib import Path

from launch.commands import CommandError

HELP = "enlarge an image with a trained network"
DESCRIPTION = """\
Enlarge an image with a trained network:

    collectives upscale runs/espcn photograph.jpg -o large.png

CHECKPOINT is a file, or the folder of a run (its latest checkpoint). The network does luminance;
colour differences and transparency are enlarged by bicubic interpolation. Greyscale stays
greyscale, 16 bits stay 16 bits. The image may be of any size: it is worked on in tiles."""
INTERMIXED = True


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument("image", type=Path, metavar="IMAGE")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.png")


def execute(arguments: argparse.Namespace) -> int:
    """Reads, enlarges, writes."""
    from launch.commands.train import check_installed

    check_installed()
    from trainers.errors import TrainerError
    from trainers.super_resolution.upscaling import upscale_file

    try:
        before, after = upscale_file(arguments.checkpoint, arguments.image, arguments.output)
    except TrainerError as error:
        raise CommandError(str(error)) from error
    print(
        f"{arguments.image} ({before[0]} x {before[1]}) -> "
        f"{arguments.output} ({after[0]} x {after[1]})"
    )
    return 0
