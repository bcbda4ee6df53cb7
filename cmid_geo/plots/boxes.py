# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Figures of boxes on images."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Integer
from torch import Tensor

from .canvas import class_colours, pick_bands, show, subplots

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure


def draw_boxes(
    axis: 'matplotlib.axes.Axes',
    image: Float[Tensor, 'bands height width'],
    boxes: Float[Tensor, 'n 4'],
    labels: Integer[Tensor, ' n'],
    names: Sequence[str] | None = None,
    scores: Float[Tensor, ' n'] | None = None,
    shown: Sequence[int] = (0, 1, 2),
    title: str = '',
) -> None:
    """Draw boxes with their names, and confidences, on an image.

    Args:
        axis: To draw on.
        image: In [0, 1].
        boxes: (x1, y1, x2, y2) in pixels from the upper left corner.
        labels: Class of each box.
        names: Of the classes, background first; numbers by default.
        scores: Confidence of each box, in [0, 1].
        shown: Bands to show as red, green and blue.
        title: Above the image.
    """
    height, width = image.shape[1:]
    pixels = pick_bands(image, shown).clamp(0, 1).permute(1, 2, 0).cpu().numpy()
    # Edges of pixels, not their centres, are at whole numbers, as in the boxes
    show(axis, pixels, title, extent=(0, width, height, 0))
    outline_boxes(axis, boxes, labels, names, scores)


def outline_boxes(
    axis: 'matplotlib.axes.Axes',
    boxes: Float[Tensor, 'n values'],
    labels: Integer[Tensor, ' n'],
    names: Sequence[str] | None = None,
    scores: Float[Tensor, ' n'] | None = None,
) -> None:
    """Draw boxes with their names, and confidences, on an axis whose units are pixels.

    Args:
        axis: To draw on.
        boxes: (x1, y1, x2, y2) of upright boxes, or four corners (x1, y1, ..., x4, y4) of rotated ones.
        labels: Class of each box.
        names: Of the classes, background first; numbers by default.
        scores: Confidence of each box, in [0, 1].
    """
    from matplotlib.patches import Polygon, Rectangle

    colours = class_colours(10)
    told = [None] * len(boxes) if scores is None else scores.tolist()
    for box, label, score in zip(boxes.tolist(), labels.tolist(), told, strict=True):
        colour, points = colours[(label - 1) % 10], np.reshape(box, (-1, 2))
        line: dict[str, Any] = {'fill': False, 'edgecolor': colour, 'lw': 1.2}
        x, y = points[points[:, 1].argmin()]
        if len(points) == 4:
            axis.add_patch(Polygon(points, **line))
        else:
            axis.add_patch(Rectangle((x, y), *(points[1] - points[0]), **line))
        name = str(label) if names is None else names[label]
        axis.text(
            x, y, name if score is None else f'{name} {score:.2f}', fontsize=6, color='white',
            va='bottom', clip_on=True, bbox={'facecolor': colour, 'edgecolor': 'none', 'pad': 0.6},
        )  # fmt: skip


def boxes_figure(
    images: Float[Tensor, 'batch bands height width'],
    truth: Sequence[Sequence[Tensor]],
    found: Sequence[Sequence[Tensor]] | None = None,
    names: Sequence[str] | None = None,
    min_score: float = 0.3,
    shown: Sequence[int] = (0, 1, 2),
    titles: bool = True,
) -> 'matplotlib.figure.Figure':
    """Show images with their true boxes, and beside them what was found.

    Args:
        images: In [0, 1].
        truth: Boxes (N, 4) and labels (N) of each image.
        found: Boxes, labels and confidences of each image.
        names: Of the classes, background first.
        min_score: Least confidence of what is drawn, in [0, 1].
        shown: Bands to show as red, green and blue.
        titles: Whether to say which is which.

    Returns:
        A column for each image, truth above, what was found below.
    """
    rows, count = 1 if found is None else 2, len(images)
    figure, axes = subplots(rows, count, 4 * count, 4.2 * rows)
    above, below = (
        ('truth', f'found, score {min_score} and above') if titles else ('', '')
    )
    for column, (image, (boxes, labels)) in enumerate(zip(images, truth)):
        draw_boxes(axes[0][column], image, boxes, labels, names, None, shown, above)
        if found is not None:
            boxes, labels, scores = (each.cpu() for each in found[column])
            kept = scores >= min_score
            drawn = (boxes[kept], labels[kept], names, scores[kept])
            draw_boxes(axes[1][column], image, *drawn, shown, below)
    return figure
