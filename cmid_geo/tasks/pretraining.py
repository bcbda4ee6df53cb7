# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Pretraining: value range, schedules, logs and callbacks beside the method."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from lightning.pytorch import Callback
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from ..callbacks.export_backbone import ExportBackbone
from ..callbacks.feature_rank import FeatureRank
from ..callbacks.loss_gradients import LossGradients
from ..callbacks.monitoring import CollapseAlarm, Throughput
from ..callbacks.nonfinite import StopOnNonFinite
from ..callbacks.online_ranks import OnlineRank
from ..callbacks.remember import Remember
from ..losses import (
    PrototypeLoss,
    entropy,
    fresh_rank,
    key_rank,
    pairwise_cosine,
    standard_deviation,
)
from ..models.encoder import Encoder
from ..models.teacher import KeyQueue
from ..ops.bands import find_bands
from ..ops.cells import CELL
from ..ops.value_range import normalize
from ..transforms.views import TwoViews, View, check_size, default_mean_std
from .base import Values
from .checks import check_batch, check_data, check_start
from .optimization import follow_schedule, make_optimizer
from .schedules import Horizon, momentum_at, tell_span, temperature_at
from .types import Batch

#: In the order of a comparison's losses.
LOSSES = ('reconstruction', 'global', 'local')


@dataclass(frozen=True)
class Comparison:
    """What came of comparing two views.

    Attributes:
        losses: Reconstruction, global and local loss.
        keys: The teacher's unit vectors of the first and the second view.
        embedding: The student's unit vectors of the first view.
        scores: The teacher's cosines with the prototypes, of the matched cells both ways.
        weight: Weight of each of those cells.
    """

    losses: Float[Tensor, '3']
    keys: Float[Tensor, '2 batch dim']
    embedding: Float[Tensor, 'batch dim']
    scores: Float[Tensor, 'cells prototypes']
    weight: Float[Tensor, ' cells']


