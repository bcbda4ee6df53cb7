# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Few labels: parts of a data set in which no class is lost."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from .chips import Chip


def stratified_fraction(
    labels: Sequence[int] | np.ndarray, fraction: float, seed: int = 0
) -> list[int]:
    """Draw a part of a data set, the same share of each class.

    Args:
        labels: Class of each sample.
        fraction: Share to draw, in (0, 1].
        seed: Of the draw. With the same seed a smaller part lies within a larger one.

    Returns:
        Sorted indices; of each class at least one.

    Raises:
        ValueError: If *fraction* is out of range.
    """
    if not 0 < fraction <= 1:
        raise ValueError(
            f'label_fraction={fraction} is a share of the labels: give one above 0, up to 1'
        )
    labels = np.asarray(labels)
    order = np.random.default_rng(seed).permutation(len(labels))
    drawn: list[int] = []
    for label in np.unique(labels):
        members = order[labels[order] == label]
        drawn += members[: max(1, round(fraction * len(members)))].tolist()
    return sorted(drawn)


def covering_fraction(counts: np.ndarray, fraction: float, seed: int = 0) -> list[int]:
    """Draw a part of chips of which each holds several classes.

    Chips are drawn by their commonest class; then those richest in the classes that are still
    missing are added.

    Args:
        counts: Labelled pixels, or objects, of each class (chips, classes).
        fraction: Share to draw, in (0, 1].
        seed: Of the draw.

    Returns:
        Sorted indices of chips; each class that any chip holds is among them.

    Raises:
        ValueError: If *fraction* is out of range.
    """
    drawn = stratified_fraction(counts.argmax(1), fraction, seed)
    while True:
        missing = (counts.sum(0) > 0) & (counts[drawn].sum(0) == 0)
        if not missing.any():
            return sorted(drawn)
        drawn.append(int(counts[:, np.flatnonzero(missing)[0]].argmax()))


class ListedChips(Sampler[Chip]):
    """Draws from a list of windows, each as likely; a function of seed and epoch alone."""

    def __init__(self, chips: Sequence[Chip], length: int, seed: int = 0) -> None:
        """Initialize a new ListedChips instance.

        Args:
            chips: Windows to draw from.
            length: Chips in an epoch.
            seed: Of the random numbers.
        """
        self.chips, self.length, self.seed, self.epoch = list(chips), length, seed, 0

    def __len__(self) -> int:
        """Return the number of chips in an epoch."""
        return self.length

    def __iter__(self) -> Iterator[Chip]:
        """Iterate over all of the list again and again, each time in another order."""
        rng = np.random.default_rng([self.seed, self.epoch])
        for place in range(self.length):
            if place % len(self.chips) == 0:
                order = rng.permutation(len(self.chips))
            yield self.chips[order[place % len(self.chips)]]

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of another epoch, as Lightning does.

        Args:
            epoch: Number of the epoch, from 0.
        """
        self.epoch = epoch
