# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Batches of images with boxes, from folders and COCO's JSON files."""

from pathlib import Path

from torch.utils.data import Subset
from torchgeo.datamodules import NonGeoDataModule

from ..datasets.coco import CocoDetection, estimate_images
from ..datasets.label_fraction import check_fraction, hold_out
from ..transforms.detection import BoxAugmentation
from .base import ScaledDataModule, collate_boxes, show


class CocoDataModule(ScaledDataModule, NonGeoDataModule):
    """Images with boxes, scaled to [0, 1] and in training augmented on the device.

    Batches hold ``image`` (B, C, H, W) float32 in [0, 1], and lists over the images of
    ``bbox_xyxy`` (N, 4) in pixels and ``label`` (N), 1 for the first class. Folders lie as
    ``root/train`` with ``root/train.json`` by default; COCO's own layout is
    ``images='{split}2017', annotations='annotations/instances_{split}2017.json'``. All bands are
    read by default, without alpha but in GeoTIFFs.

    Attributes:
        classes: Names of the classes, 'background' first, once set up.
    """

    augmented = ('image', 'bbox_xyxy', 'label')

    def __init__(
        self,
        root: str,
        size: int | None = 640,
        batch_size: int = 2,
        num_workers: int = 0,
        train: str = 'train',
        val: str | None = None,
        test: str | None = 'test',
        images: str = '{split}',
        annotations: str = '{split}.json',
        bands: list[int] | None = None,
        low: float | list[float | int] | None = None,
        high: float | list[float | int] | None = None,
        val_fraction: float = 0.1,
        label_fraction: float = 1.0,
        seed: int = 0,
        flips: bool = True,
        turns: bool = True,
        scale: tuple[float, float] = (1.0, 1.0),
        contrast: float = 0.2,
        brightness: float = 0.2,
    ) -> None:
        """Initialize a new CocoDataModule instance.

        Args:
            root: Folder of the data set.
            size: Side in pixels: images are scaled so that their longer side has it, and filled
                up to squares. None where all are of one size already.
            batch_size: Samples in a batch of training, in each process.
            num_workers: Processes that load data, for each process that trains.
            train: Name of the images to train on.
            val: Name of those to validate on; by default a part of those to train on.
            test: Name of those to test and predict on; None if there are none.
            images: Folder of a split in *root*.
            annotations: JSON of a split in *root*.
            bands: Bands in the order wanted: positions from 1 or, of scenes, names; where None, all.
            low: Raw value, or one a band, that becomes 0; where None, 0 for uint8, else the training data's 2nd percentile.
            high: Raw value, or one a band, that becomes 1; where None, 255 for uint8, else the training data's 98th percentile.
            val_fraction: Fraction of the training images that is held out, where there are none to validate on, in
                (0, 1), of each class alike.
            label_fraction: Fraction of the training labels to learn from, in (0, 1], of each class alike.
            seed: Seed of all that is drawn; where None, ``torch.initial_seed()``, which ``seed_everything`` sets.
            flips: Whether to flip half of the training images; with *turns* in all directions.
            turns: Whether to rotate training images by quarter turns; those that are not square make
                half turns only.
            scale: Smallest and largest size of what training images show, by its size before. What
                is beyond an image is cut off, what is missing is 0.
            contrast: Largest relative change of contrast in training, in [0, 1].
            brightness: Largest relative change of brightness in training, in [0, 1].

        Raises:
            ValueError: If a number is out of range.
        """
        super().__init__(CocoDetection, batch_size, num_workers, size=size, bands=bands)
        self.root, self.images, self.annotations = Path(root), images, annotations
        self.train, self.val, self.test = train, val, test
        self.low, self.high = low, high
        self.val_fraction = check_fraction(val_fraction, 'val_fraction', False)
        self.label_fraction = check_fraction(label_fraction)
        self.seed = seed
        self.augmentation = BoxAugmentation(flips, turns, scale, contrast, brightness)
        self.collate_fn = collate_boxes
        self.classes: tuple[str, ...] | None = None

    def setup(self, stage: str) -> None:
        """Open the folders and estimate the statistics, each once.

        Args:
            stage: Either 'fit', 'validate', 'test' or 'predict'.

        Raises:
            ValueError: If the data cannot be used, with what to do.
        """
        self._begin(stage)
        if self.dataset is None:
            self._open_train()
        if stage in ('test', 'predict') and self.test_dataset is None:
            if self.test is None:
                self._refuse('test')
            self.test_dataset = self.predict_dataset = self._open(self.test)

    def _open(self, split: str) -> CocoDetection:
        """Open a split as the training images are."""
        folder = self.root / self.images.format(split=split)
        file = self.root / self.annotations.format(split=split)
        dataset = CocoDetection(folder, file, classes=self.classes, **self.kwargs)
        self.classes = dataset.classes
        if self.statistics is not None:
            # Not data becomes 0
            dataset.fill = self.statistics.low
        return dataset

    def _open_train(self) -> None:
        """Open the images to train and validate on, and see what they are like."""
        whole = self._open(self.train)
        fraction = self.val_fraction if self.val is None else None
        drawn, held = hold_out(whole.labels, fraction, self.label_fraction, self.seed)
        found = estimate_images(whole, drawn, self.low, self.high, self.seed)
        self._learn(found)
        self.dataset, whole.fill = whole, found.low
        self.train_dataset = Subset(whole, drawn)
        kept = self.val is None
        self.val_dataset = Subset(whole, held) if kept else self._open(self.val)
        boxes = dict(zip(whole.classes[1:], whole.counts()[drawn].sum(0).tolist()))
        show(f'{len(drawn)} images to train on, with boxes: {boxes}')
