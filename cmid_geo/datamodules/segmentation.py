# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Batches of chips of scenes with masks, from folders of GeoTIFFs."""

from typing import Any

from ..datasets import Chip, SceneDataset
from ..datasets.label_fraction import check_fraction
from ..datasets.masks import LabelledScenes, MaskDataset
from ..datasets.samplers import windows
from ..transforms.segmentation import LabelledAugmentation
from .scenes import SceneDataModule


class SegmentationDataModule(SceneDataModule):
    """Scenes and masks, both georeferenced rasters, as chips in [0, 1] with their classes.

    Batches hold ``image`` (B, C, H, W) float32 in [0, 1], ``valid`` (B, H, W) bool and ``mask``
    (B, H, W) int64, *ignore_index* where nothing is labelled. Training draws random windows over the
    labelled ground of all masks, or with a *label_fraction* below 1 a part of windows side by side,
    and rotates, flips and enlarges them; validation and test cover theirs once, window by window.
    Images and masks need not share a grid or be cut alike: masks are laid on the images' CRS and
    resolution by the nearest pixel. The bands of images that are held out are taken by name, in
    the order of those to train on.
    """

    given_by = '{split}_images=..., {split}_masks=...'

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
            masks: Their masks, given in the same ways, with the class of each pixel in the first band.
            val_images: Images to validate on; without, there is no validation.
            val_masks: Masks to validate on.
            test_images: Images to test on.
            test_masks: Masks to test on.
            patch_size: Side of the chips in pixels, a multiple of 32 for most networks.
            length: Chips in a training epoch, over all processes.
            batch_size: Samples in a batch of training, in each process.
            num_workers: Processes that load data, for each process that trains.
            bands: Bands in the order wanted: positions from 1 or, of scenes, names; where None, all.
            low: Raw value, or one a band, that becomes 0; where None, 0 for uint8, else the training data's 2nd percentile.
            high: Raw value, or one a band, that becomes 1; where None, 255 for uint8, else the training data's 98th percentile.
            ignore_index: Label of what has none; tell it to the task as well.
            label_fraction: Fraction of the training labels to learn from, in (0, 1], of each class alike.
            augment: Whether to augment training batches on the device.
            scale: Smallest and largest area of a training crop, as fractions of the image's, enlarged to all of
                it; None for whole images.
            min_valid: Least fraction of a training chip that must have a label, in [0, 1].
            seed: Seed of all that is drawn; where None, ``torch.initial_seed()``, which ``seed_everything`` sets.
            crs: Coordinate reference system, such as EPSG:32633; the first scene's by default.
            res: Pixel size in units of *crs*; the first scene's by default.
            zero_is_nodata: Whether pixels with 0 in all bands are invalid even if no file says so.
            nodata: Fill value that files do not declare, such as 255 around a scene: pixels that have
                it in all bands are invalid. Files that declare one keep theirs.
            file_crs: The CRS of files that state none, such as EPSG:32633.

        Raises:
            ValueError: If masks come without images, or a fraction is out of range.
        """
        super().__init__(
            images, patch_size, length, batch_size, num_workers, bands=bands, low=low, high=high,
            min_valid=min_valid, seed=seed, crs=crs, res=res, zero_is_nodata=zero_is_nodata,
            nodata=nodata, file_crs=file_crs,
        )  # fmt: skip
        self.held = {'val': (val_images, val_masks), 'test': (test_images, test_masks)}
        for split, (held_images, held_masks) in self.held.items():
            if (held_images is None) != (held_masks is None):
                raise ValueError(
                    f'{split}_images={held_images!r} but {split}_masks={held_masks!r}: give both, or none'
                )
        self.masks, self.ignore_index = masks, ignore_index
        self.label_fraction = check_fraction(label_fraction)
        self.augmentation = LabelledAugmentation(patch_size, scale) if augment else None

    def setup(self, stage: str) -> None:
        """Open scenes and masks and choose the chips, each once.

        Args:
            stage: Either 'fit', 'validate', 'test' or 'predict'.

        Raises:
            ValueError: If an epoch is shorter than a batch, or the scenes cannot be used, or there is
                nothing to validate or test on, with what to do.
        """
        if stage == 'predict':
            super().setup(stage)
            return
        self._begin(stage)
        scenes = self._open()
        if stage == 'fit' and self.train_sampler is None:
            self.train_dataset = labelled = self._label(scenes, self.masks)
            self.train_sampler = self._training_chips(labelled)
        split = 'test' if stage == 'test' else 'val'
        images, masks = self.held[split]
        if images is None and stage != 'fit':
            self._refuse(split)
        if images is not None and getattr(self, f'{split}_dataset') is None:
            held = self._open_alike(scenes, images, f'{split}_images')
            labelled = self._label(held, masks)
            setattr(self, f'{split}_dataset', labelled)
            setattr(self, f'{split}_sampler', windows(labelled.masks, self.chip_size))

    def _label(self, scenes: SceneDataset, paths: Any) -> LabelledScenes:
        """Open the masks of scenes."""
        masks = MaskDataset(
            paths, self.ignore_index, crs=scenes.crs, res=scenes.res,
            file_crs=self.kwargs['file_crs'],
        )  # fmt: skip
        return LabelledScenes(scenes, masks)

    def _training_chips(self, labelled: LabelledScenes) -> Any:
        """Random windows, or draws from the few that are labelled."""
        masks, size = labelled.masks, self.chip_size
        if self.label_fraction == 1:
            return self._random_chips(masks, self.epoch_length)
        chips: list[Chip] = []
        classes = []
        for chip in windows(masks, size):
            labels = masks[chip]['mask']
            known = labels[labels != self.ignore_index]
            if len(known) >= max(1, self.min_valid * size * size):
                chips.append(chip)
                classes.append(known.unique().numpy())
        return self._few_chips(chips, classes)
