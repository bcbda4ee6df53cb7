# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Figures of predictions: masks and confusion matrices.

Matplotlib is imported when something is drawn, not before: tasks and datasets know these figures.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from .canvas import class_colours, pick_bands, show, stretch, subplots

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure
    import matplotlib.image


def prediction_figure(
    image: Float[Tensor, '*dates bands height width'],
    truth: Integer[Tensor, 'height width'],
    predicted: Integer[Tensor, 'height width'],
    names: Sequence[str] | None = None,
    ignore_index: int | None = None,
    shown: Sequence[int] = (0, 1, 2),
) -> 'matplotlib.figure.Figure':
    """Show an image, or one of each date, beside target and prediction.

    Args:
        image: Bands.
        truth: Class of each pixel.
        predicted: Class of each pixel, as predicted.
        names: Of the classes.
        ignore_index: Label that is left white.
        shown: Bands to show as red, green and blue.

    Returns:
        The figure.
    """
    from matplotlib.colors import BoundaryNorm, ListedColormap
    from matplotlib.patches import Patch

    images = pick_bands(image[None] if image.ndim == 3 else image, shown)
    ignored = -1 if ignore_index is None else ignore_index
    masks = np.ma.masked_equal(torch.stack([truth, predicted]).cpu().numpy(), ignored)
    # Nothing but masked pixels has no largest label
    last = int(np.ma.filled(masks.max(), 0))
    names = list(names or map(str, range(max(last + 1, 2))))
    colours = class_colours(len(names))
    columns = len(images) + 2
    figure, axes = subplots(1, columns, 4 * columns, 4.6)
    for axis, one in zip(axes[0], images):
        show(axis, stretch(one, images[0]), 'image')
    options = {
        'cmap': ListedColormap(colours),
        'norm': BoundaryNorm(np.arange(len(names) + 1) - 0.5, len(names)),
        'interpolation': 'nearest',
    }
    for axis, mask, title in zip(axes[0][-2:], masks, ('truth', 'prediction')):
        show(axis, mask, title, **options)
    handles = [Patch(color=colour, label=name) for colour, name in zip(colours, names)]
    place = {'loc': 'outside lower center', 'ncols': min(len(names), 8)}
    figure.legend(handles=handles, frameon=False, **place)
    return figure


def confusion_figure(
    matrix: Tensor, names: Sequence[str] | None = None
) -> 'matplotlib.figure.Figure':
    """Show which classes are taken for which.

    Args:
        matrix: Counts (classes, classes): true classes down, predicted ones across.
        names: Of the classes.

    Returns:
        The figure; colours tell the fraction of the true class.
    """
    names = list(names or map(str, range(len(matrix))))
    side = max(4.0, 0.32 * len(names) + 2)
    figure, ((axis,),) = subplots(1, 1, side + 1, side)
    shown = draw_confusion(axis, matrix, names)
    figure.colorbar(shown, ax=axis, label='fraction of the true class')
    return figure


def draw_confusion(
    axis: 'matplotlib.axes.Axes', matrix: Tensor, names: Sequence[str]
) -> 'matplotlib.image.AxesImage':
    """Draw which classes are taken for which.

    Args:
        axis: To draw on.
        matrix: Counts (classes, classes): true classes down, predicted ones across.
        names: Of the classes.

    Returns:
        The image; colours tell the fraction of the true class.
    """
    counts = matrix.float().cpu()
    fraction = counts / counts.sum(1, keepdim=True).clamp_min(1)
    shown = axis.imshow(fraction.numpy(), vmin=0, vmax=1, cmap='Blues')
    axis.set_xticks(range(len(names)), names, rotation=90)
    axis.set_yticks(range(len(names)), names)
    axis.set(xlabel='predicted', ylabel='true')
    for row, column in (fraction >= 0.005).nonzero().tolist():
        value = float(fraction[row, column])
        axis.text(
            column, row, f'{100 * value:.0f}', ha='center', va='center', fontsize=6,
            color='white' if value > 0.5 else 'black',
        )  # fmt: skip
    return shown
