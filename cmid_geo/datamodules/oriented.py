# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Batches of chips with rotated boxes, of DOTA or of folders like it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torchgeo.datamodules import NonGeoDataModule
from torchgeo.datasets import DOTA
from torchgeo.datasets.utils import Sample

from ..datasets.dota import OrientedChips, Pair, find_pairs, read_dota
from ..datasets.label_fraction import draw_fraction
from ..ops.value_range import ValueRange
from ..transforms.oriented import RandomTurns
from .base import ScaledDataModule

#: Number of classes of each version of DOTA, without the background.
CLASSES = {'1.0': 15, '1.5': 16, '2.0': 18}


class OrientedDataModule(ScaledDataModule, NonGeoDataModule):
    """Chips with rotated boxes of folders in DOTA's layout, scaled to [0, 1] on the device.

    A folder holds ``images`` and ``labelTxt``. Batches hold ``image`` (B, C, H, W) float32 in
    [0, 1], lists ``bbox``, ``label`` and ``difficult`` with an entry an image, and ``index`` and
    ``window``; see :class:`~cmid_geo.datasets.dota.OrientedChips`, which also tells which boxes
    belong to a chip. In training images are laid in one of eight ways.

    Attributes:
        classes: Names of the classes; the first has label 1.
        statistics: Raw values that become 0 and 1. Mean and spread are not estimated.
    """

    def __init__(
        self,
        train: str | None = None,
        val: str | None = None,
        test: str | None = None,
        classes: Sequence[str] = (),
        patch_size: int = 1024,
        overlap: int = 200,
        batch_size: int = 2,
        num_workers: int = 0,
        bands: Sequence[int] = (1, 2, 3),
        low: float | Sequence[float] = 0.0,
        high: float | Sequence[float] = 255.0,
        label_fraction: float = 1.0,
        seed: int = 0,
        min_share: float = 0.7,
        skip_empty: bool = True,
        augment: bool = True,
        rotate: float = 0.0,
    ) -> None:
        """Initialize a new OrientedDataModule instance.

        Args:
            train: Folder to train on.
            val: Folder to validate on; by default that to test on.
            test: Folder to test and predict on; by default that to validate on.
            classes: Names of the classes.
            patch_size: Side of the chips in pixels.
            overlap: Of neighbouring chips, in pixels.
            batch_size: Chips of a batch.
            num_workers: Processes that load data, for each process that trains.
            bands: Positions of bands, from 1. An image of one band stands for all of them.
            low: Raw value, or one a band, that becomes 0.
            high: Raw value, or one a band, that becomes 1.
            label_fraction: Share of the training images to use, in (0, 1], see
                :func:`~cmid_geo.datasets.label_fraction.draw_fraction`.
            seed: Of the choice of images.
            min_share: Least share of a box in a chip, in (0, 1].
            skip_empty: Whether to leave out training chips without boxes.
            augment: Whether to flip and turn training images.
            rotate: Share of the training images that are turned by any angle.

        Raises:
            ValueError: If a number is off.
        """
        super().__init__(OrientedChips, batch_size, num_workers)
        self.folders = {'train': train, 'val': val or test, 'test': test or val}
        self.classes, self.bands = tuple(classes), tuple(bands)
        self.patch_size, self.overlap, self.min_share = patch_size, overlap, min_share
        self.label_fraction, self.seed = label_fraction, seed
        self.skip_empty = skip_empty
        self.turns = RandomTurns(rotate) if augment else None
        self.statistics = self.value_range = _limits(self.bands, low, high)
        self.collate_fn = collate

    def setup(self, stage: str) -> None:
        """Find images, read labels and lay chips, each once.

        Args:
            stage: Either 'fit', 'validate', 'test' or 'predict'.

        Raises:
            ValueError: If images or labels cannot be used, with what to do.
        """
        if stage == 'fit' and self.train_dataset is None:
            pairs = self._pairs('train')
            labels = [read_dota(own, self.classes).labels for _, own in pairs]
            chosen = draw_fraction(labels, self.label_fraction, self.seed)
            pairs = [pairs[index] for index in chosen]
            chips = self._chips(pairs, self.skip_empty)
            if len(chips) < self.batch_size:
                raise ValueError(
                    f'{len(chips)} training chips of {len(pairs)} images are less than a batch of '
                    f'{self.batch_size}: lower batch_size=, raise label_fraction=, or set '
                    'skip_empty=False'
                )
            self.train_dataset = chips
        if stage in ('fit', 'validate') and self.val_dataset is None:
            self.val_dataset = self._chips(self._pairs('val'))
        if stage in ('test', 'predict') and self.test_dataset is None:
            self.test_dataset = self._chips(self._pairs('test'))
        self.predict_dataset = self.test_dataset

    def augment_batch(self, batch: Sample) -> Sample:
        """Rotate and flip images and boxes of training alike."""
        return batch if self.turns is None else self.turns(batch)

    def _pairs(self, split: str) -> list[Pair]:
        """Images of a split and their labels."""
        folder = self.folders[split]
        if folder is None:
            raise ValueError(
                f'{split}=None: give OrientedDataModule({split}=...) a folder with images and labelTxt'
            )
        return find_pairs(folder)

    def _chips(self, pairs: list[Pair], skip_empty: bool = False) -> OrientedChips:
        """Chips of images."""
        return OrientedChips(
            pairs, self.classes, self.patch_size, self.overlap, self.bands, self.min_share,
            skip_empty,
        )  # fmt: skip


