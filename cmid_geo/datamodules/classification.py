# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Batches of labelled images from folders, one folder a class."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from torchgeo.datamodules import NonGeoDataModule
from torchgeo.datasets.utils import Sample

from ..datasets.image_folder import ImageFolders
from ..datasets.label_fraction import draw_fraction
from ..datasets.statistics import BandStatistics
from ..transforms.segmentation import LabelledAugmentation


class ImageFolderDataModule(NonGeoDataModule):
    """Images of ``root/train/<class>/`` and, where they are, ``root/val`` and ``root/test``.

    Batches hold ``image`` (B, C, size, size) float32 in [0, 1] and ``label`` (B) int64. Without a
    folder ``val`` a tenth of the training images, drawn by *seed* from each class, validates.
    """

    def __init__(
        self,
        root: str,
        size: int = 224,
        batch_size: int = 64,
        num_workers: int = 0,
        low: float = 0.0,
        high: float = 255.0,
        val_fraction: float = 0.1,
        label_fraction: float = 1.0,
        augment: bool = True,
        scale: tuple[float, float] | None = (0.25, 1.0),
        seed: int = 0,
    ) -> None:
        """Initialize a new ImageFolderDataModule instance.

        Args:
            root: Folder of ``train``, and of ``val`` and ``test`` where there are.
            size: Side that images are brought to, in pixels, a multiple of 32 for most networks.
            batch_size: Images in a batch, in each process.
            num_workers: Processes that load data, for each process that trains.
            low: Raw value that becomes 0.
            high: Raw value that becomes 1.
            val_fraction: Share of the training images that validates where there is no ``val``.
            label_fraction: Share of the other training images to learn from, of each class alike,
                in (0, 1].
            augment: Whether to flip, turn, enlarge and brighten training images.
            scale: Share of an image's area that is enlarged to all of it; None for all.
            seed: Of the shares.

        Raises:
            ValueError: If *high* is not above *low*.
        """
        super().__init__(ImageFolders, batch_size, num_workers)
        if high <= low:
            raise ValueError(
                f'low={low} and high={high}: the raw value that becomes 1 must be above that which '
                'becomes 0'
            )
        self.root, self.size, self.seed = Path(root), size, seed
        self.low, self.high = low, high
        self.val_fraction, self.label_fraction = val_fraction, label_fraction
        self.augmentation = LabelledAugmentation(size, scale) if augment else None
        # By these a task learns which raw values are 0 and 1, in all bands
        self.statistics = BandStatistics(('all',), (low,), (high,), (0.0,), (1.0,))
        self.classes: list[str] | None = None

    def setup(self, stage: str) -> None:
        """Find the images.

        Args:
            stage: Either 'fit', 'validate', 'test' or 'predict'.

        Raises:
            DatasetNotFoundError: If there is no image.
            ValueError: If the folders do not hold the same classes, or a share is out of range.
        """
        train = ImageFolders(self.root / 'train')
        self.classes = train.classes
        everything = set(range(len(train)))
        if (self.root / 'val').is_dir():
            held: set[int] = set()
            self.val_dataset = self._same(train, 'val')
        else:
            held = set(draw_fraction(train.labels, self.val_fraction, self.seed))
            self.val_dataset = Subset(train, sorted(held))
        rest = sorted(everything - held)
        drawn = draw_fraction(train.labels[rest], self.label_fraction, self.seed)
        self.train_dataset = Subset(train, [rest[index] for index in drawn])
        if stage in ('test', 'predict'):
            self.test_dataset = self.predict_dataset = self._same(train, 'test')

    def on_after_batch_transfer(self, batch: Sample, dataloader_idx: int) -> Sample:
        """Scale a batch on its device and, in training, augment it.

        Args:
            batch: A batch of raw images.
            dataloader_idx: Not used.

        Returns:
            The batch in [0, 1].
        """
        image = ((batch['image'] - self.low) / (self.high - self.low)).clamp(0, 1)
        if self.augmentation is not None and self.trainer and self.trainer.training:
            image = self.augmentation(image)[0]
        return batch | {'image': image}

    def _same(self, train: ImageFolders, split: str) -> ImageFolders:
        """Open another split, and refuse one of other classes: its labels would be others."""
        found = ImageFolders(self.root / split)
        if found.classes != train.classes:
            differ = sorted(set(found.classes) ^ set(train.classes))
            raise ValueError(
                f'{split} and train do not hold the same classes ({", ".join(differ[:5])}): give each '
                'class a folder with an image in both'
            )
        return found

    def _dataloader_factory(self, split: str) -> DataLoader[Sample]:
        """Make a loader that brings images to one size."""
        images = Resized(self._valid_attribute(f'{split}_dataset'), self.size)
        return DataLoader(
            dataset=images,
            batch_size=self.batch_size,
            shuffle=split == 'train',
            num_workers=self.num_workers,
            drop_last=split == 'train' and len(images) >= self.batch_size,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )


class Resized(Dataset):
    """Images of a data set, all of one size."""

    def __init__(self, dataset: Any, size: int) -> None:
        """Initialize a new Resized instance.

        Args:
            dataset: With ``image`` (C, H, W) in its samples.
            size: Side in pixels.
        """
        self.dataset, self.size = dataset, size

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Read a sample and resize its image.

        Args:
            index: Of the sample.

        Returns:
            The sample.
        """
        sample = self.dataset[index]
        image = sample['image']
        if image.shape[1:] != (self.size, self.size):
            image = F.interpolate(
                image[None], (self.size, self.size), mode='bilinear', antialias=True
            )[0]
        return sample | {'image': image}
