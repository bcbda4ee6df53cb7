# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Figure of a sample: its images, masks, labels and boxes, and what was predicted of them."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .boxes import outline_boxes
from .canvas import class_colours, hatch, show, show_image, subplots

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

#: Titles of what is true and of what was predicted, by the prefix of their entries.
KINDS = {'': 'truth', 'prediction_': 'prediction'}

#: Most labels of a multilabel mask that are shown.
MOST_LABELS = 3

#: Least confidence of a box that is drawn.
MIN_SCORE = 0.3

#: A mask, (height, width), and its title.
Layer = tuple[Tensor, str]


def sample_figure(
    sample: Mapping[str, Any],
    show_titles: bool = True,
    suptitle: str | None = None,
    *,
    bands: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    ignore_index: int | None = None,
    dates: Sequence[str] | None = None,
) -> 'matplotlib.figure.Figure':
    """Show whatever a sample holds.

    Args:
        sample: Any of ``image`` (C, H, W) or (T, C, H, W) of any value range, ``valid`` (H, W) or
            (T, H, W), ``mask`` (H, W) or (labels, H, W), ``label``, ``bbox_xyxy`` (N, 4) or ``bbox``
            (N, 8) in pixels with ``label`` (N), counted from 1 with the background as class 0; and the same
            as predicted: ``prediction`` of mask or label, ``prediction_bbox_xyxy`` or ``prediction_bbox``
            with ``prediction_label`` and ``prediction_score``.
        show_titles: Whether to say which is which.
        suptitle: Title of all.
        bands: Names of the bands; the first three are shown where they are not known.
        names: Of the classes; with boxes that of the background first; one alone is that of class 1 of
            two. Their numbers by default.
        ignore_index: Label of pixels that have none, which are hatched.
        dates: Titles of the images.

    Returns:
        A figure with one row, the images of each date in the same colours, then masks, true and predicted; boxes are drawn on
        the image, predicted ones on a second one.

    Raises:
        ValueError: If the sample holds none of these.
    """
    images, names = _images_of(sample), _names_of_two(sample, names)
    layers = _layers_of(sample, names, ignore_index)
    boxes = 'bbox_xyxy' in sample or 'bbox' in sample
    found = [each for each in KINDS if f'{each}bbox_xyxy' in sample or f'{each}bbox' in sample]  # fmt: skip
    shown = [images[0]] * len(found) if boxes and images else images
    if not shown and not layers:
        raise ValueError(
            f'the sample holds {list(sample)}: give one with image or mask to be drawn'
        )
    count = len(shown) + len(layers)
    height, width = (shown[0] if shown else layers[0][0]).shape[-2:]
    side = 3.6 if count < 5 else 2.8
    size = side * count, side * min(max(height / width, 0.4), 2.5) + 0.7
    figure, (axes,) = subplots(1, count, *size)
    titles = _titles(sample, len(shown), found if boxes else [], names, dates)
    extent = (0, width, height, 0)
    for axis, image, title in zip(axes, shown, titles):
        show_image(
            axis, image, bands, None, title * show_titles, shown[0], extent=extent
        )
    for axis, prefix in zip(axes, found if boxes else ()):
        _draw_boxes(axis, sample, prefix, names)
    if layers:
        _draw_layers(figure, axes[len(shown) :], layers, names, show_titles)
    if suptitle is not None:
        figure.suptitle(suptitle)
    return figure


def _names_of_two(
    sample: Mapping[str, Any], names: Sequence[str] | None
) -> Sequence[str] | None:
    """Names of both classes, where the one that is true is named alone."""
    if names is None or len(names) != 1 or 'bbox_xyxy' in sample or 'bbox' in sample:
        return names
    several = [sample[key].shape[:1] for key, ndim in (('mask', 3), ('label', 1))
               if isinstance(sample.get(key), Tensor) and sample[key].ndim == ndim]  # fmt: skip
    return names if several and several[0] != (1,) else ('no', *names)


def _images_of(sample: Mapping[str, Any]) -> list[Tensor]:
    """Image of each date, NaN where it holds no data."""
    image = sample.get('image')
    if image is None:
        return []
    images = image[None] if image.ndim == 3 else image
    valid = sample.get('valid')
    if valid is not None and valid.ndim == 2:
        valid = valid.expand(len(images), -1, -1)
    # Bands are blanked alone: what one lacks hides nothing in the others
    known = [None] * len(images) if valid is None else valid.bool()
    return [
        each.detach().float().cpu()
        if own is None
        else each.detach().float().cpu().where(own.cpu(), torch.nan)
        for each, own in zip(images, known)
    ]


