# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Figures of what downstream tasks predict."""

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from jaxtyping import Float, Integer
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor


def stretch(
    image: Float[Tensor, 'bands height width'], like: Tensor | None = None
) -> Float[np.ndarray, 'height width bands']:
    """Make bands fit to be seen.

    Args:
        image: Bands to show.
        like: Bands whose 2nd and 98th percentiles become black and white; *image* itself by
            default.

    Returns:
        Channels last, in [0, 1].
    """
    image, like = image.float().cpu(), (image if like is None else like).float().cpu()
    sample = like.flatten(1)[:, :: max(1, like[0].numel() // 100_000)]
    low, high = torch.quantile(sample, torch.tensor([0.02, 0.98]), dim=1)
    span = (high - low).clamp_min(1e-6)[:, None, None]
    return ((image - low[:, None, None]) / span).clamp(0, 1).permute(1, 2, 0).numpy()


def prediction_figure(
    image: Float[Tensor, '*dates bands height width'],
    truth: Integer[Tensor, 'height width'],
    predicted: Integer[Tensor, 'height width'],
    names: Sequence[str] | None = None,
    ignore_index: int | None = None,
    shown: Sequence[int] = (0, 1, 2),
) -> Figure:
    """Show an image, or one of each date, beside truth and prediction.

    Args:
        image: Bands.
        truth: Class of each pixel.
        predicted: Likewise.
        names: Of the classes.
        ignore_index: Label that is left white.
        shown: Bands to show as red, green and blue.

    Returns:
        The figure.
    """
    images = image[None] if image.ndim == 3 else image
    truth, predicted = truth.cpu(), predicted.cpu()
    known = truth if ignore_index is None else truth[truth != ignore_index]
    last = max(
        [int(part.max()) for part in (known, predicted) if part.numel()], default=0
    )
    names = list(names or [str(label) for label in range(max(last + 1, 2))])
    colours = [plt.get_cmap('tab10')(label % 10) for label in range(len(names))]
    columns = len(images) + 2
    figure, axes = plt.subplots(1, columns, figsize=(4 * columns, 4.6), squeeze=False)
    bands = [min(band, images.shape[1] - 1) for band in shown]
    for axis, one in zip(axes[0], images):
        _picture(axis, stretch(one[bands], images[0][bands]), 'image')
    norm = BoundaryNorm(np.arange(len(names) + 1) - 0.5, len(names))
    for axis, labels, title in zip(
        axes[0][-2:], (truth, predicted), ('truth', 'prediction')
    ):
        masked = np.ma.masked_equal(
            labels.numpy(), -1 if ignore_index is None else ignore_index
        )
        _picture(axis, masked, title, cmap=ListedColormap(colours), norm=norm)
    handles = [Patch(color=colour, label=name) for colour, name in zip(colours, names)]
    figure.legend(
        handles=handles, loc='lower center', ncols=min(len(names), 8), frameon=False
    )
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    return figure


def confusion_figure(matrix: Tensor, names: Sequence[str] | None = None) -> Figure:
    """Show which classes are taken for which.

    Args:
        matrix: Counts (classes, classes): true classes down, predicted ones across.
        names: Of the classes.

    Returns:
        The figure; colours tell the share of the true class.
    """
    counts = matrix.float().cpu()
    share = counts / counts.sum(1, keepdim=True).clamp_min(1)
    names = list(names or [str(label) for label in range(len(counts))])
    side = max(4.0, 0.32 * len(names) + 2)
    figure, axis = plt.subplots(figsize=(side + 1, side))
    shown = axis.imshow(share.numpy(), vmin=0, vmax=1, cmap='Blues')
    axis.set_xticks(range(len(names)), names, rotation=90)
    axis.set_yticks(range(len(names)), names)
    axis.set_xlabel('predicted')
    axis.set_ylabel('true')
    for row, column in (share >= 0.005).nonzero().tolist():
        value = float(share[row, column])
        colour = 'white' if value > 0.5 else 'black'
        axis.text(
            column,
            row,
            f'{100 * value:.0f}',
            ha='center',
            va='center',
            fontsize=6,
            color=colour,
        )
    figure.colorbar(shown, ax=axis, label='share of the true class')
    figure.tight_layout()
    return figure


def log_figure(task: Any, name: str, make: Callable[[], Figure]) -> None:
    """Give a figure to loggers that take some, such as TensorBoard's.

    Args:
        task: That is being run.
        name: Of the figure.
        make: Called only if a logger takes it.
    """
    for logger in task.loggers:
        add = getattr(getattr(logger, 'experiment', None), 'add_figure', None)
        if add is not None and task.trainer.is_global_zero:
            figure = make()
            add(name, figure, global_step=task.global_step)
            plt.close(figure)


def _picture(axis: Axes, image: Any, title: str, **options: Any) -> None:
    axis.imshow(image, interpolation='nearest', **options)
    axis.set_title(title)
    axis.axis('off')
