# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Batches of labelled images from folders, one folder a class."""

from pathlib import Path

import torch.nn.functional as F
from torch.utils.data import DataLoader, Subset
from torchgeo.datamodules import NonGeoDataModule
from torchgeo.datasets.utils import Sample

from ..datasets.image_folder import ImageFolders
from ..datasets.label_fraction import draw_fraction
from ..ops.value_range import ValueRange
from ..transforms.segmentation import LabelledAugmentation
from .base import ScaledDataModule


class ImageFolderDataModule(ScaledDataModule, NonGeoDataModule):
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
        self.val_fraction, self.label_fraction = val_fraction, label_fraction
        self.augmentation = LabelledAugmentation(size, scale) if augment else None
        # By these a task learns which raw values are 0 and 1, in all bands
        self.statistics = ValueRange((), (low,), (high,), (0.0,), (1.0,))
        self.value_range = self.statistics
        self.classes: list[str] | None = None

    def setup(self, stage: str) -> None:
        """Find the images.

        Args:
            stage: Either 'fit', 'validate', 'test' or 'predict'.

        Raises:
            DatasetNotFoundError: If there is no image.
            ValueError: If the folders do not hold the same classes, or a share is out of range.
        """
        train = ImageFolders(self.root / 'train', transforms=self.resize)
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

    def resize(self, sample: Sample) -> Sample:
        """Bring the image of a sample to one size."""
        size, image = (self.size, self.size), sample['image']
        if image.shape[1:] == size:
            return sample
        resized = F.interpolate(image[None], size, mode='bilinear', antialias=True)[0]
        return sample | {'image': resized}

    def augment_batch(self, batch: Sample) -> Sample:
        """Augment images of training."""
        if self.augmentation is None:
            return batch
        return batch | {'image': self.augmentation(batch['image'])[0]}

    def _same(self, train: ImageFolders, split: str) -> ImageFolders:
        """Open another split, and refuse one of other classes: its labels would be others."""
        found = ImageFolders(self.root / split, transforms=self.resize)
        if found.classes != train.classes:
            differ = sorted(set(found.classes) ^ set(train.classes))
            raise ValueError(
                f'{split} and train do not hold the same classes ({", ".join(differ[:5])}): give each '
                'class a folder with an image in both'
            )
        return found

    def _dataloader_factory(self, split: str) -> DataLoader[Sample]:
        """Make a loader; few labels may be fewer than a batch, and are trained on all the same."""
        dataset = self._valid_attribute(f'{split}_dataset')
        whole = len(dataset) >= self.batch_size
        return self.make_loader(dataset, split, whole, shuffle=split == 'train')
