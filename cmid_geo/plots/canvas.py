# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Figures without pyplot, and images on them: bands as colours, values stretched, no data hatched.

Matplotlib is imported when something is drawn, not before: tasks and datasets know these figures.
A figure that pyplot does not know is freed with its last reference, and needs no closing.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Real
from torch import Tensor

from ..ops.bands import find_bands
from ..ops.value_range import normalize

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure


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
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout='constrained')
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


def display_bands(bands: Sequence[str] | int) -> list[int]:
    """Find the bands to show as red, green and blue.

    Args:
        bands: Names; or their number, where they have none.

    Returns:
        Three indices: by name where :func:`~cmid_geo.ops.bands.find_bands` knows them, else the first
        three; three times the first of fewer than three.
    """
    names = [] if isinstance(bands, int) else list(bands)
    named = find_bands(('red', 'green', 'blue'), names)
    found = [place for place in named if place is not None]
    if len(found) == 3:
        return found
    count = bands if isinstance(bands, int) else len(names)
    return [0, 1, 2] if count >= 3 else [0, 0, 0]


def pick_bands(
    image: Real[Tensor, '*dates bands height width'], shown: Sequence[int]
) -> Real[Tensor, '*dates 3 height width']:
    """Pick the bands to show.

    Args:
        image: All bands.
        shown: Bands to show as red, green and blue; the last for those that the image lacks.

    Returns:
        Three bands.
    """
    last = image.shape[-3] - 1
    return image[..., [min(band, last) for band in shown], :, :]


def blank(
    image: Real[Tensor, '*dates bands height width'],
    valid: Bool[Tensor, '*dates height width'] | None = None,
) -> Float[Tensor, '*dates bands height width']:
    """Write NaN where an image holds no data.

    Args:
        image: Bands.
        valid: Whether a pixel holds data; all that are finite by default.

    Returns:
        The image, NaN in all bands where one is not finite or the pixel not valid.
    """
    image = image.detach().float().cpu()
    known = image.isfinite().all(-3)
    if valid is not None:
        known = known & valid.cpu()
    return image.where(known.unsqueeze(-3), torch.nan)


def stretch(
    image: Real[Tensor, 'bands height width'], like: Tensor | None = None
) -> Float[np.ndarray, 'height width bands']:
    """Make bands fit to be seen.

    Args:
        image: Bands to show; NaN where there is no data.
        like: Bands whose 2nd and 98th percentiles become black and white; *image* itself by
            default.

    Returns:
        Channels last, in [0, 1]; 0 where there is no data.
    """
    image, like = image.float().cpu(), (image if like is None else like).float().cpu()
    sample = like.flatten(1)[:, :: max(1, like[0].numel() // 100_000)]
    low, high = torch.nanquantile(sample, torch.tensor([0.02, 0.98]), dim=1)
    seen = normalize(image, low, (high - low).clamp_min(1e-6)).clamp(0, 1)
    return seen.nan_to_num(0).permute(1, 2, 0).numpy()


def show_image(
    axis: 'matplotlib.axes.Axes',
    image: Real[Tensor, 'bands height width'],
    bands: Sequence[str] | None = None,
    valid: Bool[Tensor, 'height width'] | None = None,
    title: str = '',
    like: Real[Tensor, 'bands rows cols'] | None = None,
    **options: Any,
) -> None:
    """Show an image of any number of bands; where it holds no data, hatched grey.

    Args:
        axis: To draw on.
        image: Values of any range: they are stretched between their percentiles.
        bands: Names of the bands, see :func:`display_bands`.
        valid: Whether a pixel holds data; all that are finite by default.
        title: Above it.
        like: Image in whose colours it is shown, see :func:`stretch`; NaN where that has no data.
        **options: Of ``imshow``.
    """
    shown = display_bands(len(image) if bands is None else bands)
    # What another band lacks is no reason to hide a pixel
    seen = blank(image[shown], valid)
    colours = stretch(seen, None if like is None else like[shown])
    known = seen[0].isfinite().numpy()
    show(axis, np.dstack([colours, known.astype(colours.dtype)]), title, **options)
    if not known.all():
        hatch(axis)


def hatch(axis: 'matplotlib.axes.Axes') -> None:
    """Hatch what images on an axis leave transparent.

    Args:
        axis: With its images.
    """
    from matplotlib.patches import Rectangle

    ground: dict[str, Any] = {
        'facecolor': '0.9',
        'edgecolor': '0.65',
        'hatch': '////',
        'lw': 0,
    }
    patch = Rectangle((0, 0), 1, 1, transform=axis.transAxes, zorder=-1, **ground)
    axis.add_patch(patch)


def class_colours(count: int) -> list[tuple[float, float, float, float]]:
    """Colours that tell classes apart.

    Args:
        count: Number of classes.

    Returns:
        RGBA of each: of matplotlib's tables of ten or twenty, else spread over the hues.
    """
    from matplotlib import colormaps

    if count <= 20:
        table = colormaps['tab10' if count <= 10 else 'tab20']
        return [table(label) for label in range(count)]
    return [colormaps['turbo'](label / (count - 1)) for label in range(count)]


def check_lengths(**parts: Any) -> None:
    """Refuse parts that belong to other numbers of samples.

    Args:
        parts: Of each sample something, by name; None for what is not given.

    Raises:
        ValueError: If their lengths differ.
    """
    lengths = {name: len(part) for name, part in parts.items() if part is not None}
    if len(set(lengths.values())) > 1:
        told = ', '.join(f'{length} {name}' for name, length in lengths.items())
        raise ValueError(f'{told}: give one of each for each sample, in one order')
