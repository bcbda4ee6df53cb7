# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""TorchGeo's datamodules of change, with augmentations that work."""

import functools
from typing import Any

import torch
import torch.nn.functional as F
import torchgeo.datamodules
from torch import Tensor
from torch.utils.data import Subset, random_split
from torchgeo.datamodules.oscd import MEAN, STD
from torchgeo.datasets import LEVIRCD, OSCD
from torchgeo.datasets.utils import Sample
from torchvision.transforms.v2 import functional as transforms

from ..datasets.label_fraction import check_fraction, draw_fraction
from ..datasets.order import RandomlyCropped, SeededCrops
from ..datasets.samplers import ListedChips
from ..ops.bands import names_of
from ..ops.cells import CELL
from ..ops.value_range import ValueRange
from ..plots.samples import sample_figure
from ..transforms.change import PairAugmentation
from .base import ScaledDataModule


class _Pairs(ScaledDataModule):
    """What both have in common: random crops to train on, whole images to judge by.

    TorchGeo's augmentations of two dates are Kornia's ``VideoSequential``, which raises with a
    mask in Kornia 0.9, and crop validation and test images at random or to their centre. Batches
    hold ``image`` (B, 2, C, H, W) in [0, 1], ``mask`` (B, 1, H, W) and ``valid`` (B, H, W).
    """

    patch_size: tuple[int, int]

    def _prepare(
        self, found: ValueRange, length: int | None, label_fraction: float, seed: int,
        augmentation: PairAugmentation,
    ) -> None:  # fmt: skip
        """Put our augmentations in the place of TorchGeo's."""
        self._learn(found)
        self.length, self.seed = length, seed
        self.label_fraction = check_fraction(label_fraction)
        self.augmentation = augmentation
        low, high = torch.tensor(found.low), torch.tensor(found.high)
        # TorchGeo's own meaning: what was delivered, times std, plus mean is raw
        self.mean, self.std = low, high - low
        # Whole images may be large, and of many sizes
        self.val_batch_size = self.test_batch_size = 1

    def scale(self, batch: Sample) -> Sample:
        """Bring a batch of raw pairs to [0, 1], with sides that an encoder takes.

        Args:
            batch: With ``image`` (B, 2, C, H, W), raw, ``mask`` (B, 1, H, W) and, where not all of
                them is valid, ``valid`` (B, H, W) bool.

        Returns:
            The batch with all three, filled up to multiples of 32 at the right and below.
        """
        batch = super().scale(batch)
        valid = torch.ones_like(batch['image'][:, 0, 0], dtype=torch.bool)
        layers = {'valid': valid} | batch
        padded = {name: pad(layers[name]) for name in ('image', 'mask', 'valid')}
        return batch | padded

    def augment_batch(self, batch: Sample) -> Sample:
        """Augment a batch of training; TorchGeo's masks, which have a band, keep it.

        Args:
            batch: With images in [0, 1].

        Returns:
            The batch with image, mask and valid altered alike.
        """
        batch = super().augment_batch(batch | {'mask': batch['mask'].squeeze(1)})
        return batch | {'mask': batch['mask'].unsqueeze(1)}

    def plot(self, *args: Any, **kwargs: Any) -> Any:
        """Draw a pair by the names of its bands; TorchGeo's own figures fill pyplot's list.

        Args:
            *args: Of :func:`~cmid_geo.plots.samples.sample_figure`: a sample, in [0, 1] or raw.
            **kwargs: Of the same.

        Returns:
            The figure.
        """
        bands = names_of(self.statistics.bands if self.statistics else None) or None
        known: dict[str, Any] = {'bands': bands, 'names': ('no change', 'change')}
        return sample_figure(*args, **(known | kwargs))

    def _train_on(self, dataset: Any, among: list[int], crop: Any = None) -> None:
        """Train on a part of some pairs, with as many crops an epoch as wanted."""
        drawn = draw_fraction([0] * len(among), self.label_fraction, self.seed)
        few = Subset(dataset, [among[index] for index in drawn])
        length = self.length or len(drawn)
        if length < self.batch_size:
            raise ValueError(
                f'{length} crops an epoch are less than a batch of {self.batch_size}: raise length=, or '
                'lower batch_size='
            )
        self.train_dataset = few if crop is None else RandomlyCropped(few, crop)
        draws = ListedChips if crop is None else SeededCrops
        self.train_sampler = draws(range(len(few)), length, self.seed)


