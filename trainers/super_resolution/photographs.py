"""The photographs: those that come with scikit-image and scikit-learn, or any folder of images.

Only files inside the installed packages are used: nothing is fetched. Networks are trained on
luminance, the Y of YCbCr after ITU-R BT.601 in full range (0.299 R + 0.587 G + 0.114 B), in 8 bits.
Some photographs are held out whole: no crop of them is ever trained on.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from trainers.errors import ConfigurationError, DataError

Pixels = npt.NDArray[np.uint8]

LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)

# (package, folder within it, files): photographs, no drawings or pages of text.
SAMPLES = (
    (
        "skimage",
        "data",
        (
            *("astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png"),
            *("grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png"),
            *("motorcycle_left.png", "motorcycle_right.png", "retina.jpg", "rocket.jpg"),
        ),
    ),
    ("sklearn", "datasets/images", ("china.jpg", "flower.jpg")),
)
SAMPLES_HELD_OUT = ("camera", "chelsea", "coffee", "china")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which photographs, and what is cut from them.

    Attributes:
        path: folder of images, searched in depth; null for the sample photographs.
        held_out: names (without suffix) of images that are judged on and never trained on; null for
            camera, chelsea, coffee and china of the samples, or a share of the folder.
        held_out_share: that share of a folder's images, chosen by a hash of names; at least 1.
        crop: side of a training crop, in low-resolution pixels.
        edge: low-resolution pixels along a crop's border that the loss leaves out, since there the
            network sees its zero padding.
        detail: how much crops are preferred where bicubic errs: the chance of a place goes with
            (mean squared error there) ** detail; 0 for all places alike.
        planes: whether the red, green and blue plane of a colour image are trained on, too, as if
            they were photographs of their own.
        sizes: what is trained on of each photograph: itself (1.0) and smaller versions of it.
    """

    path: Path | None = None
    held_out: list[str] | None = None
    held_out_share: float = 0.1
    crop: int = 20
    edge: int = 2
    detail: float = 0.5
    planes: bool = True
    sizes: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if self.crop < 4:
            raise ConfigurationError(f"data.crop: expected 4 or more, found {self.crop}")
        if not 0 <= 2 * self.edge < self.crop:
            raise ConfigurationError(
                f"data.edge: expected 0 to less than half of data.crop ({self.crop}), "
                f"found {self.edge}"
            )
        if not 0 < self.held_out_share < 1:
            raise ConfigurationError(
                "data.held_out_share: expected a number between 0 and 1, "
                f"found {self.held_out_share}"
            )
        if not 0 <= self.detail <= 2:
            raise ConfigurationError(f"data.detail: expected 0 to 2, found {self.detail}")
        if not self.sizes or not all(0.1 <= size <= 1 for size in self.sizes):
            raise ConfigurationError(
                f"data.sizes: expected numbers from 0.1 to 1, found {list(self.sizes)}"
            )


@dataclass(frozen=True, kw_only=True)
class Photographs:
    """Files by name, in a fixed order."""

    trained: dict[str, Path]
    held_out: dict[str, Path]


def find_photographs(config: DataConfig) -> Photographs:
    """Which files are trained on and which are held out."""
    if config.path is None:
        files, held = _sample_files(), list(SAMPLES_HELD_OUT)
    else:
        files = _files_below(config.path)
        held = _share(files, config.held_out_share)
    if config.held_out is not None:
        held = config.held_out
    for name in held:
        if name not in files:
            close = difflib.get_close_matches(name, files, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise DataError(
                f"data.held_out: expected names among the {len(files)} images, found {name!r}{hint}"
            )
    trained = {name: path for name, path in files.items() if name not in held}
    if not trained or not held:
        raise DataError(
            f"expected images to train on and images to hold out, found {len(trained)} and "
            f"{len(held)} in {config.path or 'the sample photographs'}"
        )
    return Photographs(trained=trained, held_out={name: files[name] for name in held})


def open_image(path: Path) -> Image.Image:
    """An image, decoded, the right way up."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image: Image.Image = Image.open(path)
            image.load()
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: expected an image, found a file of no known format") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{path}: larger than what can be trusted: {error}") from error
    except (OSError, SyntaxError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DataError(f"{path}: cannot be read as an image: {reason}") from error
    from PIL import ImageOps

    return ImageOps.exif_transpose(image)


def luminance_of(image: Image.Image) -> Pixels:
    """Y of an image of any mode; transparency is left out of account."""
    if image.mode in ("1", "L", "LA", "La"):
        return np.asarray(image.convert("L"))
    if image.mode.startswith(("I", "F")):
        return np.rint(_scaled(image) * 255).astype(np.uint8)
    light = np.asarray(image.convert("RGB"), dtype=np.float32) @ LUMINANCE
    result: Pixels = np.rint(light).astype(np.uint8)
    return result


def planes_of(image: Image.Image) -> dict[str, Pixels]:
    """The red, green and blue plane of a colour image by name; none of a grey one."""
    if image.mode in ("1", "L", "LA", "La") or image.mode.startswith(("I", "F")):
        return {}
    return dict(zip(("red", "green", "blue"), _channels(image.convert("RGB")), strict=True))


def resized(pixels: Pixels, size: float) -> Pixels:
    """A plane at `size` times its width and height."""
    if size == 1:
        return pixels
    image = Image.fromarray(pixels)
    wanted = (round(image.width * size), round(image.height * size))
    return np.asarray(image.resize(wanted, Image.Resampling.BICUBIC))


def _channels(image: Image.Image) -> list[Pixels]:
    return [np.asarray(plane) for plane in image.split()]


def _scaled(image: Image.Image) -> npt.NDArray[np.float32]:
    """An image of more than 8 bits in [0, 1]: 16 bits, or floats that are there already."""
    values = np.asarray(image, dtype=np.float32)
    if not image.mode.startswith("F"):
        values = values / np.float32(65535)
    return values.clip(0, 1)


def _sample_files() -> dict[str, Path]:
    files = {}
    for package, folder, names in SAMPLES:
        # The package's place without importing it, which takes a second.
        found = importlib.util.find_spec(package)
        if found is None or found.origin is None:
            raise DataError(
                f"the sample photographs need {package}: install the extra `train`, or give a "
                "folder of images with --set data.path=FOLDER"
            )
        for name in names:
            path = Path(found.origin).parent / folder / name
            if path.exists():
                files[path.stem] = path
    return files


def _files_below(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        state = "a file" if folder.exists() else "nothing"
        raise DataError(f"data.path: expected a folder of images, found {state} at {folder}")
    suffixes = Image.registered_extensions()
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes)
    if not paths:
        raise DataError(f"data.path: expected images in {folder}, found none")
    files: dict[str, Path] = {}
    for path in paths:
        name = str(path.relative_to(folder).with_suffix(""))
        files[name if name not in files else str(path.relative_to(folder))] = path
    return files


def _share(files: dict[str, Path], share: float) -> list[str]:
    """Names chosen by their hash: the same whatever the order and wherever the folder is."""
    by_hash = sorted(files, key=lambda name: hashlib.sha256(name.encode()).digest())
    return sorted(by_hash[: math.ceil(share * len(files))])
