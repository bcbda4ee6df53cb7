# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Windows of fixed places, all of them or a share."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from .chips import Chip, HasScenes


class FewChips(Sampler[Chip]):
    """The same few chips over and over, in another order each time."""

    def __init__(self, chips: Sequence[Chip], length: int, seed: int = 0) -> None:
        """Initialize a new FewChips instance.

        Args:
            chips: What to draw from.
            length: Chips in an epoch; each comes about equally often.
            seed: Of the order.
        """
        self.chips, self.length, self.seed, self.epoch = list(chips), length, seed, 0

    def __len__(self) -> int:
        """Return the number of chips in an epoch."""
        return self.length

    def __iter__(self) -> Iterator[Chip]:
        """Iterate over the chips of the epoch."""
        rng = np.random.default_rng([self.seed, self.epoch])
        rounds = -(-self.length // len(self.chips))
        order = np.concatenate(
            [rng.permutation(len(self.chips)) for _ in range(rounds)]
        )
        for index in order[: self.length]:
            yield self.chips[index]

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of another epoch, as Lightning does.

        Args:
            epoch: Number of the epoch, from 0.
        """
        self.epoch = epoch


def windows(places: HasScenes, size: int) -> list[Chip]:
    """Windows side by side that cover every place once; the last overhang, and are invalid there.

    Args:
        places: What to cover.
        size: Side of a window in pixels.

    Returns:
        Chips, place by place and row by row.
    """
    return [
        Chip((index,), col, row, size, size)
        for index, mask in enumerate(places.scenes)
        for row in range(0, mask.height, size)
        for col in range(0, mask.width, size)
    ]


def stratified_share(strata: Sequence[Any], fraction: float, seed: int) -> list[int]:
    """Choose a share of items, of each kind alike; a larger share contains a smaller one.

    Args:
        strata: The kind of each item.
        fraction: In (0, 1]; at least one item of each kind is kept.
        seed: Of the choice.

    Returns:
        Sorted indices of what is kept.
    """
    kinds: Any = np.unique(np.asarray(strata), return_inverse=True)[1]
    kept: list[int] = []
    for kind in range(kinds.max() + 1 if len(kinds) else 0):
        members = np.random.default_rng([seed, kind]).permutation(
            np.flatnonzero(kinds == kind)
        )
        kept += members[: max(1, round(fraction * len(members)))].tolist()
    return sorted(kept)
