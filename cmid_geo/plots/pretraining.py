# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Figures of what a run saw and learned."""

import csv
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch
from torch import Tensor

from ..losses import nearest_cells
from ..ops.cells import CELL
from ..tasks import CMID
from ..transforms import View, expand_mask, hide_cells
from .predictions import stretch

#: Names under which red, green and blue stand in common products.
COLOURS = (
    ('red', 'green', 'blue'),
    ('B04', 'B03', 'B02'),
    ('B4', 'B3', 'B2'),
    ('R', 'G', 'B'),
)


def display_bands(bands: Sequence[str]) -> list[int]:
    """Which bands to show as red, green and blue.

    Args:
        bands: Names.

    Returns:
        Three indices: by name where the names are usual ones of Sentinel-2 or colours, else
        the first three; three times the first of fewer than three.
    """
    lower = [name.lower() for name in bands]
    # B4, B3, B2 are also what unnamed bands 4, 3 and 2 are called here
    for names in COLOURS[:2] + COLOURS[3:]:
        if all(name.lower() in lower for name in names):
            return [lower.index(name.lower()) for name in names]
    return [0, 1, 2] if len(bands) >= 3 else [0, 0, 0]


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
        A row for each pair: both views whole with lines between the cells of the same
        ground, and both as the student sees them.
    """
    rgb = display_bands(bands)
    samples = min(samples, len(first.image))
    figure, axes = plt.subplots(samples, 4, figsize=(14, 3.6 * samples), squeeze=False)
    cells, partners = nearest_cells(
        first.positions,
        second.positions,
        matches,
        first.valid_cells,
        second.valid_cells,
    )
    for row, (left, right, seen_left, seen_right) in enumerate(axes):
        for axis, view, hidden in (
            (left, first, False), (right, second, False), (seen_left, first, True), (seen_right, second, True)
        ):  # fmt: skip
            whole = view.image[row, rgb]
            shown = (
                hide_cells(view.image, view.mask, view.valid)[row, rgb]
                if hidden
                else whole
            )
            axis.imshow(stretch(shown, whole))
            axis.set_axis_off()
        side = first.image.shape[-1] // CELL
        for number, (cell, partner) in enumerate(zip(cells[row], partners[row])):
            # At most eight lines: all of them would hide the picture
            if number % -(-cells.shape[1] // 8) == 0:
                ends = (_centre(each, side, field_offset) for each in (cell, partner))
                _link(left, right, *ends, number)
    titles = (
        'view 1, plain',
        'view 2, strong',
        'view 1, seen by student',
        'view 2, seen by student',
    )
    for axis, title in zip(axes[0], titles):
        axis.set_title(title)
    figure.suptitle('Two views of each chip; lines link cells of the same ground')
    figure.tight_layout()
    return figure


def _centre(cell: Tensor, side: int, offset: float) -> tuple[float, float]:
    row, col = divmod(int(cell), side)
    return (col + 0.5) * CELL - 0.5 + offset, (row + 0.5) * CELL - 0.5 + offset


def _link(
    left: Axes,
    right: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    number: int,
) -> None:
    colour = plt.get_cmap('hsv')(number * 0.381966 % 1)
    line = ConnectionPatch(
        start, end, 'data', 'data', axesA=left, axesB=right, color=colour, lw=1.2
    )
    left.figure.add_artist(line)
    for axis, (x, y) in ((left, start), (right, end)):
        axis.plot(x, y, 'o', color=colour, markersize=5, markeredgecolor='white')


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
        A row for each view: whole, seen, rebuilt at the hidden cells, rebuilt everywhere.
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
    figure, axes = plt.subplots(samples, 4, figsize=(12, 3.1 * samples), squeeze=False)
    for row in range(samples):
        for axis, (title, images) in zip(axes[row], columns.items()):
            axis.imshow(stretch(images[row, rgb], view.image[row, rgb]))
            axis.set_axis_off()
            axis.set_title(title if row == 0 else '')
    figure.tight_layout()
    return figure


def plot_curves(metrics: Path, queue_size: int) -> Figure:
    """Show how a run went.

    Args:
        metrics: The ``metrics.csv`` of a CSVLogger.
        queue_size: Keys in a full queue.

    Returns:
        The three losses, each beside the value that tells what to make of it, and the rank of
        the true key.
    """
    with open(metrics, newline='') as file:
        rows = [row for row in csv.DictReader(file) if row.get('train_loss')]
    step = np.array([int(row['step']) for row in rows])
    value = {
        name: np.array([float(row[name] or 'nan') for row in rows]) for name in rows[0]
    }
    # The queue is full where guessing costs as much as it ever will
    full = value['global_chance'] >= np.log1p(queue_size) - 1e-4
    since = step[full][0] if full.any() else None

    panels = (
        ('reconstruction', {'train_reconstruction': 'reconstruction loss'}),
        (
            'global: rises while the queue fills',
            {
                'train_global': 'global loss',
                'global_chance': 'guessing: log(1 + keys in the queue)',
            },
        ),
        (
            "local: cannot fall below the teacher's entropy",
            {'train_local': 'local loss', 'teacher_entropy': "teacher's entropy"},
        ),
        (
            f'rank of the true key among {queue_size} (1 is best)',
            {'key_rank': 'mean rank'},
        ),
    )
    figure, axes = plt.subplots(2, 2, figsize=(11, 7), sharex=True)
    for axis, (title, curves) in zip(axes.flat, panels):
        _panel(axis, step, {label: value[name] for name, label in curves.items()})
        if since is not None and title.startswith(('global', 'rank')):
            axis.axvline(since, color='grey', ls=':', label='queue full')
        axis.set_title(title)
        axis.legend()
    for axis in axes[1]:
        axis.set_xlabel('optimizer step')
    figure.tight_layout()
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
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(14, 7 * image.shape[1] / image.shape[2] + 0.6)
    )
    left.imshow(stretch(image[display_bands(bands)]))
    right.imshow(colours.transpose(1, 2, 0))
    left.set_title('scene')
    right.set_title('features: first three principal components')
    for axis in (left, right):
        axis.set_axis_off()
    figure.tight_layout()
    return figure
