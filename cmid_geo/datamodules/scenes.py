# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Batches of random chips from folders of scenes."""

from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler
from torchgeo.datamodules import GeoDataModule
from torchgeo.datasets.utils import Sample

from ..datasets import Chip, GridChips, RandomChips, SceneDataset, estimate_statistics
from ..datasets.chips import HasScenes
from ..datasets.filenames import DEFAULT_BAND_REGEX, DEFAULT_DATE_REGEX
from ..ops.bands import find_bands, names_of
from .base import ScaledDataModule, show


class SceneDataModule(ScaledDataModule, GeoDataModule):
    """Random chips of scenes for pretraining, scaled to [0, 1] on the device.

    Batches hold ``image`` (B, C, H, W) float32 in [0, 1], 0 where not valid, and ``valid``
    (B, H, W) bool; with several dates (B, T, C, H, W) and (B, T, H, W). Training draws anew each
    epoch. Validation and test are one fixed draw, from *val_paths* or, without, from the training
    scenes: those chips are *not* held out, and tell whether training works but not whether it
    generalises. Prediction covers all scenes chip by chip.

    Attributes:
        bands: Names of the bands, once set up.
    """

    # TorchGeo's samplers yield slices, ours windows on a scene's own grid
    train_sampler: Sampler[Chip] | None  # ty: ignore[incompatible-attribute-override]
    val_sampler: list[Chip] | None  # ty: ignore[incompatible-attribute-override]
    test_sampler: list[Chip] | None  # ty: ignore[incompatible-attribute-override]
    predict_sampler: Sampler[Chip] | None  # ty: ignore[incompatible-attribute-override]

    def __init__(
        self,
        paths: str | list[str],
        patch_size: int = 256,
        length: int = 1000,
        batch_size: int = 64,
        num_workers: int = 0,
        dates: int = 1,
        bands: list[int | str] | None = None,
        low: float | list[float | int] | None = None,
        high: float | list[float | int] | None = None,
        val_paths: str | list[str] | None = None,
        val_length: int | None = None,
        min_valid: float = 0.75,
        seed: int | None = None,
        crs: str | None = None,
        res: float | tuple[float, float] | None = None,
        band_regex: str = DEFAULT_BAND_REGEX,
        date_regex: str = DEFAULT_DATE_REGEX,
        zero_is_nodata: bool = False,
        skip_unreadable: bool = False,
        nodata: float | None = None,
        file_crs: str | None = None,
    ) -> None:
        """Initialize a new SceneDataModule instance.

        Args:
            paths: A folder (searched recursively), a glob, a file, a URL, or several of these.
            patch_size: Side of a chip in pixels.
            length: Chips in a training epoch, over all processes.
            batch_size: Chips in a batch, in each process.
            num_workers: Processes that load data, for each process that trains.
            dates: Dates of a chip.
            bands: Bands by name or position from 1; all by default.
            low: Raw value, or one a band, that becomes 0.
            high: Raw value, or one a band, that becomes 1. By default 0 and 255 for uint8, else
                the 2nd and 98th percentiles.
            val_paths: Scenes to validate and test on, like *paths*; by default the same.
            val_length: Chips to validate and test on; by default a tenth of *length*, at least a
                batch.
            min_valid: Least share of a chip that must be valid, in [0, 1].
            seed: Of the chips; None for ``torch.initial_seed()``, which ``seed_everything`` sets.
            crs: Coordinate reference system, such as EPSG:32633; the first scene's by default.
            res: Pixel size in units of *crs*; the first scene's by default.
            band_regex: Finds the band in the names of single-band files, in a group ``band``.
            date_regex: Finds the date in file names, in a group ``date``.
            zero_is_nodata: Whether pixels with 0 in all bands are invalid even if no file says so.
            skip_unreadable: Whether to go on, with a warning, without files that cannot be used, be
                they damaged, without CRS or place, or of other bands; each is then read through
                once, to find damage before training does.
            nodata: Fill value that files do not declare, such as 255 around a scene: pixels that have
                it in all bands are invalid. Files that declare one keep theirs.
            file_crs: The CRS of files that state none, such as EPSG:32633.
        """
        super().__init__(
            SceneDataset,
            batch_size,
            patch_size,
            length,
            num_workers,
            bands=bands,
            crs=crs,
            res=res,
            band_regex=band_regex,
            date_regex=date_regex,
            zero_is_nodata=zero_is_nodata,
            skip_unreadable=skip_unreadable,
            nodata=nodata,
            file_crs=file_crs,
        )
        self.paths, self.val_paths = paths, val_paths
        self.dates, self.min_valid, self.seed = dates, min_valid, seed
        self.low, self.high = low, high
        # TorchGeo's patch_size may be a pair and its length None
        self.chip_size, self.epoch_length = patch_size, length
        self.val_length = val_length or max(batch_size, length // 10)
        self.bands: tuple[str, ...] | None = None
        self.aug = self.scale

    def setup(self, stage: str) -> None:
        """Open the scenes, estimate the statistics and draw the chips, each once.

        Args:
            stage: Either 'fit', 'validate', 'test' or 'predict'.

        Raises:
            ValueError: If an epoch is shorter than a batch, or the scenes cannot be used, with what
                to do.
        """
        task = self.trainer.lightning_module if self.trainer else None
        if stage != 'fit' or not getattr(task, 'tells_faults', False):
            self._check_length(self.trainer.world_size if self.trainer else 1)
        scenes = self._open()
        if stage == 'fit':
            self.value_range = self.statistics
        if stage == 'fit' and self.train_sampler is None:
            self.train_dataset = scenes
            self.train_sampler = self._random_chips(scenes, self.epoch_length, 0)
        if stage in ('fit', 'validate', 'test') and self.val_sampler is None:
            self.val_dataset = self.test_dataset = held = self._open_val(scenes)
            # A list does not change with the epoch as the sampler would
            chips = list(self._random_chips(held, self.val_length, 1))
            self.val_sampler = self.test_sampler = chips
        if stage == 'predict' and self.predict_sampler is None:
            self.predict_dataset = scenes
            self.predict_sampler = GridChips(scenes, self.chip_size)

    def _open(self) -> SceneDataset:
        """Open the training scenes and show their statistics, once."""
        if isinstance(self.dataset, SceneDataset):
            return self.dataset
        self.dataset = scenes = SceneDataset(self.paths, **self.kwargs)
        self.bands = scenes.bands
        self.statistics = self.value_range = estimate_statistics(
            scenes, self.low, self.high, self.chip_size, min_valid=self.min_valid
        )
        show(f'{len(scenes)} scenes, raw values low and high become 0 and 1:')
        show(str(self.statistics))
        return scenes

    def _open_val(self, scenes: SceneDataset) -> SceneDataset:
        """Open the scenes to validate on, with the grid and bands of the training scenes."""
        if self.val_paths is None:
            return scenes
        return self._open_held('val_paths', self.val_paths, scenes)

    def _open_held(
        self, name: str, paths: str | list[str], scenes: SceneDataset
    ) -> SceneDataset:
        """Open scenes that are held out, and refuse those of other bands."""
        grid: dict[str, Any] = {'crs': scenes.crs, 'res': scenes.res}
        held = SceneDataset(paths, **(self.kwargs | grid))
        named = names_of(held.bands), names_of(scenes.bands)
        places = find_bands(*named) if all(named) else []
        if len(held.bands) != len(scenes.bands) or places != sorted(places, key=str):
            raise ValueError(
                f'{name}={paths!r} has bands {held.bands} but {self.paths!r}, which is trained on, has '
                f'{scenes.bands}: choose the same in the same order by bands='
            )
        return held

    def _random_chips(
        self, dataset: HasScenes, length: int, stream: int
    ) -> RandomChips:
        """Return a sampler; *stream* sets validation's chips apart from training's."""
        seed = torch.initial_seed() if self.seed is None else self.seed
        return RandomChips(
            dataset,
            self.chip_size,
            length,
            dates=self.dates,
            min_valid=self.min_valid,
            seed=seed + stream,
        )

    def faults(self, processes: int) -> list[str]:
        """Tell what of this cannot be trained on: a task tells it with what it finds itself.

        Args:
            processes: That train.

        Returns:
            A sentence each, such as of an epoch without a whole batch, of which training would
            silently see nothing.
        """
        needed = self.batch_size * processes
        if self.epoch_length >= needed:
            return []
        fault = (
            f'length={self.epoch_length} chips an epoch is less than a batch of {needed} '
            f'(batch_size={self.batch_size} on {processes} processes): raise length to '
            f'{needed} or more, or lower batch_size'
        )
        return [fault]

    def _check_length(self, processes: int) -> None:
        for fault in self.faults(processes):
            raise ValueError(fault)

    def _dataloader_factory(self, split: str) -> DataLoader[Sample]:
        """Make a loader; only training drops an incomplete last batch."""
        sampler = self._valid_attribute(f'{split}_sampler')
        dataset = self._valid_attribute(f'{split}_dataset', 'dataset')
        return self.make_loader(dataset, split, True, sampler=sampler)
