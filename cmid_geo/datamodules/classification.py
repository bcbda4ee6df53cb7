# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Batches of labelled images from folders, one folder a class."""

import functools
from pathlib import Path

from torch.utils.data import Subset
from torchgeo.datamodules import NonGeoDataModule
from torchgeo.datasets.utils import Sample
from torchvision.transforms.v2 import functional as transforms

from ..datasets.image_folder import ImageFolders
from ..datasets.label_fraction import check_fraction, hold_out
from ..datasets.statistics import state_range
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
        low: float | list[float | int] = 0.0,
        high: float | list[float | int] = 255.0,
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
            batch_size: Samples in a batch of training, in each process.
            num_workers: Processes that load data, for each process that trains.
            low: Raw value, or one a band, that becomes 0; where None, 0 for uint8, else the training data's 2nd percentile.
            high: Raw value, or one a band, that becomes 1; where None, 255 for uint8, else the training data's 98th percentile.
            val_fraction: Fraction of the training images that is held out, where there are none to validate on, in
                (0, 1), of each class alike.
            label_fraction: Fraction of the training labels to learn from, in (0, 1], of each class alike.
            augment: Whether to augment training batches on the device.
            scale: Smallest and largest area of a training crop, as fractions of the image's, enlarged to all of
                it; None for whole images.
            seed: Seed of all that is drawn; where None, ``torch.initial_seed()``, which ``seed_everything`` sets.

        Raises:
            ValueError: If *high* is not above *low*, or a fraction is out of range.
        """
        super().__init__(ImageFolders, batch_size, num_workers)
        self._learn(state_range(low, high))
        self.root, self.size, self.seed = Path(root), size, seed
        self.val_fraction = check_fraction(val_fraction, 'val_fraction', False)
        self.label_fraction = check_fraction(label_fraction)
        self.augmentation = LabelledAugmentation(size, scale) if augment else None
        self.classes: list[str] | None = None

    def setup(self, stage: str) -> None:
        """Find the images.

        Args:
            stage: Either 'fit', 'validate', 'test' or 'predict'.

        Raises:
            DatasetNotFoundError: If there is no image.
            ValueError: If the folders do not hold the same classes.
        """
        self._begin(stage)
        train = self._open('train')
        fraction = None if (self.root / 'val').is_dir() else self.val_fraction
        drawn, held = hold_out(train.labels, fraction, self.label_fraction, self.seed)
        self.train_dataset = Subset(train, drawn)
        self.val_dataset = Subset(train, held) if held else self._open('val')
        if stage in ('test', 'predict'):
            self.test_dataset = self.predict_dataset = self._open('test')

    def _open(self, split: str) -> ImageFolders:
        """Open a split, and refuse one of other classes: its labels would be others."""
        resize = functools.partial(resize_image, size=self.size)
        found = ImageFolders(self.root / split, resize)
        if split == 'train':
            self.classes = found.classes
        differ = sorted({*found.classes} ^ {*(self.classes or ())})
        if differ:
            raise ValueError(
                f'{split} and train do not hold the same classes ({", ".join(differ[:5])}): give each '
                'class a folder with an image in both'
            )
        return found


def resize_image(sample: Sample, size: int) -> Sample:
    """Resize the image of a sample.

    Args:
        sample: With ``image`` (C, H, W).
        size: Side in pixels.

    Returns:
        The sample with ``image`` (C, size, size).
    """
    return sample | {'image': transforms.resize(sample['image'], [size, size])}