class LEVIRCDDataModule(_Pairs, torchgeo.datamodules.LEVIRCDDataModule):
    """LEVIR-CD: random crops to train on, whole images to validate and test on.

    *patch_size* may be (height, width). Without *length* an epoch has one crop an image. Images are
    validated and tested on one by one.
    """

    def __init__(
        self,
        batch_size: int = 8,
        patch_size: tuple[int, int] | int = 256,
        num_workers: int = 0,
        length: int | None = None,
        label_fraction: float = 1.0,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        """Initialize a new LEVIRCDDataModule instance.

        Args:
            batch_size: Samples in a batch of training, in each process.
            patch_size: Side of the chips in pixels, a multiple of 32 for most networks.
            num_workers: Processes that load data, for each process that trains.
            length: Chips in a training epoch, over all processes.
            label_fraction: Fraction of the training labels to learn from, in (0, 1], of each class alike.
            seed: Seed of all that is drawn; where None, ``torch.initial_seed()``, which ``seed_everything`` sets.
            **kwargs: Of :class:`~torchgeo.datasets.LEVIRCD`.

        Raises:
            ValueError: If the fraction is out of range.
        """
        super().__init__(batch_size, patch_size, num_workers, **kwargs)
        # Nothing is estimated: 8-bit photographs
        values = (0.0,) * 3, (255.0,) * 3, (0.5,) * 3, (0.25,) * 3
        self._prepare(
            ValueRange(('R', 'G', 'B'), *values), length, label_fraction, seed,
            PairAugmentation(self.patch_size),
        )  # fmt: skip

    def setup(self, stage: str) -> None:
        """Set up the splits of the dataset's authors.

        Args:
            stage: Either 'fit', 'validate', 'test' or 'predict'.

        Raises:
            ValueError: If an epoch is shorter than a batch.
        """
        self._begin(stage)
        if stage == 'fit':
            dataset = LEVIRCD(split='train', **self.kwargs)
            self._train_on(dataset, [*range(len(dataset))])
        if stage in ('fit', 'validate'):
            # TorchGeo has this split, its annotation does not
            val: Any = 'val'
            self.val_dataset = LEVIRCD(split=val, **self.kwargs)
        if stage == 'test':
            self.test_dataset = LEVIRCD(split='test', **self.kwargs)


class OSCDDataModule(_Pairs, torchgeo.datamodules.OSCDDataModule):
    """Onera change detection: random crops to train on, whole cities to validate and test on.

    Raw values are scaled by the mean minus and plus two standard deviations of TorchGeo's
    statistics of each band, which become 0 and 1. *patch_size* may be (height, width). With
    *length* None an epoch has one crop a city, of which there are few. Cities are validated and
    tested on one by one.
    """

    def __init__(
        self,
        batch_size: int = 32,
        patch_size: tuple[int, int] | int = 64,
        val_split_pct: float = 0.2,
        num_workers: int = 0,
        length: int | None = 1000,
        label_fraction: float = 1.0,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        """Initialize a new OSCDDataModule instance.

        Args:
            batch_size: Samples in a batch of training, in each process.
            patch_size: Side of the chips in pixels, a multiple of 32 for most networks.
            val_split_pct: Fraction of the training cities to validate on.
            num_workers: Processes that load data, for each process that trains.
            length: Chips in a training epoch, over all processes.
            label_fraction: Fraction of the training labels to learn from, in (0, 1], of each class alike.
            seed: Seed of all that is drawn; where None, ``torch.initial_seed()``, which ``seed_everything`` sets.
            **kwargs: Of :class:`~torchgeo.datasets.OSCD`.

        Raises:
            ValueError: If the fraction is out of range.
        """
        super().__init__(batch_size, patch_size, val_split_pct, num_workers, **kwargs)
        centre = torch.tensor([MEAN[band] for band in self.bands])
        spread = torch.tensor([STD[band] for band in self.bands])
        low = (centre - 2 * spread).clamp_min(0)
        high = centre + 2 * spread
        values = (low, high, (centre - low) / (high - low), spread / (high - low))
        values = (tuple(value.tolist()) for value in values)
        found = ValueRange(tuple(self.bands), *values)
        # Cities differ in size: crops are cut before there is a batch
        self._prepare(found, length, label_fraction, seed, PairAugmentation())

    def setup(self, stage: str) -> None:
        """Set up the splits: TorchGeo's cities.

        Args:
            stage: Either 'fit', 'validate', 'test' or 'predict'.

        Raises:
            ValueError: If an epoch is shorter than a batch.
        """
        self._begin(stage)
        if stage in ('fit', 'validate'):
            self.dataset = OSCD(split='train', **self.kwargs)
            fractions = [1 - self.val_split_pct, self.val_split_pct]
            generator = torch.Generator().manual_seed(0)
            train, self.val_dataset = random_split(self.dataset, fractions, generator)
            crop = functools.partial(random_crop, self.patch_size)
            self._train_on(self.dataset, [*train.indices], crop)
        if stage == 'test':
            self.test_dataset = OSCD(split='test', **self.kwargs)


def random_crop(
    size: tuple[int, int], sample: Sample, generator: torch.Generator
) -> Sample:
    """Crop a pair at random; what is beyond it is 0 and not valid.

    Args:
        size: (height, width) in pixels.
        sample: With ``image`` (..., H, W) and ``mask`` (..., H, W).
        generator: Source of the crop's place.

    Returns:
        Both of that size, and ``valid`` (height, width) bool.
    """
    sides = sample['image'].shape[-2:]
    spare = [max(0, side - cut) for side, cut in zip(sides, size, strict=True)]
    corner = [int(torch.randint(most + 1, (), generator=generator)) for most in spare]
    image, mask, valid = (
        transforms.crop_image(layer, *corner, *size)
        for layer in (sample['image'], sample['mask'], torch.ones(1, *sides).bool())
    )
    return {'image': image, 'mask': mask, 'valid': valid[0]}


def pad(layers: Tensor) -> Tensor:
    """Add zeros at the right and below, until sides are multiples of 32.

    Args:
        layers: (..., height, width).

    Returns:
        The same with nothing behind it.
    """
    height, width = layers.shape[-2:]
    return F.pad(layers, (0, -width % CELL, 0, -height % CELL))
