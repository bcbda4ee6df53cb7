# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Figure of where the features of one point are found again in another image."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Real
from torch import Tensor

from .canvas import hatch, show, show_image, subplots

if TYPE_CHECKING:
    import matplotlib.figure


def plot_correspondence(
    first: Real[Tensor, 'bands height width'],
    second: Real[Tensor, 'bands height2 width2'],
    first_features: Float[Tensor, 'dim rows cols'],
    second_features: Float[Tensor, 'dim2 rows2 cols2'],
    point: tuple[float, float],
    bands: Sequence[str] | None = None,
    first_valid: Bool[Tensor, 'height width'] | None = None,
    second_valid: Bool[Tensor, 'height2 width2'] | None = None,
    field_offset: float = 0.0,
) -> 'matplotlib.figure.Figure':
    """Show where in another image, such as of another date, the features of a point are found again.

    Args:
        first: Image of the point, of any value range.
        second: Image to search.
        first_features: A vector of each cell of *first*.
        second_features: A vector of each cell of *second*.
        point: (x, y) in pixels of *first*, from the outer corner of its first pixel: where was clicked.
        bands: Names of the bands; the first three are shown where they are not known.
        first_valid: Whether a pixel of *first* holds data; all that are finite by default.
        second_valid: Whether a pixel of *second* holds data. Cells without any are not searched.
        field_offset: Of the backbone: pixels from the centre of a cell to that of what its vector sees.

    Returns:
        The first image with the point, the second with the best place, and the cosine similarity over it.

    Raises:
        ValueError: If the point is not in the image or on no data, vectors differ in length, or no cell of the second image
            holds data.
    """
    height, width = first.shape[1:]
    if not (0 <= point[0] < width and 0 <= point[1] < height):
        raise ValueError(
            f'point={point} is not in the image: give (x, y) of {width} columns and {height} rows'
        )
    if first_valid is not None and not first_valid[int(point[1]), int(point[0])]:
        raise ValueError(
            f'point={point} is where the first image holds no data: choose another'
        )
    if len(first_features) != len(second_features):
        raise ValueError(
            f'vectors have {len(first_features)} and {len(second_features)} values: compute both with one backbone'
        )
    vector = first_features[:, *cell_at(point, first, first_features, field_offset)]
    cosine = F.cosine_similarity(vector[:, None, None], second_features, dim=0)
    cosine = cosine.detach().float().cpu()
    if second_valid is not None:
        share = F.adaptive_max_pool2d(second_valid[None].float().cpu(), cosine.shape)
        cosine = cosine.where(share[0] > 0, torch.nan)
    if cosine.isnan().all():
        raise ValueError(
            'no cell of the second image holds data: choose another, or mend second_valid='
        )
    best = divmod(int(cosine.nan_to_num(-2).argmax()), cosine.shape[1])
    x, y = centre_of(best, second, second_features, field_offset)
    figure, ((left, middle, right),) = subplots(1, 3, 12.5, 4.4)
    edges = [(0, each.shape[2], each.shape[1], 0) for each in (first, second)]
    show_image(left, first, bands, first_valid, 'point', extent=edges[0])
    title = f'best place: {float(cosine[best]):z.2f}'
    show_image(middle, second, bands, second_valid, title, extent=edges[1])
    shown = np.ma.masked_invalid(cosine.numpy())
    show(right, shown, 'cosine similarity', extent=edges[1], cmap='viridis')
    if shown.mask.any():
        hatch(right)
    # As high as the image
    figure.colorbar(right.images[0], cax=right.inset_axes((1.03, 0, 0.05, 1)))
    for axis, place in ((left, point), (middle, (x, y)), (right, (x, y))):
        _mark(axis, place)
    return figure


def cell_at(
    point: tuple[float, float],
    image: Tensor,
    features: Tensor,
    field_offset: float = 0.0,
) -> tuple[int, int]:
    """Find the cell whose vector sees what is around a point.

    Args:
        point: (x, y) in pixels.
        image: (bands, height, width).
        features: (dim, rows, cols).
        field_offset: Pixels from the centre of a cell to that of what its vector sees.

    Returns:
        Row and column.
    """
    found = []
    for at, pixels, cells in zip(point[::-1], image.shape[1:], features.shape[1:]):
        place = int((at - field_offset) * cells // pixels)
        found.append(min(max(place, 0), cells - 1))
    return found[0], found[1]


def centre_of(
    cell: tuple[int, int], image: Tensor, features: Tensor, field_offset: float = 0.0
) -> tuple[float, float]:
    """Find the centre of what a cell's vector sees.

    Args:
        cell: Row and column.
        image: (bands, height, width).
        features: (dim, rows, cols).
        field_offset: Pixels from the centre of a cell to that of what its vector sees.

    Returns:
        (x, y) in pixels, inside the image.
    """
    sides = zip(cell, image.shape[1:], features.shape[1:])
    y, x = (
        min(max((at + 0.5) * pixels / cells + field_offset, 0.5), pixels - 0.5)
        for at, pixels, cells in sides
    )
    return x, y


def _mark(axis: Any, place: tuple[float, float]) -> None:
    """Mark a place by a cross that is seen on anything."""
    for colour, width in (('black', 4), ('yellow', 2)):
        axis.plot(*place, '+', color=colour, ms=16, mew=width)
