# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Chips: windows of scenes, and joined samples of one place."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torchgeo.datasets import concat_samples
from torchgeo.datasets.utils import Sample

from .grids import Bools


@dataclass(frozen=True)
class Chip:
    """A window of whole pixels on a scene's own grid.

    Attributes:
        scenes: Indices into ``SceneDataset.scenes``, one a date. The window is on the grid of the
            first; the others are read at the same place.
        col: First column, in pixels.
        row: First row, in pixels.
        width: In pixels.
        height: In pixels.
    """

    scenes: tuple[int, ...]
    col: int
    row: int
    width: int
    height: int

    @property
    def window(self) -> tuple[int, int, int, int]:
        """Column, row, width and height."""
        return self.col, self.row, self.width, self.height


@runtime_checkable
class HasScenes(Protocol):
    """What windows can be drawn from: scenes, or anything laid out like them.

    Attributes:
        scenes: Each a :class:`~cmid_geo.datasets.Scene`.
        res: Pixel size (x, y), which matters only where chips have several dates.
    """

    @property
    def scenes(self) -> Sequence[Any]:
        """The scenes."""
        ...

    @property
    def res(self) -> tuple[float, float]:
        """Pixel size (x, y)."""
        ...

    def validity(self, scene: int, cells: int = 512) -> Bools | None:
        """Map roughly where a scene is valid; None if all of it is."""
        ...


def concat_scenes(samples: Iterable[Sample]) -> Sample:
    """Concatenate the bands of samples of the same place.

    Args:
        samples: Samples of several datasets.

    Returns:
        One sample, valid where all are.
    """
    samples = list(samples)
    masks = [sample['valid'] for sample in samples if 'valid' in sample]
    joined = concat_samples(samples)
    if masks:
        joined['valid'] = torch.stack(masks).all(0)
    return joined
