# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Figures of predictions: masks and confusion matrices.

Matplotlib is imported when something is drawn, not before: tasks and datasets know these figures.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from ..ops.value_range import normalize

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure
    import matplotlib.image


def subplots(
    rows: int, columns: int, width: float, height: float, **options: Any
) -> tuple['matplotlib.figure.Figure', np.ndarray]:
    """Begin a figure.

    Args:
        rows: Rows of axes.
        columns: Columns of axes.
        width: Of all of it, in inches.
        height: Of all of it, in inches.
        **options: Of pyplot's ``subplots``.

    Returns:
        The figure, and its axes (rows, columns).
    """
    from matplotlib import pyplot as plt

    figure = plt.figure(figsize=(width, height), layout='constrained')
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def show(
    axis: 'matplotlib.axes.Axes', image: Any, title: str = '', **options: Any
) -> None:
    """Show an image without ticks.

    Args:
        axis: To draw on.
        image: (height, width), or channels last.
        title: Above it.
        **options: Of ``imshow``.
    """
    axis.imshow(image, **options)
    axis.set_title(title)
    axis.set_axis_off()


def pick_bands(
    image: Float[Tensor, '*dates bands height width'], shown: Sequence[int]
) -> Float[Tensor, '*dates 3 height width']:
    """Pick the bands to show.

    Args:
        image: All bands.
        shown: Bands to show as red, green and blue; the last for those that the image lacks.

    Returns:
        Three bands.
    """
    last = image.shape[-3] - 1
    return image[..., [min(band, last) for band in shown], :, :]


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
    seen = normalize(image, low, (high - low).clamp_min(1e-6)).clamp(0, 1)
    return seen.permute(1, 2, 0).numpy()


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
    from matplotlib import colormaps
    from matplotlib.colors import BoundaryNorm, ListedColormap
    from matplotlib.patches import Patch

    images = pick_bands(image[None] if image.ndim == 3 else image, shown)
    ignored = -1 if ignore_index is None else ignore_index
    masks = np.ma.masked_equal(torch.stack([truth, predicted]).cpu().numpy(), ignored)
    # Nothing but masked pixels has no largest label
    last = int(np.ma.filled(masks.max(), 0))
    names = list(names or map(str, range(max(last + 1, 2))))
    colours = [colormaps['tab10'](label % 10) for label in range(len(names))]
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


def log_figure(task: Any, name: str, make: Callable[[], Any]) -> None:
    """Give a figure to loggers that take some, such as TensorBoard's, and close it.

    Args:
        task: That is being run.
        name: Of the figure.
        make: Makes the figure, or None if there is nothing to show; called only if a logger takes
            figures.
    """
    for logger in task.loggers:
        add = getattr(getattr(logger, 'experiment', None), 'add_figure', None)
        if add is None or not task.trainer.is_global_zero:
            continue
        if (figure := make()) is not None:
            from matplotlib import pyplot as plt

            add(name, figure, global_step=task.global_step)
            plt.close(figure)
