# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Batches of images with boxes, from folders and COCO's JSON files."""

from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader, Subset
from torchgeo.datamodules import NonGeoDataModule
from torchgeo.datamodules.utils import collate_fn_detection
from torchgeo.datasets.utils import Sample

from ..datasets.coco import CocoDetection, estimate_images
from ..datasets.label_fraction import draw_fraction
from ..transforms.detection import BoxAugmentation
from .base import ScaledDataModule, check_fraction


class CocoDataModule(ScaledDataModule, NonGeoDataModule):
    """Images with boxes, scaled to [0, 1] and in training altered on the device.

    Batches hold ``image`` (B, C, H, W) float32 in [0, 1], and lists over the images of
    ``bbox_xyxy`` (N, 4) in pixels and ``label`` (N), 1 for the first class. Folders lie as
    ``root/train`` with ``root/train.json`` by default; COCO's own layout is
    ``images='{split}2017', annotations='annotations/instances_{split}2017.json'``.

    Attributes:
        classes: Names of the classes, 'background' first, once set up.
        statistics: Range and spread of the bands, once set up.
        limits: Raw values to scale by instead of the statistics', set by a trained task. None
            after ``setup('fit')``.
    """

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
            batch_size: Images in a batch, in each process.
            num_workers: Processes that load data, for each process that trains.
            train: Name of the images to train on.
            val: Name of those to validate on; by default a part of those to train on.
            test: Name of those to test and predict on; None if there are none.
            images: Folder of a split in *root*.
            annotations: JSON of a split in *root*.
            bands: Positions of the bands, from 1; by default all, without
                alpha but in GeoTIFFs.
            low: Raw value, or one a band, that becomes 0.
            high: Raw value, or one a band, that becomes 1. By default 0 and 255 for uint8, else
                the 2nd and 98th percentiles of the training images.
            val_fraction: Share of the images to train on that is held out without *val*, in
                (0, 1); each class keeps its share.
            label_fraction: Share of the remaining images to train on, in (0, 1]: for trials with
                few labels. Each class keeps its share.
            seed: Of both draws.
            flips: See :class:`~cmid_geo.transforms.detection.BoxAugmentation`, as all that follow.
            turns: Likewise.
            scale: Likewise.
            contrast: Likewise.
            brightness: Likewise.

        Raises:
            ValueError: If a number is out of range.
        """
        super().__init__(CocoDetection, batch_size, num_workers, size=size, bands=bands)
        if not 0 < val_fraction < 1:
            raise ValueError(
                f'val_fraction={val_fraction} is a share of the images: give one between 0 and 1'
            )
        check_fraction('label_fraction', label_fraction)
        if (low is None) != (high is None):
            raise ValueError(
                f'low={low} and high={high}: a range needs both; give the other as well, or neither'
            )
        self.root, self.images, self.annotations = root, images, annotations
        self.train, self.val, self.test = train, val, test
        self.low, self.high = low, high
        self.val_fraction, self.label_fraction = val_fraction, label_fraction
        self.seed = seed
        self.augmentation = BoxAugmentation(flips, turns, scale, contrast, brightness)
        self.collate_fn = collate_alike
        self._whole: Any = None
        self.classes: tuple[str, ...] | None = None

    def setup(self, stage: str) -> None:
        """Open the folders and estimate the statistics, each once.

        Args:
            stage: Either 'fit', 'validate', 'test' or 'predict'.

        Raises:
            ValueError: If the data cannot be used, with what to do.
        """
        if stage == 'fit':
            self.value_range = self.statistics
        if self.statistics is None:
            self._open_train()
        if stage in ('test', 'predict') and self.test_dataset is None:
            if self.test is None:
                raise ValueError(
                    'test=None: there is nothing to test or predict on; give the name of a split'
                )
            self.test_dataset = self.predict_dataset = self._open(self.test)

    def augment_batch(self, batch: Sample) -> Sample:
        """Augment images and boxes of training alike."""
        names = ('image', 'bbox_xyxy', 'label')
        done = self.augmentation(*(batch[name] for name in names))
        return batch | dict(zip(names, done, strict=True))

    def plot(self, *args: Any, **kwargs: Any) -> Any:
        """Draw a sample with its boxes.

        Args:
            *args: Of :meth:`~cmid_geo.datasets.coco.CocoDetection.plot`.
            **kwargs: Likewise.

        Returns:
            The figure.
        """
        return self._whole.plot(*args, **kwargs)

    def _open(self, split: str) -> CocoDetection:
        """Open a split as the training images are."""
        folder, file = (
            Path(self.root) / pattern.format(split=split)
            for pattern in (self.images, self.annotations)
        )
        dataset = CocoDetection(folder, file, classes=self.classes, **self.kwargs)
        self.classes = dataset.classes
        if self.statistics is not None:
            # Not data becomes 0
            dataset.fill = self.statistics.low
        return dataset

    def _open_train(self) -> None:
        """Open the images to train and validate on, and see what they are like."""
        self._whole = whole = self._open(self.train)
        counts, places = whole.counts(), np.arange(len(whole))
        held: Any = None
        if self.val is None:
            held = draw_fraction(whole.labels, self.val_fraction, self.seed)
            places = np.setdiff1d(places, held)
            if not len(places):
                raise ValueError(
                    f'val_fraction={self.val_fraction} of {len(whole)} images leaves none to train on: '
                    'lower it, or give val='
                )
        drawn = draw_fraction(
            [whole.labels[i] for i in places], self.label_fraction, self.seed
        )
        places = places[drawn]
        self.statistics = self.value_range = estimate_images(
            whole, places.tolist(), self.low, self.high, self.seed
        )
        whole.fill = self.statistics.low
        self.train_dataset = Subset(whole, places.tolist())
        self.val_dataset = (
            Subset(whole, held) if self.val is None else self._open(self.val)
        )
        boxes = dict(zip(whole.classes[1:], counts[places].sum(0).tolist()))
        rank_zero_info(f'{len(places)} images to train on, with boxes: {boxes}')

    def _dataloader_factory(self, split: str) -> DataLoader[Sample]:
        """Make a loader; few labels may be fewer than a batch, and are trained on all the same."""
        dataset = self._valid_attribute(f'{split}_dataset', 'dataset')
        whole = len(dataset) >= self.batch_size
        return self.make_loader(dataset, split, whole, shuffle=split == 'train')


def collate_alike(samples: list[Sample]) -> Any:
    """Make a batch of images that are of one size.

    Args:
        samples: With ``image``, ``bbox_xyxy`` and ``label``.

    Returns:
        The images in one tensor, boxes and labels in lists.

    Raises:
        ValueError: If sizes or bands differ.
    """
    shapes = sorted({tuple(sample['image'].shape) for sample in samples})
    if len(shapes) > 1:
        raise ValueError(
            f'images of (bands, height, width) {shapes[0]} and {shapes[1]} are in one batch: bring them '
            'to one size by size=, and choose bands that all have by bands='
        )
    return collate_fn_detection(samples)
