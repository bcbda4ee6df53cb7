# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Interpolation of pixels, and means over blocks of them.

Arrays are (bands, rows, cols), and pixel coordinates those of the grids.
"""

import numpy as np
import torch
import torch.nn.functional as F

from .grids import Bools, Floats


def bilinear(
    data: Floats, valid: Bools, cols: Floats, rows: Floats
) -> tuple[Floats, Floats]:
    """Interpolate between the valid ones of the four nearest pixels.

    Args:
        data: (bands, rows, cols) float32, finite.
        valid: (rows, cols) bool, False where *data* means nothing.
        cols: (height, width) positions in pixels; those outside take the nearest edge.
        rows: (height, width) positions in pixels.

    Returns:
        Values (bands, height, width) float32, 0 where no pixel near is valid, and the weight
        (height, width) in [0, 1] that came from valid pixels.
    """
    height, width = valid.shape
    # In (x, y) from -1 to 1 across the image; in float64, as float32 is too coarse for large images
    at = torch.from_numpy(np.stack([cols / width, rows / height], -1)[None] * 2 - 1)
    layers = _weighted(data, valid).double()
    found = F.grid_sample(layers, at, padding_mode='border', align_corners=False)
    weight = found[0, -1].numpy()
    image = found[0, :-1].numpy() / np.maximum(weight, 1e-6)
    return image.astype(np.float32), weight


def shrink(data: Floats, valid: Bools, factor: int) -> tuple[Floats, Bools]:
    """Average blocks of pixels, as a coarser sensor would.

    Args:
        data: (bands, rows, cols) float32.
        valid: (rows, cols) bool.
        factor: Side of a block in pixels; rows and columns left over are dropped.

    Returns:
        Means over the valid pixels of each block, and which blocks are wholly valid.
    """
    # A direction at a time: the sum over a large block would lose digits in float32
    across = F.avg_pool2d(_weighted(data, valid), (1, factor))
    means = F.avg_pool2d(across, (factor, 1))[0].numpy()
    weight = means[-1]
    return means[:-1] / np.maximum(weight, 1e-6), weight == 1


def _weighted(data: Floats, valid: Bools) -> torch.Tensor:
    """Return the bands, 0 where not valid, and valid itself as one more (1, bands + 1, rows, cols)."""
    return torch.from_numpy(np.concatenate([data * valid, valid[None]]))[None]