class Pretraining(Values):
    """Values, schedules, logs and callbacks of :class:`~cmid_geo.tasks.CMID`."""

    ignore = ('weights', 'augmentations')
    learned = ('low', 'high', 'mean', 'std')
    monitor = 'train_loss'
    #: Whether it tells its datamodule's faults with its own, all at once.
    tells_faults = True

    student: Encoder
    teacher: Encoder
    queue: KeyQueue
    assign: PrototypeLoss
    augmentations: nn.Module
    local_augmentations: nn.Module | None
    #: Length of the run in steps; known once a Trainer has set up the data.
    horizon: Horizon | None = None

    # ------------------------------------------------------------------ values

    def configure_values(self) -> None:
        """Register the value range, until the data tell."""
        given = self.hparams
        mean, std = default_mean_std(given['in_channels'])
        self.register_values(given['mean'] or mean, given['std'] or std)
        self.prepare_augmentations()

    def setup(self, stage: str) -> None:
        """Refuse data that do not fit, and take over their value range before anything is restored."""
        if stage == 'fit':
            check_data(getattr(self.trainer, 'datamodule', None), self.hparams)
            self._prepare_networks()
        super().setup(stage)

    def _prepare_networks(self) -> None:
        """Lay networks out as the device is fastest with, before anything is sent there."""
        strategy, precision = self.trainer.strategy, self.trainer.precision
        device, backbone = strategy.root_device.type, self.student.backbone
        # On a CPU it pays in bfloat16 alone, and dilated convolutions are slower so
        pays_on_cpu = precision == 'bf16-mixed' and backbone.cell == CELL
        laid_out = device == 'cuda' or (device == 'cpu' and pays_on_cpu)
        if laid_out and backbone.convolutional:
            # See benchmarks/results/gpu.md and, for the CPU, pretraining.md
            self.to(memory_format=torch.channels_last)
        if self.hparams.get('compiled'):
            # In place: names of tensors, and so checkpoints, stay
            self.student.backbone.compile()
            self.teacher.backbone.compile()
        if isinstance(strategy, DDPStrategy):
            # The default would send the queue to all processes at each forward
            strategy._ddp_kwargs.setdefault('broadcast_buffers', False)

    def follow_bands(self, given: list[str], wanted: list[str], new: bool) -> None:
        """Refuse weights whose filters do not lie in the order of the data's bands."""
        places = find_bands(wanted, given)
        ordered = sorted(zip(places, wanted), key=lambda p: (p[0] is None, p[0] or 0))
        names = [name for _, name in ordered]
        check_start(
            given, wanted, f'read them in the order of the weights, SceneDataModule(bands={names})'
        )  # fmt: skip

    def share_values(self) -> None:
        """Use the values that were set up or restored, also on scenes new to a restored run."""
        self.prepare_augmentations()
        super().share_values()

    def prepare_augmentations(self) -> None:
        """Tell our augmentations the task's values, and where its backbone looks.

        Raises:
            ValueError: If their views do not divide into the task's cells.
        """
        backbone = self.student.backbone
        for views in (self.augmentations, self.local_augmentations):
            if isinstance(views, TwoViews):
                check_size(views.size, backbone.cell)
                views.cell, views.field_offset = backbone.cell, backbone.field_offset
                views.mean, views.std = self.mean, self.std

    @abstractmethod
    def compare(self, first: View, second: View) -> Comparison:
        """Compare two views by the losses of the method, without side effects.

        Args:
            first: The plain view.
            second: The strong view.

        Returns:
            The losses, and what went into them.
        """

    # ------------------------------------------------------------------ schedules

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Adan without decay of biases and norms; warm-up times cosine, by step."""
        given = self.hparams
        horizon = self.horizon = Horizon.of(self.trainer, given)
        rate = given['lr'] * horizon.batch / given['lr_batch_size']
        optimizer = make_optimizer(
            self, 'adan', rate, given['weight_decay'], betas=given['betas']
        )
        end = given['lr_end'] / rate
        return follow_schedule(optimizer, 'cosine', horizon.total, horizon.warmup, end)

    def teacher_momentum(self, step: int) -> float:
        """Weight of the old teacher in the new one, at an optimizer step."""
        start, end = self.hparams['momentum'], self.hparams['momentum_end']
        if self.horizon is None:
            return start
        return momentum_at(step, self.horizon.total, start, end)

    # A number that changes would make compilers compile again: they get a tensor
    @torch.compiler.disable
    def teacher_temp(self) -> Tensor:
        """Temperature of the teacher's assignments, at this step."""
        start, end = self.hparams['teacher_temp_start'], self.hparams['teacher_temp']
        if self.horizon is None:  # outside a fit the rise is over
            value = end
        else:
            value = temperature_at(self._step(), self.horizon.temperature, start, end)
        return self._fill(value)

    def weighted(self, losses: Float[Tensor, '3']) -> dict[str, Tensor]:
        """The three losses by name, each times its weight."""
        named = zip(LOSSES, losses)
        return {name: self.hparams[f'{name}_weight'] * loss for name, loss in named}

    def weigh(self, losses: Float[Tensor, '3']) -> Tensor:
        """Sum of the three losses by their weights."""
        first, *others = self.weighted(losses).values()
        return sum(others, first)

    def _step(self) -> int:
        return self.trainer.global_step if self._trainer is not None else 0

    # ------------------------------------------------------------------ steps beside training

    def forward(self, image: Tensor) -> Tensor:
        """Features (batch, dim, rows, cols) of chips (batch, bands, height, width) in [0, 1]."""
        source: Encoder = getattr(self, self.hparams['export_source'])
        return source.backbone(normalize(image, self.mean, self.std))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the three losses on views that are the same at each validation."""
        self._compare_fixed(batch, batch_idx, 'val')

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the three losses on views that are the same at each test."""
        self._compare_fixed(batch, batch_idx, 'test')

    def predict_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, 'batch dim']:
        """Features of whole chips, averaged over their cells."""
        image, valid = batch['image'], batch.get('valid')
        if valid is not None:
            # As in training the network sees the mean where there is no data
            image = image.where(valid.unsqueeze(-3), self.mean[:, None, None])
        return self(image).mean(dim=(2, 3))

    def _compare_fixed(self, batch: Batch, batch_idx: int, split: str) -> None:
        devices = [self.device] if self.device.type == 'cuda' else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(batch_idx)
            first, second = self.augmentations(batch['image'], batch.get('valid'))
        self.log_comparison(self.compare(first, second), split)

    def on_train_start(self) -> None:
        """Say how old the queue's keys become beside the teacher."""
        super().on_train_start()
        trainer: Any = self.trainer
        if self.horizon is not None and not trainer.fast_dev_run:
            tell_span(self.hparams, self.horizon.batch)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Refuse chips that are not what the task was made for, at the first of an epoch."""
        if batch_idx == 0:
            check_batch(batch, self.hparams['in_channels'])

    # ------------------------------------------------------------------ logs

    @torch.compiler.disable
    @torch.no_grad()
    def log_comparison(self, compared: Comparison, split: str) -> None:
        """Log losses, and in training all that tells how the run is doing.

        Args:
            compared: What came of comparing two views.
            split: 'train', 'val' or 'test'.
        """
        if self._trainer is None:
            return
        batch, training = len(compared.embedding), split == 'train'
        named = dict(zip(LOSSES, compared.losses))
        named['loss'] = self.weigh(compared.losses)
        values = {f'{split}_{name}': value for name, value in named.items()}
        self.log_dict(values, prog_bar=True, batch_size=batch, sync_dist=not training)
        if training:
            self.log_dict(self.diagnose(compared), batch_size=batch)
            ranks = {
                'key_rank': self._rank(compared),
                'fresh_rank': fresh_rank(compared.embedding, compared.keys[1]),
            }
            self.log_dict(ranks, prog_bar=True, batch_size=batch)

    def diagnose(self, compared: Comparison) -> dict[str, Tensor]:
        """Signs of health: what collapses would show in, and where the schedules are."""
        counted = compared.weight[:, None]
        assigned = self.assign.assign(compared.scores, self.teacher_temp())
        total = compared.weight.sum().clamp_min(1e-6)
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        return {
            'embedding_std': standard_deviation(compared.embedding),
            'embedding_cosine': pairwise_cosine(compared.embedding),
            'assignment_entropy': entropy((assigned * counted).sum(0) / total),
            'teacher_entropy': (entropy(assigned) * compared.weight).sum() / total,
            'global_chance': torch.log1p(self.queue.filled.float()),
            'teacher_momentum': self._fill(self.teacher_momentum(self._step())),
            'teacher_temp': self.teacher_temp(),
            'lr': self._fill(optimizer.param_groups[0]['lr']),
        }

    def _fill(self, value: float) -> Tensor:
        """Put a number on the device: a copy of it, as logging makes, would wait for that."""
        return torch.full((), value, device=self.device)

    def _rank(self, compared: Comparison) -> Tensor:
        query, key, queue = compared.embedding, compared.keys[1], self.queue
        return key_rank(query, key, queue.keys, queue.filled)

    def configure_callbacks(self) -> list[Callback]:
        """Gradients before memory moves, then what watches; all before any checkpoint is saved."""
        ours = (
            StopOnNonFinite, LossGradients, Remember, CollapseAlarm, Throughput, FeatureRank,
            ExportBackbone,
        )  # fmt: skip
        # Lightning would replace a user's own of the same class
        callbacks = cast(Any, self.trainer).callbacks
        given = {type(callback) for callback in callbacks}
        # They log the same by the same names
        if any(isinstance(callback, OnlineRank) for callback in callbacks):
            given.add(FeatureRank)
        kept = [kind() for kind in ours if kind not in given]
        return [*kept, *super().configure_callbacks()]
