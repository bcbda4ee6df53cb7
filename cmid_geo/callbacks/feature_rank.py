# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Effective rank of student's and teacher's features on fixed chips, once a validation."""

import math
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor

from ..metrics.effective_rank import lidar, rank_me


class FeatureRank(Callback):
    """Logs RankMe and LiDAR of both backbones' pooled features.

    ``rankme_student``, ``lidar_student`` and those of the teacher, on the first chips of validation
    and the same views of them each time; without validation nothing is logged. Networks judge whole
    views in evaluation mode, and the run's random numbers are put back: a run is the same, to the
    bit, with and without.
    """

    def __init__(self, chips: int = 128, draws: int = 2) -> None:
        """Initialize a new FeatureRank instance.

        Args:
            chips: Chips to look at, in each process; fewer where validation has fewer.
            draws: Times that two views are drawn of each.
        """
        self.chips, self.draws = chips, draws
        self._found: dict[str, list[Tensor]] = {}

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin anew."""
        self._found = {'student': [], 'teacher': []}

    @torch.no_grad()
    def on_validation_batch_end(
        self,
        trainer: Any,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Take in the features of a batch, until there are enough."""
        left = self.chips - sum(map(len, self._found['student']))
        if trainer.sanity_checking or left <= 0:
            return
        chips, valid = batch['image'][:left], batch.get('valid')
        valid = None if valid is None else valid[:left]
        devices = [pl_module.device] if pl_module.device.type == 'cuda' else []
        views = []
        with torch.random.fork_rng(devices):
            torch.manual_seed(batch_idx)
            for _ in range(self.draws):
                views += pl_module.augmentations(chips, valid)
        with trainer.precision_plugin.forward_context():
            for name, found in self._found.items():
                network = getattr(pl_module, name).backbone
                seen = [network(view.image).mean((2, 3)) for view in views]
                # Their ranks are calculated in double precision, which not every device has
                found.append(torch.stack(seen, dim=1).float().cpu())

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log the ranks of what was taken in."""
        for name, parts in self._found.items():
            if not parts:
                continue
            features, values = torch.cat(parts), [math.nan] * 2
            # All processes log, or those that do would wait for the others
            if len(features) > 1 and features.isfinite().all():
                ranks = rank_me(features.flatten(0, 1)), lidar(features)
                values = [float(each) for each in ranks]
            named = dict(zip((f'rankme_{name}', f'lidar_{name}'), values))
            pl_module.log_dict(named, sync_dist=True)
        self._found = {}
