# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Cells of 32x32 or 16x16 pixels: random masks, and filling of hidden or invalid pixels."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

#: Side of a cell in pixels, unless said otherwise: the stride of the last feature map of all usual
#: backbones.
CELL = 32


def random_cell_mask(
    batch: int,
    rows: int,
    cols: int,
    ratio: float = 0.6,
    device: torch.device | str | None = None,
) -> Bool[Tensor, 'batch rows cols']:
    """Draw which cells to hide: the same number in each image, without replacement.

    Args:
        batch: Number of images.
        rows: Rows of cells.
        cols: Columns of cells.
        ratio: Fraction of the cells to hide, from 0 to 1; the number is rounded up.
        device: Where to draw.

    Returns:
        True where a cell is hidden.
    """
    # Less a little: 0.6 of 25 cells is 15, in floating point a hair more
    hidden = math.ceil(ratio * rows * cols - 1e-9)
    order = torch.rand(batch, rows * cols, device=device).argsort(dim=1)
    mask = torch.zeros(batch, rows * cols, dtype=torch.bool, device=device)
    return mask.scatter(1, order[:, :hidden], True).view(batch, rows, cols)


def expand_mask(
    mask: Bool[Tensor, 'batch rows cols'], height: int, width: int
) -> Bool[Tensor, 'batch height width']:
    """Repeat a mask of cells for each pixel or token of a finer grid.

    Args:
        mask: One value a cell.
        height: Rows of the finer grid, a multiple of the mask's.
        width: Columns of the finer grid, a multiple of the mask's.

    Returns:
        The mask on the finer grid.

    Raises:
        ValueError: If the finer grid is no multiple of the mask's.
    """
    rows, cols = mask.shape[1:]
    if height % rows or width % cols:
        raise ValueError(
            f'a mask of {rows}x{cols} cells does not divide a grid of {height}x{width}: '
            'the grid must be a whole multiple of the cells, pass images of whole cells'
        )
    return mask.repeat_interleave(height // rows, 1).repeat_interleave(width // cols, 2)


def hide_cells(
    image: Float[Tensor, 'batch bands height width'],
    mask: Bool[Tensor, 'batch rows cols'],
    valid: Bool[Tensor, 'batch height width'] | None = None,
) -> Float[Tensor, 'batch bands height width']:
    """Set the hidden pixels to their image's mean of each band.

    Args:
        image: Views.
        mask: True where a cell is hidden.
        valid: True where a pixel holds data and counts in the mean; everywhere by default.

    Returns:
        The views with only the visible cells left.
    """
    hidden = expand_mask(mask, *image.shape[2:])[:, None]
    return image.where(~hidden, band_means(image, valid))


def band_means(
    image: Float[Tensor, 'batch bands height width'],
    valid: Bool[Tensor, 'batch height width'] | None = None,
) -> Float[Tensor, 'batch bands 1 1']:
    """Mean of each image's bands over the valid pixels.

    Args:
        image: Views or chips.
        valid: True where a pixel holds data; everywhere by default.

    Returns:
        The means; 0 where no pixel is valid.
    """
    if valid is None:
        return image.mean(dim=(2, 3), keepdim=True)
    known = valid[:, None]
    total = image.where(known, 0).sum(dim=(2, 3), keepdim=True)
    return total / known.sum(dim=(2, 3), keepdim=True).clamp_min(1)


def fill_invalid(image: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Put the band's mean where there is no data, before interpolation can spread it.

    Args:
        image: (batch, bands, height, width), of any value, also NaN, where not valid.
        valid: (batch, height, width), or None: everywhere.

    Returns:
        The image without what is not data, and the validity.
    """
    if valid is None:
        return image, torch.ones_like(image[:, 0], dtype=torch.bool)
    return image.where(valid[:, None], band_means(image, valid)), valid
