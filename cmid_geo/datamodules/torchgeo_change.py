# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""TorchGeo's datamodules of change, with augmentations that work."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
import torchgeo.datamodules
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, Subset, random_split
from torchgeo.datamodules.oscd import MEAN, STD
from torchgeo.datasets import LEVIRCD, OSCD
from torchgeo.datasets.utils import Sample

from ..datasets.label_fraction import draw_fraction
from ..ops.cells import CELL
from ..ops.value_range import ValueRange
from ..transforms.change import PairAugmentation
from .base import ScaledDataModule, check_fraction
from .change import alter


class _Pairs(ScaledDataModule, torchgeo.datamodules.NonGeoDataModule):
    """Pairs of two dates: random crops to train on, whole images to validate and test on.

    TorchGeo's augmentations of two dates are Kornia's ``VideoSequential``, which raises with a
    mask in Kornia 0.9, and crop validation and test images at random or to their centre. Batches
    hold ``image`` (B, 2, C, H, W) in [0, 1], ``mask`` (B, 1, H, W) and ``valid`` (B, H, W).
    """

    patch_size: tuple[int, int]

    def _prepare(
        self, statistics: ValueRange, length: int | None, label_fraction: float,
        seed: int, augment: PairAugmentation,
    ) -> None:  # fmt: skip
        """Put our augmentations in the place of TorchGeo's."""
        check_fraction('label_fraction', label_fraction)
        self.statistics = self.value_range = statistics
        self.length, self.seed = length, seed
        self.label_fraction, self.augment = label_fraction, augment
        low, high = torch.tensor(statistics.low), torch.tensor(statistics.high)
        # TorchGeo's own meaning: what was delivered, times std, plus mean is raw
        self.mean, self.std = low, high - low
        # Whole images may be large, and of many sizes
        self.val_batch_size = self.test_batch_size = 1

    def scale(self, batch: Sample) -> Sample:
        """Bring a batch of raw pairs to [0, 1], with sides that an encoder takes.

        Args:
            batch: With ``image`` (B, 2, C, H, W), raw, ``mask`` and optionally ``valid``.

        Returns:
            The batch with all three, padded to sides that are multiples of 32.
        """
        image = batch['image']
        valid = batch.get('valid', torch.ones_like(image[:, 0, 0], dtype=torch.bool))
        batch = super().scale(batch | {'valid': valid})
        return batch | {name: pad(batch[name]) for name in ('image', 'mask', 'valid')}

    def augment_batch(self, batch: Sample) -> Sample:
        """Augment pairs and masks of training alike."""
        return alter(self.augment, batch)

    def _few(self, dataset: Any) -> Any:
        """The share of a dataset whose labels are used."""
        if self.label_fraction == 1:
            return dataset
        kept = draw_fraction([0] * len(dataset), self.label_fraction, self.seed)
        return Subset(dataset, kept)

    def _dataloader_factory(self, split: str) -> DataLoader[Sample]:
        """Make a loader; an epoch of training has as many crops as wanted."""
        loader: DataLoader[Any] = super()._dataloader_factory(split)
        if split != 'train':
            return loader
        dataset: Any = loader.dataset
        length = self.length or len(dataset)
        if length < self.batch_size:
            raise ValueError(
                f'{length} crops an epoch are less than a batch of {self.batch_size}: raise length=, or '
                'lower batch_size='
            )
        sampler = RandomSampler(
            dataset, replacement=length > len(dataset), num_samples=length
        )
        return self.make_loader(dataset, split, True, sampler=sampler)


