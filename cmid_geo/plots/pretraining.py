# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Figures of a pretraining run: views, reconstructions, losses and features."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Integer, UInt8
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, Patch
from torch import Tensor

from ..losses import nearest_cells
from ..ops.cells import expand_mask, hide_cells
from ..tasks import CMID
from ..transforms import View
from .canvas import class_colours, display_bands, show, stretch, subplots

#: What is drawn of a run, by the name under which it is logged.
LABELS = {
    'train_reconstruction': 'reconstruction loss',
    'train_global': 'global loss',
    'global_chance': 'guessing: log(1 + keys in the queue)',
    'train_local': 'local loss',
    'teacher_entropy': "teacher's entropy",
    'fresh_rank': 'share of them',
    'chance': 'guessing: 0.5',
}


def plot_views(
    first: View,
    second: View,
    bands: Sequence[str],
    matches: int | None = None,
    samples: int = 3,
    field_offset: float = 0.0,
) -> Figure:
    """Show pairs of views, what the student sees of them, and which cells are matched.

    Args:
        first: The plain views.
        second: The strong views.
        bands: Names of the bands.
        matches: Cells to match in each pair; see :func:`~cmid_geo.losses.nearest_cells`.
        samples: Pairs to show.
        field_offset: Of the backbone, see :class:`~cmid_geo.transforms.TwoViews`: lines link the
            centres of what the cells' vectors see.

    Returns:
        A row for each pair, both views whole with lines between the cells of the same
        ground, and both as the student sees them.
    """
    rgb = display_bands(bands)
    samples = min(samples, len(first.image))
    figure, axes = subplots(samples, 4, 14, 3.6 * samples)
    figure.suptitle('Two views of each chip; lines link cells of the same ground')
    views = first, second
    cells, partners = _matched(first, second, matches)
    seen = [hide_cells(each.image, each.mask, each.valid) for each in views]
    columns = {
        'view 1, plain': first.image,
        'view 2, strong': second.image,
        'view 1, seen by student': seen[0],
        'view 2, seen by student': seen[1],
    }
    _show_columns(axes, columns, 2 * [first.image, second.image], rgb)
    # At most eight lines: all of them would hide the picture
    step = -(-cells.shape[1] // 8)
    for row, (left, right, *_) in enumerate(axes):
        pairs = zip(cells[row, ::step], partners[row, ::step], strict=True)
        for number, pair in enumerate(pairs):
            colour = colormaps['hsv'](number * step * 0.381966 % 1)
            ends = [_centre(each, first, field_offset) for each in pair]
            _link(figure, (left, right), ends, colour)
    return figure


def plot_matches(
    first: View,
    second: View,
    found: Mapping[str, Int[Tensor, 'batch cells']],
    bands: Sequence[str],
    matches: int | None = None,
    samples: int = 3,
    field_offset: float = 0.0,
) -> Figure:
    """Show to which cells of the other view features lead, and whether these show the same ground.

    Args:
        first: Views to match from.
        second: Views to match to.
        found: By kind of feature, the cell of *second* that each cell of *first* is most like.
        bands: Names of the bands.
        matches: Cells to match in each pair; see :func:`~cmid_geo.losses.nearest_cells`.
        samples: Pairs to show.
        field_offset: Of the backbone, see :class:`~cmid_geo.transforms.TwoViews`: lines link the
            centres of what the cells' vectors see.

    Returns:
        A row for each pair, two views for each kind. Lines are blue where the cell of the same ground was
        found, and red elsewhere.
    """
    rgb = display_bands(bands)
    samples = min(samples, len(first.image))
    width = 6.4 * len(found)
    figure, axes = subplots(samples, 2 * len(found), width, 3.2 * samples + 0.6)
    figure.suptitle('Most alike cell of the other view; blue: the same ground, red: another')  # fmt: skip
    cells, partners = _matched(first, second, matches)
    columns = {
        f'{kind}\nview {number}': view.image
        for kind in found
        for number, view in ((1, first), (2, second))
    }
    _show_columns(axes, columns, list(columns.values()), rgb)
    for row in range(samples):
        for place, nearest in enumerate(found.values()):
            left, right = axes[row, 2 * place : 2 * place + 2]
            for cell, partner in zip(cells[row], partners[row], strict=True):
                reached = nearest[row, cell]
                colour = 'C0' if reached == partner else 'C3'
                ends = [_centre(each, first, field_offset) for each in (cell, reached)]
                _link(figure, (left, right), ends, colour)
    return figure


def _matched(first: View, second: View, matches: int | None) -> tuple[Tensor, Tensor]:
    """Cells of the first views, and those of the second that show the same ground."""
    known = first.valid_cells, second.valid_cells
    return nearest_cells(first.positions, second.positions, matches, *known)


def _link(
    figure: Figure, axes: Sequence[Axes], ends: Sequence[Any], colour: Any
) -> None:
    """Draw a line from a place on one of two axes to a place on the other."""
    left, right = axes
    options: dict[str, Any] = {'color': colour, 'lw': 1.2}
    line = ConnectionPatch(*ends, 'data', 'data', axesA=left, axesB=right, **options)
    figure.add_artist(line)
    for axis, end in zip(axes, ends, strict=True):
        axis.plot(*end, 'o', color=colour, mec='white', ms=5)


def _centre(cell: Tensor, view: View, offset: float) -> tuple[float, float]:
    """Centre (x, y) of what a cell's vector sees, in pixel indices of the view."""
    cols = view.mask.shape[2]
    row, col = divmod(int(cell), cols)
    side = view.image.shape[3] // cols
    return (col + 0.5) * side - 0.5 + offset, (row + 0.5) * side - 0.5 + offset


def _show_columns(
    axes: np.ndarray, columns: dict[str, Tensor], likes: list[Tensor], rgb: list[int]
) -> None:
    """Show images in columns with titles, each in the colours of the image it is like."""
    for column, (title, images) in enumerate(columns.items()):
        for row, axis in enumerate(axes[:, column]):
            picture = stretch(images[row, rgb], likes[column][row, rgb])
            show(axis, picture, title if row == 0 else '')


@torch.no_grad()
def plot_reconstructions(
    task: CMID, view: View, bands: Sequence[str], samples: int = 4
) -> Figure:
    """Show views, what the student saw of them, and what it made of that.

    Args:
        task: Student and decoder.
        view: Views.
        bands: Names of the bands.
        samples: Views to show.

    Returns:
        A row for each view, whole, seen, rebuilt at the hidden cells, rebuilt everywhere.
    """
    rgb = display_bands(bands)
    samples = min(samples, len(view.image))
    seen = hide_cells(view.image, view.mask, view.valid)
    rebuilt = task.decoder(task.see(view).features)
    hidden = expand_mask(view.mask, *view.image.shape[2:])[:, None]
    columns = {
        'view': view.image,
        'seen by student': seen,
        'hidden cells rebuilt': rebuilt.where(hidden, view.image),
        'everything rebuilt': rebuilt,
    }
    figure, axes = subplots(samples, 4, 12, 3.1 * samples)
    _show_columns(axes, columns, 4 * [view.image], rgb)
    return figure


def plot_rebuilt(
    view: View,
    rebuilt: Mapping[str, Float[Tensor, 'batch bands height width']],
    bands: Sequence[str],
    samples: int = 4,
) -> Figure:
    """Show what was made of views, such as at several steps of a run.

    Args:
        view: Views.
        rebuilt: What a decoder made of all of each view, by title.
        bands: Names of the bands.
        samples: Views to show.

    Returns:
        A row for each view, whole, as the student sees it, and rebuilt at the hidden cells.
    """
    samples = min(samples, len(view.image))
    hidden = expand_mask(view.mask, *view.image.shape[2:])[:, None]
    columns = {
        'view': view.image,
        'seen by student': hide_cells(view.image, view.mask, view.valid),
    }
    for title, image in rebuilt.items():
        columns[title] = image.to(view.image).where(hidden, view.image)
    count = len(columns)
    figure, axes = subplots(samples, count, 2.6 * count, 2.7 * samples)
    _show_columns(axes, columns, count * [view.image], display_bands(bands))
    return figure


def read_metrics(
    metrics: Path, queue_size: int
) -> tuple[dict[str, Float[np.ndarray, ' steps']], Bool[np.ndarray, ' steps']]:
    """Read what a run logged of its training steps.

    Args:
        metrics: The ``metrics.csv`` of a CSVLogger.
        queue_size: Keys in a full queue.

    Returns:
        Values of each step by name, NaN where there is none; and whether the queue was full.
    """
    with open(metrics, newline='') as file:
        rows = [row for row in csv.DictReader(file) if row.get('train_loss')]
    values = {
        name: np.array([float(row[name] or 'nan') for row in rows])
        for name in (rows[0] if rows else ('global_chance',))
    }
    # The queue is full where guessing costs as much as it ever will
    return values, values['global_chance'] >= math.log1p(queue_size) - 1e-4


def plot_curves(metrics: Path, queue_size: int) -> Figure:
    """Show how a run went.

    Args:
        metrics: The ``metrics.csv`` of a CSVLogger.
        queue_size: Keys in a full queue.

    Returns:
        The three losses, each beside the value that tells what to make of it, and how well images
        are told apart.
    """
    value, full = read_metrics(metrics, queue_size)
    value['chance'] = np.full(len(value['step']), 0.5)
    # Runs of old have none
    value.setdefault('fresh_rank', np.full(len(value['step']), np.nan))
    step = value['step']
    since = step[full][0] if full.any() else None
    panels = {
        'reconstruction': ['train_reconstruction'],
        'global: rises while the queue fills': ['train_global', 'global_chance'],
        "local: stays above the teacher's entropy": ['train_local', 'teacher_entropy'],
        'fresh keys of other images that beat the true one': ['fresh_rank', 'chance'],
    }
    figure, axes = subplots(2, 2, 11, 7, sharex=True)
    for axis, (title, names) in zip(axes.flat, panels.items(), strict=True):
        _panel(axis, step, {LABELS[name]: value[name] for name in names})
        if since is not None and title.startswith('global'):
            axis.axvline(since, color='grey', ls=':', label='queue full')
        axis.set_title(title)
        axis.legend()
    for axis in axes[1]:
        axis.set_xlabel('optimizer step')
    return figure


def _panel(axis: Axes, step: np.ndarray, curves: dict[str, np.ndarray]) -> None:
    """Draw the first curve raw and smoothed, the others as they are."""
    for number, (label, values) in enumerate(curves.items()):
        if number == 0:
            axis.plot(step, values, color='C0', alpha=0.3)
            values = _smooth(values)
        axis.plot(step, values, color=f'C{number}', label=label)
    axis.grid(alpha=0.3)


def _smooth(values: np.ndarray, width: int = 9) -> np.ndarray:
    """Running mean that keeps the length."""
    padded = np.pad(values, width // 2, mode='edge')
    return np.convolve(padded, np.ones(width) / width, mode='valid')


def plot_map(
    image: Float[Tensor, 'bands height width'],
    colours: UInt8[np.ndarray, '3 height width'],
    bands: Sequence[str],
) -> Figure:
    """Show a scene beside its features' principal components.

    Args:
        image: The scene.
        colours: From :func:`~cmid_geo.predict.principal_colours`.
        bands: Names of the bands.

    Returns:
        Both side by side.
    """
    height = 7 * image.shape[1] / image.shape[2] + 0.6
    figure, ((left, right),) = subplots(1, 2, 14, height)
    show(left, stretch(image[display_bands(bands)]), 'scene')
    components = colours.transpose(1, 2, 0)
    show(right, components, 'features: first three principal components')
    return figure


def plot_cells(
    columns: Mapping[str, Sequence[Integer[Tensor, '_rows _cols']]],
    names: Sequence[str] | None = None,
) -> Figure:
    """Show the classes of scenes' cells.

    Args:
        columns: Classes of each scene by title, the true ones first; -1 stays white. Up to three scenes
            are shown, the first of those whose truth differs.
        names: Of the classes; their numbers by default.

    Returns:
        A row for each scene, a column for each title.
    """
    truth = next(iter(columns.values()))
    chosen: list[int] = []
    for number, cells in enumerate(truth):
        # Several dates of a place have the same
        alike = (torch.equal(cells, truth[other]) for other in chosen)
        if len(chosen) < 3 and not any(alike):
            chosen.append(number)
    last = max(int(cells.max()) for cells in truth)
    names = list(names or map(str, range(last + 1)))
    colours = class_colours(len(names))
    options = {'cmap': ListedColormap(colours), 'vmin': -0.5, 'vmax': len(names) - 0.5}
    height = 4.6 * len(chosen) + 0.6
    figure, axes = subplots(len(chosen), len(columns), 3.2 * len(columns), height)
    for row, number in zip(axes, chosen, strict=True):
        for axis, (title, cells) in zip(row, columns.items(), strict=True):
            shown = np.ma.masked_less(cells[number].numpy(), 0)
            show(axis, shown, title if number == chosen[0] else '', **options)
    handles = [Patch(color=colour, label=name) for colour, name in zip(colours, names)]
    place = {'loc': 'outside lower center', 'ncols': min(len(names), 8)}
    figure.legend(handles=handles, frameon=False, **place)
    return figure
