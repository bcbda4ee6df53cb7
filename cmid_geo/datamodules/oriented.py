# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Batches of chips with rotated boxes, of DOTA or of folders like it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from torchgeo.datamodules import NonGeoDataModule
from torchgeo.datasets import DOTA
from torchgeo.datasets.utils import Sample

from ..datasets.dota import OrientedChips, Pair, find_pairs, read_dota
from ..datasets.label_fraction import check_fraction, draw_fraction
from ..datasets.statistics import state_range
from ..transforms.oriented import RandomTurns
from .base import ScaledDataModule, collate_boxes

#: Number of classes of each version of DOTA, without the background.
CLASSES = {'1.0': 15, '1.5': 16, '2.0': 18}


class OrientedDataModule(ScaledDataModule, NonGeoDataModule):
    """Chips with rotated boxes of folders in DOTA's layout, scaled to [0, 1] on the device.

    A folder holds ``images`` and ``labelTxt``. Batches hold ``image`` (B, C, H, W) float32 in
    [0, 1], lists ``bbox``, ``label`` and ``difficult`` with an entry an image, and ``index`` and
    ``window``; see :class:`~cmid_geo.datasets.dota.OrientedChips`, which also tells which boxes
    belong to a chip. An image of one band stands for all *bands*. Training images are rotated by
    quarter turns and flipped; few labels are whole images.

    Attributes:
        classes: Names of the classes; the first has label 1.
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
        low: float | Sequence[float | int] = 0.0,
        high: float | Sequence[float | int] = 255.0,
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
            patch_size: Side of the chips in pixels, a multiple of 32 for most networks.
            overlap: Of neighbouring chips, in pixels.
            batch_size: Samples in a batch of training, in each process.
            num_workers: Processes that load data, for each process that trains.
            bands: Bands in the order wanted: positions from 1 or, of scenes, names; where None, all.
            low: Raw value, or one a band, that becomes 0; where None, 0 for uint8, else the training data's 2nd percentile.
            high: Raw value, or one a band, that becomes 1; where None, 255 for uint8, else the training data's 98th percentile.
            label_fraction: Fraction of the training labels to learn from, in (0, 1], of each class alike.
            seed: Seed of all that is drawn; where None, ``torch.initial_seed()``, which ``seed_everything`` sets.
            min_share: Least fraction of a box in a chip, in (0, 1].
            skip_empty: Whether to leave out training chips without boxes.
            augment: Whether to augment training batches on the device.
            rotate: Fraction of the training images that are rotated by any angle.

        Raises:
            ValueError: If a number is off.
        """
        super().__init__(OrientedChips, batch_size, num_workers)
        self._learn(state_range(low, high, bands))
        self.folders = {'train': train, 'val': val or test, 'test': test or val}
        self.classes, self.bands = tuple(classes), tuple(bands)
        self.patch_size, self.overlap, self.min_share = patch_size, overlap, min_share
        self.label_fraction, self.seed = check_fraction(label_fraction), seed
        self.skip_empty = skip_empty
        self.augmentation = RandomTurns(rotate) if augment else None
        self.collate_fn = collate_boxes

    def setup(self, stage: str) -> None:
        """Find images, read labels and lay chips, each once.

        Args:
            stage: Either 'fit', 'validate', 'test' or 'predict'.

        Raises:
            ValueError: If images or labels cannot be used, with what to do.
        """
        self._begin(stage)
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
        """Rotate and flip a batch of training.

        Args:
            batch: With images in [0, 1].

        Returns:
            The batch with its images and boxes altered alike.
        """
        return batch if self.augmentation is None else self.augmentation(batch)

    def _pairs(self, split: str) -> list[Pair]:
        """Images of a split and their labels."""
        folder = self.folders[split]
        return self._refuse(split) if folder is None else find_pairs(folder)

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
            patch_size: Side of the chips in pixels, a multiple of 32 for most networks.
            overlap: Of neighbouring chips, in pixels.
            batch_size: Samples in a batch of training, in each process.
            num_workers: Processes that load data, for each process that trains.
            label_fraction: Fraction of the training labels to learn from, in (0, 1], of each class alike.
            seed: Seed of all that is drawn; where None, ``torch.initial_seed()``, which ``seed_everything`` sets.
            min_share: Least fraction of a box in a chip, in (0, 1].
            skip_empty: Whether to leave out training chips without boxes.
            augment: Whether to augment training batches on the device.
            rotate: Fraction of the training images that are rotated by any angle.
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
        root, paths = Path(self.root), table[['image_path', 'annotation_path']].values
        return [(root / image, root / labels) for image, labels in paths]

    def _dota(self, split: Any) -> DOTA:
        """TorchGeo's dataset, which finds, checks and downloads the files."""
        version: Any = self.version
        return DOTA(self.root, split, version, 'oriented', **self.options)
