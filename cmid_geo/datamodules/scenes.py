# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Batches of random chips from folders of scenes."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import Sampler
from torchgeo.datamodules import GeoDataModule

from ..datasets import Chip, GridChips, RandomChips, SceneDataset, estimate_statistics
from ..datasets.chips import HasScenes
from ..datasets.filenames import DEFAULT_BAND_REGEX, DEFAULT_DATE_REGEX
from ..datasets.gdal import bound_cache
from ..datasets.label_fraction import draw_fraction
from ..datasets.samplers import BLOCK, ListedChips
from ..ops.bands import find_bands
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

    label_fraction = 1.0

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
        chips_per_region: int = 8,
    ) -> None:
        """Initialize a new SceneDataModule instance.

        Args:
            paths: A folder (searched recursively), a glob, a file, a URL, or several of these; also JSON
                files of STAC items.
            patch_size: Side of the chips in pixels, a multiple of 32 for most networks.
            length: Chips in a training epoch, over all processes.
            batch_size: Samples in a batch of training, in each process.
            num_workers: Processes that load data, for each process that trains.
            dates: Dates of a chip.
            bands: Bands in the order wanted: positions from 1 or, of scenes, names; where None, all.
            low: Raw value, or one a band, that becomes 0; where None, 0 for uint8, else the training data's 2nd percentile.
            high: Raw value, or one a band, that becomes 1; where None, 255 for uint8, else the training data's 98th percentile.
            val_paths: Scenes to validate and test on, like *paths*; by default the same. Their bands are
                taken by name, in the order of those of *paths*.
            val_length: Chips to validate and test on; by default a tenth of *length*, at least a
                batch.
            min_valid: Least fraction of a chip that must be valid, in [0, 1].
            seed: Seed of all that is drawn; where None, ``torch.initial_seed()``, which ``seed_everything`` sets.
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
            chips_per_region: Chips of an epoch that are read from the same blocks of a file, each in another
                batch, which saves decoding (:class:`~cmid_geo.datasets.RandomChips` tells how); 1 for
                chips drawn each by itself.
        """
        super().__init__(
            SceneDataset, batch_size, patch_size, length, num_workers, bands=bands, crs=crs,
            res=res, band_regex=band_regex, date_regex=date_regex, zero_is_nodata=zero_is_nodata,
            skip_unreadable=skip_unreadable, nodata=nodata, file_crs=file_crs,
        )  # fmt: skip
        self.paths, self.val_paths = paths, val_paths
        self.dates, self.min_valid, self.seed = dates, min_valid, seed
        self.low, self.high = low, high
        self.chips_per_region = chips_per_region
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
        self._begin(stage)
        scenes = self._open()
        if stage == 'fit' and self.train_sampler is None:
            self.train_dataset = scenes
            self.train_sampler = self._random_chips(
                scenes, self.epoch_length, chips_per_region=self.chips_per_region
            )
        if stage in ('fit', 'validate', 'test') and self.val_sampler is None:
            held = scenes
            if self.val_paths is not None:
                held = self._open_alike(scenes, self.val_paths, 'val_paths')
            self.val_dataset = self.test_dataset = held
            # A list does not change with the epoch as the sampler would
            chips = list(self._random_chips(held, self.val_length, 1))
            self.val_sampler = self.test_sampler = chips
        if stage == 'predict' and self.predict_sampler is None:
            self.predict_dataset = scenes
            self.predict_sampler = GridChips(scenes, self.chip_size)

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

    def _begin(self, stage: str) -> None:
        """Refuse an epoch without a batch, unless the task is going to."""
        super()._begin(stage)
        task = self.trainer.lightning_module if self.trainer else None
        if stage == 'fit' and getattr(task, 'tells_faults', False):
            return
        for fault in self.faults(self.trainer.world_size if self.trainer else 1):
            raise ValueError(fault)

    def _open(self) -> SceneDataset:
        """Open the training scenes and show their statistics, once."""
        if isinstance(self.dataset, SceneDataset):
            return self.dataset
        options: dict[str, Any] = {**self.kwargs, 'keep_dtype': True}
        self.dataset = scenes = SceneDataset(self.paths, **options)
        self.bands = scenes.bands
        self.worker_init_fn = partial(bound_cache, self._working_set(scenes))
        self._estimate(scenes, self.chip_size, f'{len(scenes)} scenes,')
        return scenes

    def _working_set(self, scenes: SceneDataset) -> int:
        """Bytes of the decoded blocks of a batch, amply: blocks reach beyond the chips."""
        pixel = len(scenes.bands) * max(
            np.dtype(s.dtype).itemsize for s in scenes.scenes
        )
        area = (self.chip_size + 2 * BLOCK) ** 2
        return max(2**27, self.batch_size * self.dates * area * pixel)

    def _estimate(self, scenes: SceneDataset, size: int, told: str) -> None:
        """Estimate the value range of the training scenes, and show it."""
        given = self.low, self.high, size
        found = estimate_statistics(scenes, *given, min_valid=self.min_valid)
        self._learn(found)
        show(f'{told} raw values low and high become 0 and 1:\n{found}')

    def _open_alike(
        self, scenes: SceneDataset, paths: str | list[str], argument: str
    ) -> SceneDataset:
        """Open held-out scenes with the grid of the training scenes, and their bands by name."""
        options: dict[str, Any] = {**self.kwargs, 'crs': scenes.crs, 'res': scenes.res}
        options['keep_dtype'] = True
        held = SceneDataset(paths, **options)
        wanted, given = scenes.bands, held.bands
        places = find_bands(wanted, given)
        count = list(range(len(wanted)))
        named = not any(each.scenes[0].positions for each in (scenes, held))
        if len(given) == len(wanted) and (not named or places == count):
            return held
        if not named or None in places:
            raise ValueError(
                f'{argument}={paths!r} has bands {given} but paths={self.paths!r} has {wanted}: choose the '
                'same by bands='
            )
        order = [given[place] for place in places if place is not None]
        rank_zero_warn(
            f'{argument}={paths!r} has bands {given} but paths={self.paths!r} has {wanted}: read by name, as '
            f'bands={order}'
        )
        options['bands'] = order
        return SceneDataset(paths, **options)

    def _random_chips(
        self,
        dataset: HasScenes,
        length: int,
        stream: int = 0,
        chips_per_region: int = 1,
    ) -> RandomChips:
        """Return a sampler; *stream* sets validation's chips apart from training's."""
        processes = self.trainer.world_size if self.trainer else 1
        return RandomChips(
            dataset, self.chip_size, length, dates=self.dates, min_valid=self.min_valid,
            seed=self.shared_seed() + stream, chips_per_region=chips_per_region,
            batch_size=self.batch_size * processes, num_workers=self.num_workers,
        )  # fmt: skip

    def _few_chips(
        self, chips: Sequence[Chip], classes: Sequence[npt.ArrayLike]
    ) -> ListedChips:
        """Return a sampler of the few chips whose labels are used, by the classes they show."""
        drawn = draw_fraction(classes, self.label_fraction, self.seed or 0)
        show(f'{len(drawn)} of {len(chips)} labelled chips are trained on')
        few = [chips[index] for index in drawn]
        return ListedChips(few, self.epoch_length, self.seed or 0)
