# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Chips of large images with rotated boxes in DOTA's format."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import shapely
import torch
from torchgeo.datasets import NonGeoDataset
from torchgeo.datasets.utils import Sample

from ..ops.window_starts import window_starts
from ..plots.samples import sample_figure
from .images import IMAGES, is_image, open_image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: First words of lines that are no box.
HEADERS = ('imagesource:', 'gsd:')

#: An image and its labels.
Pair = tuple[Path, Path]


class DOTALabels(NamedTuple):
    """Boxes of an image.

    Attributes:
        corners: (N, 8) x1, y1, ..., x4, y4 in pixels of the image, float64.
        labels: (N) counted from 1, in the order of the classes.
        difficult: (N) bool.
    """

    corners: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]
    difficult: npt.NDArray[np.bool_]


class OrientedChips(NonGeoDataset):
    """Chips of large images with rotated boxes.

    A sample holds ``image`` (C, H, W) float32, raw values, 0 beyond the image; ``bbox`` (N, 8)
    float32, four corners x1, y1, ..., x4, y4 in pixels of the chip; ``label`` (N), counted from 1;
    ``difficult`` (N) bool; ``index``, that of the image; and ``window`` (col, row, width, height).

    Chips lie on a grid that ends with the image, so that the last ones overlap more. A box belongs
    to every chip that has at least *min_share* of its area, whole, though parts may be outside;
    boxes of no area belong to none. With an overlap as long as the largest object each is whole
    in some chip. Only a window is read at a time; formats without tiles, such as PNG, are decoded
    from the start for each: large ones are better made into tiled GeoTIFF first.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        classes: Sequence[str],
        patch_size: int = 1024,
        overlap: int = 200,
        bands: Sequence[int] = (1, 2, 3),
        min_share: float = 0.7,
        skip_empty: bool = False,
    ) -> None:
        """Initialize a new OrientedChips instance.

        Args:
            pairs: Images and their labels.
            classes: Names; the first has label 1.
            patch_size: Side of the chips in pixels.
            overlap: Of neighbouring chips, in pixels.
            bands: Positions of bands, from 1. An image of one band stands for all of them.
            min_share: Least fraction of a box in a chip, in (0, 1].
            skip_empty: Whether to leave out chips without boxes.

        Raises:
            ValueError: If a number is off, or an image or its labels cannot be read.
        """
        if not 0 <= overlap < patch_size or not 0 < min_share <= 1:
            raise ValueError(
                f'patch_size={patch_size}, overlap={overlap}, min_share={min_share}: chips overlap by '
                'less than their side, and fractions are in (0, 1]'
            )
        self.pairs, self.classes, self.bands = list(pairs), tuple(classes), tuple(bands)
        self.patch_size, self.min_share = patch_size, min_share
        self.boxes = [read_dota(labels, classes) for _, labels in self.pairs]
        #: Index of the image, first column, first row and the boxes of each chip
        self.chips: list[tuple[int, int, int, npt.NDArray[np.int64]]] = []
        for index, (image, _) in enumerate(self.pairs):
            with open_image(image) as file:
                rows, cols = (
                    window_starts(side, patch_size, patch_size - overlap)
                    for side in file.shape
                )
            points = shapely.multipoints(self.boxes[index].corners.reshape(-1, 4, 2))
            shapes = shapely.convex_hull(points)
            for row, col in itertools.product(rows, cols):
                own = self._own(shapes, col, row)
                if len(own) or not skip_empty:
                    self.chips.append((index, col, row, own))

    def __len__(self) -> int:
        """Return the number of chips."""
        return len(self.chips)

    def __getitem__(self, index: int) -> Sample:
        """Read a chip.

        Args:
            index: Of the chip.

        Returns:
            ``image``, ``bbox``, ``label``, ``difficult``, ``index`` and ``window``.

        Raises:
            ValueError: If the image cannot be read, or lacks bands.
        """
        image, col, row, own = self.chips[index]
        boxes, size = self.boxes[image], self.patch_size
        corners = boxes.corners[own] - np.array([col, row] * 4)
        return {
            'image': torch.from_numpy(self._read(self.pairs[image][0], col, row)),
            'bbox': torch.from_numpy(corners.astype(np.float32)),
            'label': torch.from_numpy(boxes.labels[own]),
            'difficult': torch.from_numpy(boxes.difficult[own]),
            'index': torch.tensor(image),
            'window': torch.tensor([col, row, size, size]),
        }

    def plot(
        self,
        sample: Sample,
        show_titles: bool = True,
        suptitle: str | None = None,
        **options: Any,
    ) -> 'Figure':
        """Draw a sample, and what was predicted of it.

        Args:
            sample: As of this dataset, raw or in [0, 1]; with ``prediction_bbox`` (N, 8), ``prediction_label`` and
                ``prediction_score`` these are drawn beside.
            show_titles: Whether to say which is which.
            suptitle: Title of all.
            **options: Of :func:`~cmid_geo.plots.samples.sample_figure`, such as ``names`` of classes.

        Returns:
            The figure.
        """
        known: dict[str, Any] = {'names': ('background', *self.classes)} | options
        return sample_figure(sample, show_titles, suptitle, **known)

    def _own(self, shapes: npt.NDArray, col: int, row: int) -> npt.NDArray[np.int64]:
        """Which boxes belong to a chip."""
        chip = shapely.box(col, row, col + self.patch_size, row + self.patch_size)
        near = np.flatnonzero(shapely.intersects(shapes, chip))
        areas = shapely.area(shapes[near])
        common = shapely.area(shapely.intersection(shapes[near], chip))
        # A box that just fits may miss its last digit
        return near[(areas > 0) & (common >= areas * self.min_share * (1 - 1e-9))]

    def _read(self, path: Path, col: int, row: int) -> npt.NDArray[np.float32]:
        """Values of a chip, 0 beyond the image."""
        size = self.patch_size
        found = np.zeros((len(self.bands), size, size), np.float32)
        with open_image(path) as file:
            bands = (1,) * len(self.bands) if file.count == 1 else self.bands
            if max(bands) > file.count:
                raise ValueError(
                    f'{path} has {file.count} bands but bands={self.bands}: choose of those that it has'
                )
            height, width = min(size, file.height - row), min(size, file.width - col)
            window = ((row, row + height), (col, col + width))
            found[:, :height, :width] = file.read(bands, window=window)
        return found


def read_dota(path: Path | str, classes: Sequence[str]) -> DOTALabels:
    """Read labels in DOTA's format.

    A line is ``x1 y1 x2 y2 x3 y3 x4 y4 category difficult``, where *difficult* may be missing;
    lines ``imagesource:`` and ``gsd:`` and empty ones are skipped.

    Args:
        path: A text file.
        classes: Names that may occur.

    Returns:
        The boxes.

    Raises:
        ValueError: If a line is none of these, or a category is not known; says file and line.
    """
    places = {name: label for label, name in enumerate(classes, 1)}
    rows = []
    lines = Path(path).read_text(encoding='utf-8-sig').splitlines()
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].lower().startswith(HEADERS):
            continue
        try:
            points = [float(word) for word in words[:8]]
            hard = [int(word) for word in words[9:]] or [0]
            well = len(words) in (9, 10) and bool(np.isfinite(points).all())
        except ValueError:
            well = False
        if not well:
            raise ValueError(
                f'{path}, line {number}: {line!r} is no box: write x1 y1 x2 y2 x3 y3 x4 y4 category '
                'difficult, with finite numbers and a difficulty of 0 or 1'
            )
        if words[8] not in places:
            raise ValueError(
                f'{path}, line {number}: category {words[8]!r} is not among {list(classes)}: correct it, or '
                'add it to classes='
            )
        rows.append((*points, places[words[8]], hard[0]))
    table = np.array(rows, np.float64).reshape(-1, 10)
    return DOTALabels(table[:, :8], table[:, 8].astype(np.int64), table[:, 9] > 0)


def find_pairs(folder: Path | str) -> list[Pair]:
    """Find images and their labels in a folder that has DOTA's layout.

    Args:
        folder: Holds ``images`` and ``labelTxt``, with files of the same names but for endings.

    Returns:
        Pairs in the order of their names.

    Raises:
        ValueError: If there are no images, or one has no labels.
    """
    images, labels = Path(folder) / 'images', Path(folder) / 'labelTxt'
    found = sorted(filter(is_image, images.glob('*')))
    if not found:
        raise ValueError(
            f'{images} holds no images ({", ".join(IMAGES)}): give a folder with images and labelTxt'
        )
    pairs = [(path, labels / f'{path.stem}.txt') for path in found]
    missing = [str(own) for _, own in pairs if not own.exists()]
    if missing:
        raise ValueError(
            f'{len(missing)} of {len(pairs)} images have no labels, such as {missing[0]}: an image without '
            'objects needs an empty file'
        )
    return pairs
