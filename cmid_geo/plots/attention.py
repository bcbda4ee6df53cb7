# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Figure of the self-attention of a ViT or Swin."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..models.attention import attention_map
from ..ops.cells import CELL
from .canvas import hatch, show, show_image, subplots

if TYPE_CHECKING:
    import matplotlib.figure


def plot_attention(
    network: nn.Module,
    image: Float[Tensor, 'bands height width'],
    cell: tuple[int, int] | None = None,
    block: int = -1,
    bands: Sequence[str] | None = None,
    valid: Bool[Tensor, 'height width'] | None = None,
    columns: int = 5,
) -> 'matplotlib.figure.Figure':
    """Show what a network attends to: the mean of its heads, and each of them.

    Args:
        network: timm's ViT or Swin, or a :class:`~cmid_geo.models.MaskedBackbone` of one.
        image: Normalized as the network expects, with sides that are multiples of 32.
        cell: Row and column of the 32x32 pixels that attend; by default a ViT's class token.
        block: Number of the transformer's block, negative ones from its end.
        bands: Names of the bands; the first three are shown where they are not known.
        valid: Whether a pixel holds data; all that are finite by default.
        columns: Axes in a row.

    Returns:
        The image with the cell framed, the mean, and a map for each head. Each map goes from 0 to its own 99th
        percentile, since some heads look at few places; hatched is what a Swin's window does not show.

    Raises:
        ValueError: If the network has no such attention, or there is no such block or cell.
    """
    maps = attention_map(network, image, cell, block).numpy()
    titles = [
        'mean of the heads',
        *(f'head {head}' for head in range(1, len(maps) + 1)),
    ]
    panels = [maps.mean(0), *maps]
    count = len(panels) + 1
    columns = min(columns, count)
    rows = -(-count // columns)
    ratio = image.shape[1] / image.shape[2]
    figure, axes = subplots(rows, columns, 2.6 * columns, (2.6 * ratio + 0.4) * rows)
    # An edge of each pixel lies at a whole number
    extent = (0, image.shape[2], image.shape[1], 0)
    first, *others = axes.flat
    show_image(first, image, bands, valid, 'image', extent=extent)
    first.title.set_fontsize(9)
    for axis, title, panel in zip(others, titles, panels):
        top = float(np.nanmax(panel))
        limit = float(np.nanpercentile(panel, 99)) or 1.0
        options: dict[str, Any] = {'cmap': 'magma', 'vmin': 0, 'vmax': limit}
        shown = np.ma.masked_invalid(panel)
        show(axis, shown, f'{title}, up to {top:.2g}', extent=extent, **options)
        axis.title.set_fontsize(9)
        if shown.mask.any():
            hatch(axis)
    for axis in others[len(panels) :]:
        axis.remove()
    if cell is not None:
        for axis in (first, *others[: len(panels)]):
            _frame(axis, cell)
    attending = 'the class token' if cell is None else f'cell {tuple(cell)}'
    figure.suptitle(f'Attention of {attending} in block {block}', fontsize=10)
    return figure


def _frame(axis: Any, cell: tuple[int, int]) -> None:
    """Frame a cell, dark in light so that it is seen on anything."""
    from matplotlib.patches import Rectangle

    corner = cell[1] * CELL, cell[0] * CELL
    for colour, width in (('black', 3), ('cyan', 1.5)):
        axis.add_patch(
            Rectangle(corner, CELL, CELL, fill=False, edgecolor=colour, lw=width)
        )
