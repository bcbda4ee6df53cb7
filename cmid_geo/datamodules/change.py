# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Batches of chips of two dates, with labels of change."""

from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import Sampler
from torchgeo.datasets.utils import Sample

from ..datasets import Chip, SceneDataset, estimate_statistics
from ..datasets.change import ChangePairs
from ..datasets.filenames import DEFAULT_BAND_REGEX, DEFAULT_DATE_REGEX
from ..datasets.label_fraction import draw_fraction
from ..datasets.samplers import ListedChips, windows
from ..transforms.change import PairAugmentation
from .base import check_fraction, show
from .scenes import SceneDataModule


class ChangeDataModule(SceneDataModule):
    """Chips of places seen at two dates, scaled to [0, 1] and altered on the device.

    Batches hold ``image`` (B, 2, C, H, W) float32 in [0, 1], ``mask`` (B, H, W) int64 and
    ``valid`` (B, H, W) bool. Training draws windows anew each epoch and alters them; validation
    and test cover their places once, window by window, so that every pixel counts once.

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
            after: Likewise of the second dates.
            masks: Likewise of the masks.
            patch_size: Side of a chip in pixels, a multiple of 32.
            length: Chips in a training epoch, over all processes.
            batch_size: Chips in a batch, in each process.
            num_workers: Processes that load data, for each process that trains.
            bands: Bands by name or position from 1; all by default.
            low: Raw value, or one a band, that becomes 0.
            high: Raw value, or one a band, that becomes 1. By default 0 and 255 for uint8, else
                the 2nd and 98th percentiles of the places to train on.
            val_places: Names of places to validate on; by default those to train on, which tells
                whether training works but not whether it generalises.
            test_places: Names of places to test on; by default those of validation.
            label_fraction: Share of the training windows that are used, in (0, 1]. Below 1 places
                are cut into windows of *patch_size*, of which that share is kept, of those with
                change and of those without alike; more labels contain fewer.
            seed: Of the chips, and of the windows that are kept.
            min_valid: Least share of a training chip that must be valid, in [0, 1].
            augment: Whether to alter training chips.
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
            ValueError: If an epoch is shorter than a batch, or the share is none.
        """
        super().__init__(
            root or masks or '', patch_size, length, batch_size, num_workers, low=low,
            high=high, min_valid=min_valid, seed=seed,
        )  # fmt: skip
        check_fraction('label_fraction', label_fraction)
        self.shared: dict[str, Any] = {
            'bands': bands, 'band_regex': band_regex, 'date_regex': date_regex,
            'zero_is_nodata': zero_is_nodata, 'nodata': nodata, 'file_crs': file_crs,
        }  # fmt: skip
        self.options: dict[str, Any] = self.shared | {
            'root': root, 'before': before, 'after': after, 'masks': masks,
            'mask_name': mask_name, 'binary': binary, 'ignore_index': ignore_index,
        }  # fmt: skip
        self.held = {'val': val_places, 'test': test_places}
        self.label_fraction = label_fraction
        self.augment = PairAugmentation(zoom=zoom) if augment else None
        self.names: dict[str, tuple[str, ...]] = {}

    def setup(self, stage: str) -> None:
        """Open the places, estimate the statistics and lay out the windows, once.

        Args:
            stage: Either 'fit', 'validate', 'test' or 'predict'.

        Raises:
            ValueError: If the places cannot be used, with what to do.
        """
        self._check_length(self.trainer.world_size if self.trainer else 1)
        self._say_what_is_not_held_out(stage)
        if stage == 'fit':
            self.value_range = self.statistics
        if isinstance(self.dataset, ChangePairs):
            return
        self.dataset = pairs = ChangePairs(**self.options)
        self.bands, self.names = pairs.bands, self._split(pairs)
        self.train_dataset = train = pairs.select(self.names['train'])
        self.val_dataset = pairs.select(self.names['val'])
        self.test_dataset = self.predict_dataset = pairs.select(self.names['test'])
        self.statistics = self.value_range = estimate_statistics(
            SceneDataset(train.files, **self.shared), self.low, self.high,
            min(64, self.chip_size), min_valid=self.min_valid,
        )  # fmt: skip
        show(f'places {self.names}; raw values low and high become 0 and 1:')
        show(str(self.statistics))
        self.train_sampler = self._train_sampler(train)
        self.val_sampler = windows(self.val_dataset, self.chip_size)
        self.test_sampler = windows(self.test_dataset, self.chip_size)
        self.predict_sampler = self.test_sampler

    def augment_batch(self, batch: Sample) -> Sample:
        """Augment pairs and masks of training alike."""
        return batch if self.augment is None else alter(self.augment, batch)

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
        train = [
            name for name in pairs.places if name not in held['val'] | held['test']
        ]
        if not train:
            raise ValueError(
                'all places are held out by val_places= and test_places=: leave one to train on'
            )
        val = [name for name in pairs.places if name in held['val']] or train
        test = [name for name in pairs.places if name in held['test']] or val
        return {'train': tuple(train), 'val': tuple(val), 'test': tuple(test)}

    def _train_sampler(self, pairs: ChangePairs) -> Sampler[Chip]:
        """Random windows of all places, or of the few whose labels are used."""
        if self.label_fraction == 1:
            return self._random_chips(pairs, self.epoch_length, 0)
        chips = windows(pairs, self.chip_size)
        samples = [pairs[chip] for chip in chips]
        unknown = self.options['ignore_index']
        changed = [
            bool(((each['mask'] > 0) & (each['mask'] != unknown) & each['valid']).any())
            for each in samples
        ]
        kept = draw_fraction(changed, self.label_fraction, self.seed or 0)
        show(f'{len(kept)} of {len(chips)} windows are trained on')
        return ListedChips([chips[i] for i in kept], self.epoch_length, self.seed or 0)


def alter(augment: PairAugmentation, batch: Sample) -> Sample:
    """Alter a batch; TorchGeo's masks, which have a band, keep it.

    Args:
        augment: How.
        batch: With ``image`` in [0, 1], ``mask`` and optionally ``valid``.

    Returns:
        The batch with all three anew.
    """
    mask = batch['mask']
    banded = mask.ndim == 4
    image, labels, valid = augment(
        batch['image'], mask.squeeze(1) if banded else mask, batch.get('valid')
    )
    return batch | {
        'image': image, 'mask': labels.unsqueeze(1) if banded else labels, 'valid': valid,
    }  # fmt: skip