class LEVIRCDDataModule(_Pairs, torchgeo.datamodules.LEVIRCDDataModule):
    """LEVIR-CD: random crops to train on, whole images to validate and test on."""

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
            batch_size: Crops in a batch of training; images are validated one by one.
            patch_size: Side of a crop, or (height, width), multiples of 32.
            num_workers: Processes that load data.
            length: Crops in a training epoch; by default one an image.
            label_fraction: Share of the training images that are used, in (0, 1].
            seed: Of which are used.
            **kwargs: Of :class:`~torchgeo.datasets.LEVIRCD`.

        Raises:
            ValueError: If the share is none.
        """
        super().__init__(batch_size, patch_size, num_workers, **kwargs)
        bands = ('R', 'G', 'B')
        # Nothing is estimated: 8-bit photographs
        statistics = ValueRange(
            bands, (0.0,) * 3, (255.0,) * 3, (0.5,) * 3, (0.25,) * 3
        )
        self._prepare(
            statistics, length, label_fraction, seed, PairAugmentation(self.patch_size)
        )

    def setup(self, stage: str) -> None:
        """Set up the splits of the dataset's authors.

        Args:
            stage: Either 'fit', 'validate', 'test' or 'predict'.
        """
        if stage == 'fit':
            self.train_dataset = self._few(LEVIRCD(split='train', **self.kwargs))
        if stage in ('fit', 'validate'):
            # TorchGeo has this split, its annotation does not
            val: Any = 'val'
            self.val_dataset = LEVIRCD(split=val, **self.kwargs)
        if stage == 'test':
            self.test_dataset = LEVIRCD(split='test', **self.kwargs)


class OSCDDataModule(_Pairs, torchgeo.datamodules.OSCDDataModule):
    """Onera change detection: random crops to train on, whole cities to validate and test on.

    Raw values are scaled by the mean minus and plus two standard deviations of TorchGeo's
    statistics of each band, which become 0 and 1.
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
            batch_size: Crops in a batch of training; cities are validated one by one.
            patch_size: Side of a crop, or (height, width), multiples of 32.
            val_split_pct: Share of the training cities to validate on.
            num_workers: Processes that load data.
            length: Crops in a training epoch; None for one a city, of which there are few.
            label_fraction: Share of the training cities that are used, in (0, 1].
            seed: Of which are used.
            **kwargs: Of :class:`~torchgeo.datasets.OSCD`.

        Raises:
            ValueError: If the share is none.
        """
        super().__init__(batch_size, patch_size, val_split_pct, num_workers, **kwargs)
        centre, spread = (
            torch.tensor([of[band] for band in self.bands]) for of in (MEAN, STD)
        )
        low = (centre - 2 * spread).clamp_min(0)
        high = centre + 2 * spread
        values = (low, high, (centre - low) / (high - low), spread / (high - low))
        statistics = ValueRange(
            tuple(self.bands), *(tuple(value.tolist()) for value in values)
        )
        # Cities differ in size: crops are cut before there is a batch
        self._prepare(statistics, length, label_fraction, seed, PairAugmentation())

    def setup(self, stage: str) -> None:
        """Set up the splits: TorchGeo's cities.

        Args:
            stage: Either 'fit', 'validate', 'test' or 'predict'.
        """
        if stage in ('fit', 'validate'):
            self.dataset = whole = OSCD(split='train', **self.kwargs)
            shares = [1 - self.val_split_pct, self.val_split_pct]
            generator = torch.Generator().manual_seed(0)
            train, self.val_dataset = random_split(whole, shares, generator)
            crop = partial(random_crop, size=self.patch_size)
            options: dict[str, Any] = self.kwargs | {'transforms': crop}
            cropped = OSCD(split='train', **options)
            self.train_dataset = self._few(Subset(cropped, train.indices))
        if stage == 'test':
            self.test_dataset = OSCD(split='test', **self.kwargs)


def random_crop(sample: Sample, size: tuple[int, int]) -> Sample:
    """Crop a pair at random.

    Args:
        sample: With ``image`` (2, C, H, W) and ``mask`` (1, H, W).
        size: (height, width) in pixels.

    Returns:
        ``image`` and ``mask`` of that size, and ``valid`` (H, W), False where the pair was too small.
    """
    layers = [sample['image'], sample['mask']]
    layers.append(torch.ones(layers[0].shape[-2:], dtype=torch.bool))
    row, col = (
        int(torch.randint(max(0, side - cut) + 1, ()))
        for side, cut in zip(layers[2].shape, size)
    )
    height, width = size
    parts = [each[..., row : row + height, col : col + width] for each in layers]
    missing = (0, width - parts[2].shape[1], 0, height - parts[2].shape[0])
    names = ('image', 'mask', 'valid')
    return {name: F.pad(each, missing) for name, each in zip(names, parts)}


def pad(layers: Tensor) -> Tensor:
    """Add zeros at the right and below, until sides are multiples of 32.

    Args:
        layers: (..., height, width).

    Returns:
        The same with nothing behind it.
    """
    height, width = layers.shape[-2:]
    return F.pad(layers, (0, -width % CELL, 0, -height % CELL))
