# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""TorchGeo's datamodules of change, with augmentations that work."""

from typing import Any

import torch
import torch.nn.functional as F
import torchgeo.datamodules
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler, Subset, random_split
from torchgeo.datamodules.oscd import MEAN, STD
from torchgeo.datasets import LEVIRCD, OSCD
from torchgeo.datasets.utils import Sample

from ..datasets import BandStatistics
from ..datasets.label_fraction import draw_fraction
from ..ops.cells import CELL
from ..transforms.change import PairAugmentation
from .change import alter


class _Pairs(torchgeo.datamodules.NonGeoDataModule):
    """What both have in common: random crops to train on, whole images to judge by.

    TorchGeo's augmentations of two dates are Kornia's ``VideoSequential``, which raises with a
    mask in Kornia 0.9, and crop validation and test images at random or to their centre. Batches
    hold ``image`` (B, 2, C, H, W) in [0, 1], ``mask`` (B, 1, H, W) and ``valid`` (B, H, W).
    """

    patch_size: tuple[int, int]
    statistics: BandStatistics

    def _prepare(
        self, statistics: BandStatistics, length: int | None, label_fraction: float,
        seed: int, augment: PairAugmentation,
    ) -> None:  # fmt: skip
        """Put our augmentations in the place of TorchGeo's."""
        if not 0 < label_fraction <= 1:
            raise ValueError(
                f'label_fraction={label_fraction} is the share of images that are used: give one above 0, '
                'at most 1'
            )
        self.statistics, self.length, self.seed = statistics, length, seed
        self.label_fraction, self.augment = label_fraction, augment
        low, high = torch.tensor(statistics.low), torch.tensor(statistics.high)
        # TorchGeo's own meaning: what was delivered, times std, plus mean is raw
        self.mean, self.std = low, high - low
        self.train_aug, self.aug = self._alter, self._scale
        self.val_aug = self.test_aug = self.predict_aug = None
        # Whole images may be large, and of many sizes
        self.val_batch_size = self.test_batch_size = 1

    def _scale(self, batch: Sample) -> Sample:
        """Bring a batch of raw pairs to [0, 1], with sides that an encoder takes."""
        image, mask = batch['image'], batch['mask']
        low, spread = (
            values.to(image)[:, None, None] for values in (self.mean, self.std)
        )
        scaled = ((image - low) / spread).clamp(0, 1)
        valid = batch.get('valid')
        if valid is None:
            valid = torch.ones_like(scaled[:, 0, 0], dtype=torch.bool)
        return batch | {
            'image': pad(scaled), 'mask': pad(mask), 'valid': pad(valid),
        }  # fmt: skip

    def _alter(self, batch: Sample) -> Sample:
        """Scale a batch and alter it."""
        return alter(self.augment, self._scale(batch))

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
        return DataLoader(
            dataset, self.batch_size, sampler=sampler, drop_last=True,
            num_workers=self.num_workers, collate_fn=self.collate_fn,
            persistent_workers=self.num_workers > 0,
        )  # fmt: skip


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
        statistics = BandStatistics(
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
        statistics = BandStatistics(
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
            whole = OSCD(split='train', **self.kwargs)
            self.dataset = whole
            shares = [1 - self.val_split_pct, self.val_split_pct]
            generator = torch.Generator().manual_seed(0)
            train, self.val_dataset = random_split(whole, shares, generator)
            self.train_dataset = Cropped(self._few(train), self.patch_size)
        if stage == 'test':
            self.test_dataset = OSCD(split='test', **self.kwargs)


class Cropped(Dataset[Sample]):
    """Random crops of pairs that differ in size."""

    def __init__(self, dataset: Any, size: tuple[int, int]) -> None:
        """Initialize a new Cropped instance.

        Args:
            dataset: Of samples with ``image`` (2, C, H, W) and ``mask`` (1, H, W).
            size: (height, width) in pixels.
        """
        self.dataset = dataset
        self.size = size

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        """Crop a pair.

        Args:
            index: Its number.

        Returns:
            ``image`` and ``mask`` of the size wanted, and ``valid`` (H, W), False where a pair was
            too small.
        """
        sample = self.dataset[index]
        image, mask = sample['image'], sample['mask']
        valid = torch.ones(image.shape[-2:], dtype=torch.bool)
        spare = [max(0, side - cut) for side, cut in zip(valid.shape, self.size)]
        row, col = (int(torch.randint(most + 1, ())) for most in spare)
        height, width = self.size
        cut = (..., slice(row, row + height), slice(col, col + width))
        missing = (width - valid[cut].shape[1], height - valid[cut].shape[0])
        image, mask, valid = (
            F.pad(each[cut], (0, missing[0], 0, missing[1]))
            for each in (image, mask, valid)
        )
        return {'image': image, 'mask': mask, 'valid': valid}


def pad(layers: Tensor) -> Tensor:
    """Add zeros at the right and below, until sides are multiples of 32.

    Args:
        layers: (..., height, width).

    Returns:
        The same with nothing behind it.
    """
    height, width = layers.shape[-2:]
    return F.pad(layers, (0, -width % CELL, 0, -height % CELL))