def _layers_of(
    sample: Mapping[str, Any], names: Sequence[str] | None, ignored: int | None
) -> list[Layer]:
    """Masks to show, -1 where there is no label, and their titles."""
    layers: list[Layer] = []
    for entry, title in (('mask', 'truth'), ('prediction', 'prediction')):
        mask = sample.get(entry)
        if mask is None or mask.ndim < 2:
            continue
        mask = mask.detach().long().cpu()
        mask = mask.masked_fill(mask == ignored, -1) if ignored is not None else mask
        several = mask if mask.ndim == 3 else mask[None]
        for number, each in enumerate(several[:MOST_LABELS]):
            named = names is not None and number < len(names)
            name = names[number] if named else number
            layers.append((each, title if len(several) == 1 else f'{title}: {name}'))
    return layers


def _titles(
    sample: Mapping[str, Any],
    count: int,
    boxes: Sequence[str],
    names: Sequence[str] | None,
    dates: Sequence[str] | None,
) -> list[str]:
    """Titles of the images."""
    if boxes:
        told = {'': 'truth', 'prediction_': f'found, score {MIN_SCORE} and above'}
        return [told[prefix] for prefix in boxes]
    label = sample.get('label')
    if isinstance(label, Tensor) and label.ndim < 2 and count == 1:
        told = [f'truth: {_named(label, names)}']
        if isinstance(sample.get('prediction'), Tensor):
            told.append(f'prediction: {_named(sample["prediction"], names)}')
        return ['\n'.join(told)]
    if dates is not None and len(dates) == count:
        return list(dates)
    return ['image'] if count == 1 else [f'date {n}' for n in range(1, count + 1)]


def _named(label: Tensor, names: Sequence[str] | None) -> str:
    """Name of a class, or of all labels that a sample has."""
    several = label.ndim == 1
    kinds = label.nonzero()[:, 0].tolist() if several else [int(label)]
    inside = [kind for kind in kinds if names is not None and 0 <= kind < len(names)]
    told = [names[kind] if names and kind in inside else str(kind) for kind in kinds]
    return ', '.join(told) or 'none'


def _draw_layers(
    figure: 'matplotlib.figure.Figure',
    axes: np.ndarray,
    layers: Sequence[Layer],
    names: Sequence[str] | None,
    show_titles: bool,
) -> None:
    """Draw masks in the colours of one legend."""
    from matplotlib.colors import BoundaryNorm, ListedColormap
    from matplotlib.patches import Patch

    kinds = sorted({kind for mask, _ in layers for kind in mask.unique().tolist()})
    kinds = [kind for kind in kinds if kind >= 0]
    binary = any(':' in title for _, title in layers)
    last = max([*kinds, 1, 0 if names is None or binary else len(names) - 1])
    colours = class_colours(last + 1)
    options: dict[str, Any] = {
        'cmap': ListedColormap(colours),
        'norm': BoundaryNorm(np.arange(last + 2) - 0.5, last + 1),
        'interpolation': 'nearest',
    }
    for axis, (mask, title) in zip(axes, layers, strict=True):
        known = np.ma.masked_less(mask.numpy(), 0)
        show(axis, known, title * show_titles, **options)
        if np.ma.getmaskarray(known).any():
            hatch(axis)
    told = {kind: str(kind) for kind in kinds}
    if names is not None and not binary:
        told |= {kind: names[kind] for kind in kinds if kind < len(names)}
    # Of many classes those that are seen
    handles = [Patch(color=colours[kind], label=told[kind]) for kind in kinds]
    place: dict[str, Any] = {'loc': 'outside lower center', 'ncols': min(max(len(handles), 1), 6)}  # fmt: skip
    if handles:
        figure.legend(handles=handles, frameon=False, **place)


def _draw_boxes(
    axis: 'matplotlib.axes.Axes',
    sample: Mapping[str, Any],
    prefix: str,
    names: Sequence[str] | None,
) -> None:
    """Draw upright or rotated boxes with names, and scores where they are predicted."""
    kind = 'bbox_xyxy' if f'{prefix}bbox_xyxy' in sample else 'bbox'
    boxes, labels = (sample[f'{prefix}{each}'].cpu() for each in (kind, 'label'))
    scores = sample.get(f'{prefix}score')
    if scores is not None:
        kept = scores.cpu() >= MIN_SCORE
        boxes, labels, scores = boxes[kept], labels[kept], scores.cpu()[kept]
    outline_boxes(axis, boxes.float(), labels, names, scores)
