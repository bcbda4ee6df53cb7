# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Batches of chips of two dates, with labels of change."""

from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import Sampler
from torchgeo.datasets.utils import Sample

from ..datasets import Chip, SceneDataset
from ..datasets.change import ChangePairs
from ..datasets.filenames import DEFAULT_BAND_REGEX, DEFAULT_DATE_REGEX
from ..datasets.label_fraction import check_fraction
from ..datasets.samplers import windows
from ..transforms.change import PairAugmentation
from .scenes import SceneDataModule


class ChangeDataModule(SceneDataModule):
    """Chips of places seen at two dates, scaled to [0, 1] and augmented on the device.

    Batches hold ``image`` (B, 2, C, H, W) float32 in [0, 1], ``mask`` (B, H, W) int64 and
    ``valid`` (B, H, W) bool. Training draws windows anew each epoch and augments them; with a
    *label_fraction* below 1 places are cut into windows of *patch_size*, of which that fraction is
    kept, of those with change and of those without alike. Validation and test cover their places
    once, window by window, so that every pixel counts once.

    Attributes:
        names: Of the places of each split, once set up.
    """

    # A list covers its places in one order, where random windows are drawn anew
    predict_sampler: Any

    def __init__(
        self,
        root: str | None = None,
        before: str | list[str] | None = None,
        after: str | list[str] | None = None,
        masks: str | list[str] | None = None,
        patch_size: int = 256,
        length: int = 1000,
        batch_size: int = 8,
        num_workers: int = 0,
        bands: list[int | str] | None = None,
        low: float | list[float | int] | None = None,
        high: float | list[float | int] | None = None,
        val_places: list[str] | None = None,
        test_places: list[str] | None = None,
        label_fraction: float = 1.0,
        seed: int = 0,
        min_valid: float = 0.5,
        augment: bool = True,
        zoom: tuple[float, float] = (1.0, 1.0),
        binary: bool = False,
        ignore_index: int = 255,
        mask_name: str = 'change',
        band_regex: str = DEFAULT_BAND_REGEX,
        date_regex: str = DEFAULT_DATE_REGEX,
        zero_is_nodata: bool = False,
        nodata: float | None = None,
        file_crs: str | None = None,
    ) -> None:
        """Initialize a new ChangeDataModule instance.

        Args:
            root: A folder of folders, one a place, each with a mask and two dates.
            before: Instead of *root*: a folder, a glob, a file, or several, of the first dates.
            after: Instead of *root*: a folder, a glob, a file, or several, of the second dates.
            masks: Instead of *root*: a folder, a glob, a file, or several, of the masks.
            patch_size: Side of the chips in pixels, a multiple of 32 for most networks.
            length: Chips in a training epoch, over all processes.
            batch_size: Samples in a batch of training, in each process.
            num_workers: Processes that load data, for each process that trains.
            bands: Bands in the order wanted: positions from 1 or, of scenes, names; where None, all.
            low: Raw value, or one a band, that becomes 0; where None, 0 for uint8, else the training data's 2nd percentile.
            high: Raw value, or one a band, that becomes 1; where None, 255 for uint8, else the training data's 98th percentile.
            val_places: Names of places to validate on; by default those to train on, which tells
                whether training works but not whether it generalises.
            test_places: Names of places to test on; by default those of validation.
            label_fraction: Fraction of the training labels to learn from, in (0, 1], of each class alike.
            seed: Seed of all that is drawn; where None, ``torch.initial_seed()``, which ``seed_everything`` sets.
            min_valid: Least fraction of a training chip that must be valid, in [0, 1].
            augment: Whether to augment training batches on the device.
            zoom: Smallest and largest enlargement of training chips.
            binary: Whether any value of a mask but 0 is change.
            ignore_index: Label to give where a mask holds no data.
            mask_name: With *root*, the masks' name without its ending.
            band_regex: Finds the band in the names of single-band files, in a group ``band``.
            date_regex: With *root*, finds the date in file names, in a group ``date``.
            zero_is_nodata: Whether pixels with 0 in all bands are invalid even if no file says so.
            nodata: Fill value that files do not declare, such as 255 around a scene: pixels that have
                it in all bands are invalid. Files that declare one keep theirs.
            file_crs: The CRS of files that state none, such as EPSG:32633.

        Raises:
            ValueError: If a fraction is out of range.
        """
        super().__init__(
            root or masks or '', patch_size, length, batch_size, num_workers, bands=bands, low=low,
            high=high, min_valid=min_valid, seed=seed, band_regex=band_regex, date_regex=date_regex,
            zero_is_nodata=zero_is_nodata, nodata=nodata, file_crs=file_crs,
        )  # fmt: skip
        self.options: dict[str, Any] = {
            'root': root, 'before': before, 'after': after, 'masks': masks,
            'mask_name': mask_name, 'binary': binary, 'ignore_index': ignore_index,
            'bands': bands, 'band_regex': band_regex, 'date_regex': date_regex,
            'zero_is_nodata': zero_is_nodata, 'nodata': nodata, 'file_crs': file_crs,
        }  # fmt: skip
        self.held = {'val': val_places, 'test': test_places}
        self.label_fraction = check_fraction(label_fraction)
        self.augmentation = PairAugmentation(zoom=zoom) if augment else None
        self.names: dict[str, tuple[str, ...]] = {}

    def setup(self, stage: str) -> None:
        """Open the places, estimate the statistics and lay out the windows, once.

        Args:
            stage: Either 'fit', 'validate', 'test' or 'predict'.

        Raises:
            ValueError: If an epoch is shorter than a batch, or the places cannot be used, with what to
                do.
        """
        self._begin(stage)
        self._say_what_is_not_held_out(stage)
        if isinstance(self.dataset, ChangePairs):
            return
        self.dataset = pairs = ChangePairs(**self.options)
        self.bands, self.names = pairs.bands, self._split(pairs)
        self.train_dataset = train = pairs.select(self.names['train'])
        self.val_dataset = pairs.select(self.names['val'])
        self.test_dataset = self.predict_dataset = pairs.select(self.names['test'])
        scenes = SceneDataset(train.files, **self.kwargs)
        self._estimate(scenes, min(64, self.chip_size), f'places {self.names};')
        self.train_sampler = self._training_chips(train)
        self.val_sampler = windows(self.val_dataset, self.chip_size)
        self.test_sampler = windows(self.test_dataset, self.chip_size)
        self.predict_sampler = self.test_sampler

    def _say_what_is_not_held_out(self, stage: str) -> None:
        """Warn of a stage that sees the places that are trained on."""
        split = 'val' if stage in ('fit', 'validate') else 'test'
        # What is validated on is tested on, too, where nothing else is
        if not self.held['val'] and not (split == 'test' and self.held['test']):
            verb = {'val': 'validation', 'test': 'the test'}[split]
            rank_zero_warn(
                f'{split}_places=None: {verb} runs on the places that are trained on, and does not tell '
                f'whether training generalises; hold some out by {split}_places=[...]'
            )

    def _split(self, pairs: ChangePairs) -> dict[str, tuple[str, ...]]:
        """Names of the places of each split."""
        held = {split: set(names or ()) for split, names in self.held.items()}
        off = sorted((held['val'] | held['test']) - set(pairs.places))
        if off:
            raise ValueError(
                f'val_places= and test_places= name {off}: choose of {sorted(pairs.places)}'
            )
        if held['val'] & held['test']:
            raise ValueError(
                f'{sorted(held["val"] & held["test"])} are in val_places= and in test_places=: what '
                'decides about the training cannot test it; name each once'
            )
        out = held['val'] | held['test']
        train = [name for name in pairs.places if name not in out]
        if not train:
            raise ValueError(
                'all places are held out by val_places= and test_places=: leave one to train on'
            )
        val = [name for name in pairs.places if name in held['val']] or train
        test = [name for name in pairs.places if name in held['test']] or val
        return {'train': tuple(train), 'val': tuple(val), 'test': tuple(test)}

    def _training_chips(self, pairs: ChangePairs) -> Sampler[Chip]:
        """Random windows of all places, or of the few whose labels are used."""
        if self.label_fraction == 1:
            return self._random_chips(pairs, self.epoch_length)
        chips = windows(pairs, self.chip_size)
        return self._few_chips(chips, [self._has_change(pairs[chip]) for chip in chips])

    def _has_change(self, sample: Sample) -> bool:
        """Tell whether a chip shows change where both dates are valid."""
        known = sample['valid'] & (sample['mask'] != self.options['ignore_index'])
        return bool((known & (sample['mask'] > 0)).any())
