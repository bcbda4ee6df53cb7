# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Order in which a run takes its samples: shared out over processes, taken up where it stopped."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from torch.utils.data.distributed import DistributedSampler
from torchgeo.datasets.utils import Sample

from .samplers import ListedChips


class TrainingOrder(DistributedSampler[Any]):
    """Samples of an epoch in the order of another sampler, every process its own.

    Process r of n takes samples r, r + n, ...: the batches of all processes together are the batch
    that one process would take. Where the number of samples is no multiple of the processes, the
    first ones come again, as with torch's
    :class:`~torch.utils.data.distributed.DistributedSampler`, which this is so that Lightning
    leaves it as it is.

    A run that was stopped goes on at :attr:`place`: workers fetch ahead before Lightning tells the
    epoch, so the place must be known when the first iteration begins.

    Attributes:
        place: Epoch, and samples of it that this process took already, where the next iteration
            begins, whatever epoch was set; None to begin the epoch that was set.
        serving: Epoch of the latest iteration.
    """

    place: tuple[int, int] | None = None
    serving = 0

    def __init__(self, sampler: Any, processes: int = 1, rank: int = 0) -> None:
        """Initialize a new TrainingOrder instance.

        Args:
            sampler: A function of its own ``set_epoch``, the same in all processes.
            processes: Number of processes that train.
            rank: Number of this one, from 0.
        """
        super().__init__(sampler, processes, rank, shuffle=False)
        self.sampler = sampler

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the samples of this process, once from :attr:`place` on."""
        self.serving, done = self.place or (self.epoch, 0)
        self.place = None
        if hasattr(self.sampler, 'set_epoch'):
            self.sampler.set_epoch(self.serving)
        first = done * self.num_replicas + self.rank
        # Lazy: the chips of a large epoch are drawn while training goes on, and never all in memory
        endless = itertools.chain.from_iterable(itertools.repeat(self.sampler))
        return itertools.islice(endless, first, self.total_size, self.num_replicas)


class RandomlyCropped(Dataset[Sample]):
    """Samples that are cropped at random, by a number that comes with their index.

    So a crop depends neither on the worker that cuts it nor on what was drawn before.
    """

    def __init__(self, dataset: Any, crop: Any) -> None:
        """Initialize a new RandomlyCropped instance.

        Args:
            dataset: Samples by index.
            crop: Takes a sample and a :class:`torch.Generator`, returns the crop.
        """
        self.dataset, self.crop = dataset, crop

    def __len__(self) -> int:
        """Return the number of samples to crop from."""
        return len(self.dataset)

    def __getitem__(self, index: int | tuple[int, int]) -> Sample:
        """Cut a crop.

        Args:
            index: Index of the sample, and seed of its crop, which torch draws where it is left out.

        Returns:
            The crop.
        """
        if not isinstance(index, tuple):
            # Looked at beside training: as torch draws
            index = index, int(torch.randint(2**62, ()))
        place, seed = index
        return self.crop(self.dataset[place], torch.Generator().manual_seed(seed))


class SeededCrops(ListedChips):
    """Draws for :class:`RandomlyCropped`: indices, each with the seed of a crop."""

    def __iter__(self) -> Iterator[Any]:
        """Iterate over all of the list again and again, each time in another order."""
        seeds = np.random.default_rng([self.seed, self.epoch, 1])
        for index in super().__iter__():
            yield index, int(seeds.integers(2**62))
