# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Chips: where one lies, and how samples of one place are joined."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torchgeo.datasets import concat_samples
from torchgeo.datasets.utils import Sample


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
