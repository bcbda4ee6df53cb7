# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Effective rank of student's and teacher's features on fixed chips, every few epochs."""

import copy
import math
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from .feature_rank import rank_of, view_features
from .undisturbed import delivered, set_up, undisturbed


class OnlineRank(Callback):
    """Base of callbacks that log an effective rank of both backbones' pooled features.

    It is that of :class:`~cmid_geo.callbacks.feature_rank.FeatureRank`, which takes this one's place where neither
    is given, but needs no validation: the chips are the first that a datamodule gives to validate
    on, and their views are the same each time; where there are none it is NaN, with a warning. Nothing of the run is touched: it is the same, to the
    bit, with and without.
    """

    #: What is logged, before ``_student`` and ``_teacher``.
    kind: Literal['rankme', 'lidar']

    def __init__(
        self,
        datamodule: LightningDataModule | None = None,
        every_n_epochs: int = 1,
        chips: int = 128,
        draws: int = 2,
    ) -> None:
        """Initialize a new callback.

        Args:
            datamodule: Of the chips; by default that of the run.
            every_n_epochs: Epochs from one look to the next.
            chips: Chips to look at, in each process; fewer where there are fewer.
            draws: Times that two views are drawn of each.

        Raises:
            ValueError: If a number is too small.
        """
        least = {'every_n_epochs': (every_n_epochs, 1), 'chips': (chips, 2), 'draws': (draws, 1)}  # fmt: skip
        for name, (value, lowest) in least.items():
            if value < lowest:
                raise ValueError(f'{name}={value}: give a number of {lowest} or more')
        self.datamodule, self.every_n_epochs = datamodule, every_n_epochs
        self.chips, self.draws = chips, draws

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Set the chips up, before anything is trained."""
        if stage != 'fit':
            return
        if self.datamodule is None and trainer.datamodule is None:
            name = type(self).__name__
            raise ValueError(
                f'datamodule=None and the run has none: fit with a datamodule, or give {name}(datamodule=...)'
            )
        set_up(self.datamodule or trainer.datamodule, trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Look, and log the ranks, where it is time."""
        if (trainer.current_epoch + 1) % self.every_n_epochs:
            return
        with undisturbed(pl_module):
            values = {
                f'{self.kind}_{name}': rank_of(self.kind, torch.cat(parts))
                if parts
                else math.nan
                for name, parts in self._look(trainer, pl_module).items()
            }
        pl_module.log_dict(values, sync_dist=True)

    def _look(self, trainer: Any, task: Any) -> dict[str, list[Tensor]]:
        """Features of the chips' views, batch by batch."""
        datamodule = self.datamodule or trainer.datamodule
        loader = copy.copy(datamodule).val_dataloader()
        loader = loader[0] if isinstance(loader, list | tuple) and loader else loader
        found: dict[str, list[Tensor]] = {'student': [], 'teacher': []}
        for index, batch in enumerate(delivered(datamodule, loader, task)):
            left = self.chips - sum(map(len, found['student']))
            features = view_features(trainer, task, batch, index, left, self.draws)
            for name, seen in features.items():
                found[name].append(seen)
            if left <= len(batch['image']):
                break
        if not found['student']:
            rank_zero_warn(
                f'{type(datamodule).__name__} gives no chips to validate on, so {self.kind} is NaN: give '
                f'{type(self).__name__}(datamodule=...) with some, or leave it out'
            )
        return found


class RankMe(OnlineRank):
    """Logs ``rankme_student`` and ``rankme_teacher``, see :func:`~cmid_geo.metrics.effective_rank.rank_me`."""

    kind = 'rankme'


class LiDAR(OnlineRank):
    """Logs ``lidar_student`` and ``lidar_teacher``, see :func:`~cmid_geo.metrics.effective_rank.lidar`."""

    kind = 'lidar'
