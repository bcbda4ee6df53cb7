# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Base of all tasks: the value range of their images, kept in buffers."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchgeo.tasks import BaseTask

from ..models.weights.matching import LoadReport
from ..models.weights.sources import KIND, VERSION, saved_bands
from ..ops.bands import names_of
from ..ops.value_range import ValueRange
from ..version import __version__
from .checks import check_bands, check_names, check_run
from .restoring import Restored
from .types import Checkpoint


class Values(Restored, BaseTask):
    """A task that carries the meaning of the values it was trained on.

    Raw values *low* and *high* of each band stand for 0 and 1, *mean* and *std* normalize what
    was scaled so; all four stay in the task's checkpoints, and so do the names of the bands.

    Attributes:
        report: What weights were loaded; None for random ones and for timm's.
    """

    report: LoadReport | None = None

    low: Tensor
    high: Tensor
    mean: Tensor
    std: Tensor

    def register_values(
        self, bands: int, mean: Sequence[float] | float, std: Sequence[float] | float
    ) -> None:
        """Register the values, until the data tell.

        Args:
            bands: Number of bands.
            mean: Of each band in [0, 1], or of all.
            std: Standard deviation of each band in [0, 1], or of all.
        """
        for name, value in {'low': 0.0, 'high': 1.0, 'mean': mean, 'std': std}.items():
            filled = torch.tensor(value, dtype=torch.float32)
            self.register_buffer(name, filled.expand(bands).clone())

    def setup(self, stage: str) -> None:
        """Refuse runs that cannot be, before anything is read.

        Args:
            stage: Either 'fit', 'validate', 'test' or 'predict'.

        Raises:
            ValueError: If the precision is none of a task's, or there are no data.
        """
        super().setup(stage)
        check_run(self.trainer, stage, type(self).__name__)

    def on_save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Name the task and the version, so that a checkpoint alone can be mapped with.

        Args:
            checkpoint: To be saved.
        """
        checkpoint[KIND] = type(self).__name__
        checkpoint[VERSION] = __version__

    def on_load_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Take over the bands that a checkpoint knows.

        Args:
            checkpoint: To be restored.

        Raises:
            ValueError: If the task, or its datamodule, has others, or these in another order.
        """
        known = saved_bands(checkpoint)
        if known and self.hparams['bands']:
            check_names(known, self.hparams['bands'], 'the checkpoint', 'the run')
        elif known:
            self.hparams['bands'] = list(known)

    @property
    def value_range(self) -> ValueRange:
        """What the values of images mean: names of the bands, low, high, mean and std."""
        values = (
            getattr(self, name).tolist() for name in ('low', 'high', 'mean', 'std')
        )
        return ValueRange(tuple(self.hparams['bands'] or ()), *map(tuple, values))

    def learn_values(self, datamodule: object, normalizing: bool = False) -> bool:
        """Take over what a datamodule knows of its values and bands, where the task does not.

        Args:
            datamodule: Ours, or one of TorchGeo's.
            normalizing: Whether to take over mean and std too, unless the user gave them.

        Returns:
            Whether names of bands were taken over.

        Raises:
            ValueError: If its images have other bands than the task takes.
        """
        found, given = value_range_of(datamodule), self.hparams
        count = given['in_channels']
        if found.low:
            several = max(len(found.low), len(found.high))
            check_bands(several if several > 1 else count, count, type(self).__name__)
            for name in ('low', 'high'):
                getattr(self, name).copy_(torch.tensor(getattr(found, name)))
        for name in ('mean', 'std') if normalizing and found.mean else ():
            if not given[name]:
                getattr(self, name).copy_(torch.tensor(getattr(found, name)))
        known = given['bands']
        if known and len(known) != count:
            raise ValueError(
                f'bands={list(known)} are {len(known)} names for in_channels={count}: name each band, or leave '
                'it to the datamodule'
            )
        new = not known and len(found.bands) == count
        if new:
            given['bands'] = list(found.bands)
        return new

    def share_values(self) -> None:
        """Let a datamodule of ours read images as the task knows them, also a restored one.

        Raises:
            ValueError: If it has other bands, or these in another order.
        """
        datamodule: Any = getattr(self.trainer, 'datamodule', None)
        own, found = self.value_range, value_range_of(datamodule)
        known = bool((self.low != 0).any() or (self.high != 1).any())
        if known and getattr(datamodule, 'value_range', None) is not None:
            if len(found.low) > 1:
                check_bands(len(found.low), self.hparams['in_channels'])
            datamodule.value_range = own
        if own.bands and len(found.bands) == len(own.bands):
            check_names(own.bands, found.bands, type(self).__name__, 'the datamodule')


def value_range_of(datamodule: object) -> ValueRange:
    """What a datamodule knows of its values; what it does not is empty.

    Args:
        datamodule: Ours, or one of TorchGeo's.

    Returns:
        Its value range. TorchGeo's datamodules deliver (raw - mean) / std, as their Normalize was
        built; there *low* and *high* may be one number for all bands.
    """
    known = getattr(datamodule, 'value_range', None)
    if known is not None:
        return known
    bands: list[str] = []
    # TorchGeo's know theirs, if not as one word for a set
    for holder in (datamodule, getattr(datamodule, 'train_dataset', None)):
        bands = bands or names_of(getattr(holder, 'bands', None))
    low: list[float] = []
    high: list[float] = []
    aug = getattr(datamodule, 'train_aug', None) or getattr(datamodule, 'aug', None)
    for step in aug.modules() if isinstance(aug, nn.Module) else ():
        flags = getattr(step, 'flags', {})
        if {'mean', 'std'} <= set(flags):
            low = flags['mean'].flatten().tolist()
            high = (flags['mean'] + flags['std']).flatten().tolist()
    return ValueRange(tuple(bands), tuple(low), tuple(high))
