# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Classes of a scene's cells by their features."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..datasets import Chip, MaskDataset, SceneDataset
from ..metrics.probes import linear_probe
from ..ops.cells import CELL

#: Scene number to one vector a cell, (dim, rows, cols).
Features = Callable[[int], Tensor]


@dataclass(frozen=True)
class CellProbe:
    """Classes of cells as linear probes of several kinds of features found them.

    Attributes:
        truth: The commonest class of each cell in the right half of each scene, -1 where fewer than
            half of its pixels have a label.
        found: The classes found there, by kind of feature.
    """

    truth: list[Int[Tensor, '_rows _cols']]
    found: dict[str, list[Int[Tensor, '_rows _cols']]]

    def accuracy(self, kind: str) -> float:
        """Fraction of the labelled cells whose class is found."""
        truth, right = self._compare(kind)
        return float(right[truth >= 0].mean())

    def balanced(self, kind: str) -> float:
        """The same for each class by itself, and the mean of them: rare classes count as much."""
        truth, right = self._compare(kind)
        classes = truth[truth >= 0].unique()
        return float(torch.stack([right[truth == c].mean() for c in classes]).mean())

    def _compare(self, kind: str) -> tuple[Tensor, Tensor]:
        truth, found = (
            torch.cat([each.flatten() for each in cells])
            for cells in (self.truth, self.found[kind])
        )
        return truth, (truth == found).float()


def commonest_class(
    mask: Int[Tensor, 'height width'], ignore_index: int
) -> Int[Tensor, 'rows cols']:
    """Find the class that most pixels of a cell have.

    Args:
        mask: Class of each pixel.
        ignore_index: Label of those that have none.

    Returns:
        The class of each whole cell, -1 where fewer than half of its pixels have one.
    """
    labels = mask.masked_fill(mask == ignore_index, -1) + 1
    counts = F.avg_pool2d(F.one_hot(labels).movedim(2, 0).float()[None], CELL)[0]
    # With one band there is no class at all
    classes = counts[1:] if len(counts) > 1 else counts
    return classes.argmax(0).where(counts[0] <= 0.5, -1)


def colours_of(dataset: SceneDataset, scene: int) -> Float[Tensor, 'dim rows cols']:
    """Mean and standard deviation of each band within the cells of a scene."""
    grid = dataset.scenes[scene].grid
    chip = Chip((scene,), 0, 0, grid.width, grid.height)
    image = dataset[chip]['image'].double()[None]
    mean = F.avg_pool2d(image, CELL)
    spread = F.avg_pool2d(image**2, CELL) - mean**2
    return torch.cat([mean, spread.clamp_min(0).sqrt()], 1)[0].float()


def probe_cells(
    kinds: Mapping[str, Features], dataset: SceneDataset, masks: MaskDataset
) -> CellProbe:
    """Learn the classes of cells in the left halves of scenes, and find those in the right halves.

    Args:
        kinds: Name of each kind of feature, and how to get it.
        dataset: The scenes.
        masks: A mask of each of the scenes, in their order.

    Returns:
        What was found.

    Raises:
        ValueError: If no cell on the left has a label, or none on the right.
    """
    truth = [
        commonest_class(masks.read(number, scene.grid), masks.ignore_index)
        for number, scene in enumerate(dataset.scenes)
    ]
    left, right = zip(*(_halves(cells) for cells in truth), strict=True)
    labels = torch.cat([cells.flatten() for cells in left])
    if not any((cells >= 0).any() for cells in left) or not any(
        (cells >= 0).any() for cells in right
    ):
        raise ValueError(
            f'half of the scenes has no label in its cells of {CELL} pixels: nothing can be learned'
        )
    found = {}
    for name, features in kinds.items():
        known, asked = [], []
        for number, cells in enumerate(truth):
            rows, cols = cells.shape
            vectors = features(number)[:, :rows, :cols].movedim(0, -1)
            for half, part in zip((known, asked), _halves(vectors), strict=True):
                half.append(part.flatten(0, 1))
        given = torch.cat(known)[labels >= 0], labels[labels >= 0], torch.cat(asked)
        classes = linear_probe(*given).split([cells.numel() for cells in right])
        pairs = zip(classes, right, strict=True)
        found[name] = [part.view(cells.shape) for part, cells in pairs]
    return CellProbe(list(right), found)


def _halves(cells: Tensor) -> tuple[Tensor, Tensor]:
    """Left and right half of cells (rows, cols, ...)."""
    half = cells.shape[1] // 2
    return cells[:, :half], cells[:, half:]
