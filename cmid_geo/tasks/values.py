# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""What the values of images mean to a task."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchgeo.tasks import BaseTask

from ..models.sources import KIND
from .guard import check_bands
from .restoring import Restored


class Values(Restored, BaseTask):
    """A task that carries the meaning of the values it was trained on.

    Raw values *low* and *high* of each band stand for 0 and 1, *mean* and *std* standardise what
    was scaled so; all four stay in the task's checkpoints.
    """

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

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Name the task, so that a checkpoint alone can be mapped with.

        Args:
            checkpoint: To be saved.
        """
        checkpoint[KIND] = type(self).__name__

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