class DOTADataModule(OrientedDataModule):
    """Chips of TorchGeo's DOTA, with rotated boxes.

    Batches are those of :class:`OrientedDataModule`. The labels of DOTA's own test images are not
    public: its validation images are both validated and tested on.
    """

    def __init__(
        self,
        root: str = 'data',
        version: Literal['1.0', '1.5', '2.0'] = '1.0',
        patch_size: int = 1024,
        overlap: int = 200,
        batch_size: int = 2,
        num_workers: int = 0,
        label_fraction: float = 1.0,
        seed: int = 0,
        min_share: float = 0.7,
        skip_empty: bool = True,
        augment: bool = True,
        rotate: float = 0.0,
        download: bool = False,
        checksum: bool = True,
    ) -> None:
        """Initialize a new DOTADataModule instance.

        Args:
            root: Folder of the dataset.
            version: '1.0' has 15 classes, '1.5' 16 and '2.0' 18; ``OrientedDetection`` counts the
                background too: num_classes is 16, 17 or 19.
            patch_size: Side of the chips in pixels.
            overlap: Of neighbouring chips, in pixels.
            batch_size: Chips of a batch.
            num_workers: Processes that load data, for each process that trains.
            label_fraction: Share of the training images to use, in (0, 1], see
                :func:`~cmid_geo.datasets.label_fraction.draw_fraction`.
            seed: Of the choice of images.
            min_share: Least share of a box in a chip, in (0, 1].
            skip_empty: Whether to leave out training chips without boxes.
            augment: Whether to flip and turn training images.
            rotate: Share of the training images that are turned by any angle.
            download: Whether to download the dataset where it is not there.
            checksum: Whether to check downloaded files.

        Raises:
            ValueError: If the version is not known, or a number is off.
        """
        if version not in CLASSES:
            raise ValueError(
                f'version={version!r} is not known: choose of {list(CLASSES)}'
            )
        super().__init__(
            classes=DOTA.classes[: CLASSES[version]], patch_size=patch_size, overlap=overlap,
            batch_size=batch_size, num_workers=num_workers, label_fraction=label_fraction,
            seed=seed, min_share=min_share, skip_empty=skip_empty, augment=augment,
            rotate=rotate,
        )  # fmt: skip
        self.root, self.version = root, version
        self.options: dict[str, Any] = {'download': download, 'checksum': checksum}

    def prepare_data(self) -> None:
        """Download and check the dataset, where it shall be."""
        if self.options['download']:
            for split in ('train', 'val'):
                self._dota(split)

    def _pairs(self, split: str) -> list[Pair]:
        """Images of a split and their labels."""
        table = self._dota('train' if split == 'train' else 'val').sample_df
        root = Path(self.root)
        return [
            (root / image, root / labels)
            for image, labels in zip(table['image_path'], table['annotation_path'])
        ]

    def _dota(self, split: Any) -> DOTA:
        """TorchGeo's dataset, which finds, checks and downloads the files."""
        version: Any = self.version
        return DOTA(self.root, split, version, 'oriented', **self.options)


def collate(samples: list[Sample]) -> dict[str, Any]:
    """Make a batch: what has one shape is stacked, boxes and labels are listed.

    Args:
        samples: See :class:`~cmid_geo.datasets.dota.OrientedChips`.

    Returns:
        The batch.
    """
    listed = ('bbox', 'label', 'difficult')
    return {
        key: [each[key] for each in samples]
        if key in listed
        else torch.stack([each[key] for each in samples])
        for key in samples[0]
    }


def _limits(
    bands: Sequence[int], low: float | Sequence[float], high: float | Sequence[float]
) -> ValueRange:
    """Raw values that become 0 and 1, one a band."""
    pair = [
        tuple(np.broadcast_to(np.asarray(value, float), len(bands)).tolist())
        if np.ndim(value) == 0 or np.size(value) == len(bands)
        else ()
        for value in (low, high)
    ]
    if not all(pair) or not all(a < b for a, b in zip(*pair)):
        raise ValueError(
            f'low={low} and high={high} for {len(bands)} bands: give one number or one a band, low < high'
        )
    ones = (1.0,) * len(bands)
    return ValueRange(tuple(bands), pair[0], pair[1], (0.0,) * len(bands), ones)
