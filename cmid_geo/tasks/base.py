# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""What the values of images mean to a task."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchgeo.tasks import BaseTask

from ..models.weights.report import LoadReport
from ..models.weights.sources import KIND, VERSION, saved_bands
from ..ops.bands import names_of
from ..version import __version__
from .checks import check_bands, check_names, check_run
from .restoring import Restored


class Values(Restored, BaseTask):
    """A task that carries the meaning of the values it was trained on.

    Raw values *low* and *high* of each band stand for 0 and 1, *mean* and *std* standardise what
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
            std: Likewise.
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

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Name the task and the version, so that a checkpoint alone can be mapped with.

        Args:
            checkpoint: To be saved.
        """
        checkpoint[KIND] = type(self).__name__
        checkpoint[VERSION] = __version__

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
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

    def learn_bands(self, datamodule: Any) -> bool:
        """Take over names and order of a datamodule's bands, where the task knows none.

        Args:
            datamodule: Ours, or one of TorchGeo's.

        Returns:
            Whether there were some to take over.

        Raises:
            ValueError: If the task was told others than it takes.
        """
        found, known = _bands_of(datamodule), self.hparams['bands']
        count = self.hparams['in_channels']
        if known and len(known) != count:
            raise ValueError(
                f'bands={list(known)} are {len(known)} names for in_channels={count}: name each band, or leave '
                'it to the datamodule'
            )
        new = not known and len(found) == count
        if new:
            self.hparams['bands'] = found
        return new

    def check_order(self) -> None:
        """Refuse a datamodule of other bands than the task knows, also a restored one."""
        known = self.hparams['bands']
        found = _bands_of(getattr(self.trainer, 'datamodule', None))
        if known and len(found) == len(known):
            check_names(known, found, type(self).__name__, 'the datamodule')

    def learn_limits(self, datamodule: Any) -> None:
        """Take over which raw values a datamodule scales to 0 and 1.

        Args:
            datamodule: Ours, or one of TorchGeo's.

        Raises:
            ValueError: If its images have other bands than the task takes.
        """
        statistics = getattr(datamodule, 'statistics', None)
        if statistics is not None:
            low, high = torch.tensor(statistics.low), torch.tensor(statistics.high)
            self._set_limits(low, high)
            return
        # TorchGeo's datamodules deliver (raw - mean) / std, as their Normalize was built
        aug = getattr(datamodule, 'train_aug', None) or getattr(datamodule, 'aug', None)
        for step in aug.modules() if isinstance(aug, nn.Module) else ():
            flags = getattr(step, 'flags', {})
            if {'mean', 'std'} <= set(flags):
                self._set_limits(flags['mean'], flags['mean'] + flags['std'])

    def _set_limits(self, low: Tensor, high: Tensor) -> None:
        """Copy one value a band, or one for all."""
        if low.numel() > 1:
            check_bands(low.numel(), self.hparams['in_channels'], type(self).__name__)
        self.low.copy_(low)
        self.high.copy_(high)

    def share_limits(self) -> None:
        """Let a datamodule of ours read scenes as the task knows them, also a restored one."""
        datamodule: Any = getattr(self.trainer, 'datamodule', None)
        known = bool((self.low != 0).any() or (self.high != 1).any())
        if (
            known
            and hasattr(datamodule, 'limits')
            and datamodule.statistics is not None
        ):
            check_bands(len(datamodule.statistics.low), self.hparams['in_channels'])
            datamodule.limits = (tuple(self.low.tolist()), tuple(self.high.tolist()))


def _bands_of(datamodule: Any) -> list[str | int]:
    """Names of a datamodule's bands, or their positions in files without names; else none."""
    statistics = getattr(datamodule, 'statistics', None)
    if statistics is not None:
        # One range stands for all bands of pictures, whatever these are
        several = statistics.bands != ('all',)
        return list(statistics.bands) if several else []
    # TorchGeo's know theirs, if not as one word for a set
    for holder in (datamodule, getattr(datamodule, 'train_dataset', None)):
        names = names_of(getattr(holder, 'bands', None))
        if names:
            return [*names]
    return []
