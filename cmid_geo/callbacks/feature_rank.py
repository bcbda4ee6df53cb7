# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Effective rank of student's and teacher's features on fixed chips, once a validation."""

import math
from typing import Any, Literal

import torch
from jaxtyping import Float
from lightning.pytorch import Callback
from torch import Tensor

from ..metrics.effective_rank import lidar, rank_me

#: What is logged of each network.
RANKS: tuple[Literal['rankme', 'lidar'], ...] = ('rankme', 'lidar')


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
        features = view_features(trainer, pl_module, batch, batch_idx, left, self.draws)
        for name, seen in features.items():
            self._found[name].append(seen)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log the ranks of what was taken in."""
        for name, parts in self._found.items():
            if not parts:
                continue
            ranks = {
                f'{kind}_{name}': rank_of(kind, torch.cat(parts)) for kind in RANKS
            }
            pl_module.log_dict(ranks, sync_dist=True)
        self._found = {}


def view_features(
    trainer: Any, task: Any, batch: Any, seed: int, most: int, draws: int
) -> dict[str, Float[Tensor, 'chips views dim']]:
    """Pooled features of views of chips, by student and teacher; random numbers are put back.

    Args:
        trainer: Of the run, whose precision is used.
        task: That is trained, in evaluation mode.
        batch: With ``image`` in [0, 1], and ``valid`` where given.
        seed: Of the views.
        most: Chips to look at, the first of the batch.
        draws: Times that two views are drawn of each.

    Returns:
        Features of each network by its name, on the CPU.
    """
    chips, valid = batch['image'][:most], batch.get('valid')
    valid = None if valid is None else valid[:most]
    devices = [task.device] if task.device.type == 'cuda' else []
    views = []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        for _ in range(draws):
            views += task.augmentations(chips, valid)
    features = {}
    with trainer.precision_plugin.forward_context():
        for name in ('student', 'teacher'):
            network = getattr(task, name).backbone
            seen = [network(view.image).mean((2, 3)) for view in views]
            # Their ranks are calculated in double precision, which not every device has
            features[name] = torch.stack(seen, dim=1).float().cpu()
    return features


def rank_of(
    kind: Literal['rankme', 'lidar'], features: Float[Tensor, 'chips views dim']
) -> float:
    """Effective rank of features.

    Args:
        kind: 'rankme' or 'lidar'.
        features: Of the views of chips.

    Returns:
        The rank; NaN of fewer than two chips and of features that are not finite: all processes log,
        or those that do would wait for the others.
    """
    if len(features) < 2 or not features.isfinite().all():
        return math.nan
    if kind == 'rankme':
        return float(rank_me(features.flatten(0, 1)))
    return float(lidar(features))
