"""Pictures in rows and columns, as one PNG."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

GAP = 1  # pixels between pictures, before they are enlarged
ENLARGED = 3
WHITE = 255


def draw_grid(pictures: Tensor, columns: int, path: Path) -> None:
    """Writes pictures (n, 3, height, width) in [-1, 1] row by row, each pixel as a small square."""
    count, colours, height, width = pictures.shape
    rows = -(-count // columns)
    high, wide = height + GAP, width + GAP
    grid = np.full((rows * high + GAP, columns * wide + GAP, colours), WHITE, np.uint8)
    pixels = pictures.clamp(-1, 1).add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).numpy()
    for index, picture in enumerate(pixels):
        row, column = divmod(index, columns)
        top, left = row * high + GAP, column * wide + GAP
        grid[top : top + height, left : left + width] = picture
    enlarged = grid.repeat(ENLARGED, axis=0).repeat(ENLARGED, axis=1)
    Image.fromarray(enlarged).save(path)
