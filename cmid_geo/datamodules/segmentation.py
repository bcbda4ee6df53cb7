# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Chips of scenes with masks, from folders of GeoTIFFs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from torchgeo.datasets.utils import Sample

from ..datasets import Chip, RandomChips, SceneDataset
from ..datasets.label_fraction import draw_fraction
from ..datasets.masks import LabelledScenes, MaskDataset
from ..datasets.samplers import ListedChips, windows
from ..transforms.segmentation import LabelledAugmentation
from .scenes import SceneDataModule


class SegmentationDataModule(SceneDataModule):
    """Scenes and masks, both georeferenced rasters, as chips in [0, 1] with their classes.

    Batches hold ``image`` (B, C, H, W) float32 in [0, 1], ``valid`` (B, H, W) bool and ``mask``
    (B, H, W) int64, *ignore_index* where nothing is labelled. Training draws random windows over the
    labelled ground of all masks, flips, turns and enlarges them; validation and test cover
    theirs once, window by window. Images and masks need not share a grid or be cut alike: masks are
    laid on the images' CRS and resolution by the nearest pixel.
    """

    def __init__(
        self,
        images: str | list[str],
        masks: str | list[str],
        val_images: str | list[str] | None = None,
        val_masks: str | list[str] | None = None,
        test_images: str | list[str] | None = None,
        test_masks: str | list[str] | None = None,
        patch_size: int = 256,
        length: int = 1000,
        batch_size: int = 8,
        num_workers: int = 0,
        bands: list[int | str] | None = None,
        low: float | list[float | int] | None = None,
        high: float | list[float | int] | None = None,
        ignore_index: int = 255,
        label_fraction: float = 1.0,
        augment: bool = True,
        scale: tuple[float, float] | None = (0.25, 1.0),
        min_valid: float = 0.25,
        seed: int = 0,
        crs: str | None = None,
        res: float | tuple[float, float] | None = None,
        zero_is_nodata: bool = False,
        nodata: float | None = None,
        file_crs: str | None = None,
    ) -> None:
        """Initialize a new SegmentationDataModule instance.

        Args:
            images: A folder (searched recursively), a glob, a file, a URL, or several of these.
            masks: Likewise, with the class of each pixel in the first band.
            val_images: To validate on; without, there is no validation.
            val_masks: To validate on.
            test_images: To test on.
            test_masks: To test on.
            patch_size: Side of a chip in pixels, a multiple of 32 for the tasks.
            length: Chips in a training epoch, over all processes.
            batch_size: Chips in a batch, in each process.
            num_workers: Processes that load data, for each process that trains.
            bands: Bands by name or position from 1; all by default.
            low: Raw value, or one a band, that becomes 0.
            high: Raw value, or one a band, that becomes 1. By default 0 and 255 for uint8, else
                the 2nd and 98th percentiles.
            ignore_index: Label of what has none; tell it to the task as well.
            label_fraction: Share of the training masks to learn from, in (0, 1]. Below 1 the scenes
                are divided into chips, of which this share is drawn, of each class alike.
            augment: Whether to augment training chips on the device.
            scale: Share of a chip's area that is enlarged to all of it; None for all.
            min_valid: Least share of a training chip that must have a label, in [0, 1].
            seed: Of the chips and of *label_fraction*.
            crs: Coordinate reference system, such as EPSG:32633; the first image's by default.
            res: Pixel size in units of *crs*; the first image's by default.
            zero_is_nodata: Whether pixels with 0 in all bands are invalid even if no file says so.
            nodata: Fill value that files do not declare, such as 255 around a scene: pixels that have
                it in all bands are invalid. Files that declare one keep theirs.
            file_crs: The CRS of files that state none, such as EPSG:32633.

        Raises:
            ValueError: If an epoch is shorter than a batch, or masks come without images.
        """
        super().__init__(
            images,
            patch_size,
            length,
            batch_size,
            num_workers,
            bands=bands,
            low=low,
            high=high,
            min_valid=min_valid,
            seed=seed,
            crs=crs,
            res=res,
            zero_is_nodata=zero_is_nodata,
            nodata=nodata,
            file_crs=file_crs,
        )
        self.held = {'val': (val_images, val_masks), 'test': (test_images, test_masks)}
        for split, (held_images, held_masks) in self.held.items():
            if (held_images is None) != (held_masks is None):
                raise ValueError(
                    f'{split}_images={held_images!r} but {split}_masks={held_masks!r}: give both, or none'
                )
        self.masks, self.ignore_index = masks, ignore_index
        self.label_fraction = label_fraction
        self.augmentation = LabelledAugmentation(patch_size, scale) if augment else None

    def setup(self, stage: str) -> None:
        """Open scenes and masks and choose the chips, each once.

        Args:
            stage: Either 'fit', 'validate', 'test' or 'predict'.

        Raises:
            ValueError: If the scenes cannot be used, with what to do.
        """
        if stage == 'predict':
            super().setup(stage)
            return
        self._check_length(self.trainer.world_size if self.trainer else 1)
        scenes = self._open()
        if stage == 'fit':
            self.value_range = self.statistics
        if stage == 'fit' and self.train_sampler is None:
            labelled = LabelledScenes(scenes, self._open_masks(self.masks, scenes))
            self.train_dataset = labelled
            self.train_sampler = self._training_chips(labelled)
        for split, stages in (('val', ('fit', 'validate')), ('test', ('test',))):
            paths, masks = self.held[split]
            known = getattr(self, f'{split}_sampler', None) is not None
            if stage not in stages or paths is None or known:
                continue
            held = self._open_held(f'{split}_images', paths, scenes)
            labelled = LabelledScenes(held, self._open_masks(masks, held))
            setattr(self, f'{split}_dataset', labelled)
            setattr(self, f'{split}_sampler', windows(labelled.masks, self.chip_size))

    def val_dataloader(self) -> Any:
        """Return the validation batches; of a fit none where nothing is held out.

        Raises:
            ValueError: If nothing is held out, and validation is all that is wanted.
        """
        alone = self.trainer is not None and self.trainer.state.fn == 'validate'
        held = self.held['val'][0] is not None
        return super().val_dataloader() if held or alone else []

    def augment_batch(self, batch: Sample) -> Sample:
        """Augment chips and masks of training alike."""
        if self.augmentation is None:
            return batch
        names = ('image', 'mask', 'valid')
        done = self.augmentation(*(batch[name] for name in names))
        return batch | dict(zip(names, done, strict=True))

    def _open_masks(self, paths: Any, scenes: SceneDataset) -> MaskDataset:
        return MaskDataset(
            paths, self.ignore_index, crs=scenes.crs, res=scenes.res,
            file_crs=self.kwargs['file_crs'],
        )  # fmt: skip

    def _training_chips(self, labelled: LabelledScenes) -> Any:
        """Random windows, or draws from the few that are labelled."""
        masks, size, length = labelled.masks, self.chip_size, self.epoch_length
        if self.label_fraction == 1:
            return RandomChips(
                masks, size, length, min_valid=self.min_valid, seed=self.seed
            )
        chips = windows(masks, size)
        counts = count_classes(labelled.masks, chips)
        some = counts.sum(1) >= max(1, self.min_valid * size * size)
        chips = [chip for chip, use in zip(chips, some, strict=True) if use]
        drawn = draw_fraction(
            [np.flatnonzero(row) for row in counts[some]],
            self.label_fraction,
            self.seed or 0,
        )
        print(f'{len(drawn)} of {len(chips)} labelled chips are learned from')
        return ListedChips([chips[i] for i in drawn], length, self.seed or 0)

    def _dataloader_factory(self, split: str) -> DataLoader[Sample]:
        if split != 'predict' and getattr(self, f'{split}_sampler', None) is None:
            verb = {'val': 'validate'}.get(split, split)
            raise ValueError(
                f'there is nothing to {verb} on: give SegmentationDataModule({split}_images=..., '
                f'{split}_masks=...)'
            )
        return super()._dataloader_factory(split)


def count_classes(masks: MaskDataset, chips: Sequence[Chip]) -> np.ndarray:
    """Count the labelled pixels of each class in chips.

    Args:
        masks: Where the chips lie.
        chips: Windows.

    Returns:
        Counts (chips, classes).
    """
    found = []
    for chip in chips:
        labels = masks[chip]['mask']
        known = labels[labels != masks.ignore_index]
        found.append(torch.bincount(known.flatten(), minlength=1).numpy())
    counts = np.zeros((len(chips), max(map(len, found), default=1)), int)
    for row, each in zip(counts, found, strict=True):
        row[: len(each)] = each
    return counts
