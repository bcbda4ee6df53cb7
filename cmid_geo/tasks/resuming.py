# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Resuming a stopped run so that it ends as if it had not been stopped."""

import random
import warnings
from typing import Any

import numpy as np
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from lightning.pytorch.strategies.model_parallel import ModelParallelStrategy
from torchgeo.tasks import BaseTask

from ..callbacks.stop_on_signal import StopOnSignal
from .types import Batch, Checkpoint

#: Warnings of Lightning: the first is of a hook that only we have, the second is not true of our data.
NEEDLESS = (
    '.*overridden `on_before_batch_transfer`',
    '.*your dataloader is not resumable',
)


class Resumable(BaseTask):
    """A task whose restored runs end bit-identical to runs that were left alone (on a CPU).

    Random numbers are functions of seed, process, epoch and batch, not of what was drawn before.
    Where in its data a run stopped is known to our datamodules, see
    :class:`~cmid_geo.datasets.order.TrainingOrder`; others begin the epoch again.
    """

    #: Of all that is drawn in training; that of a run which was restored.
    seed: int | None = None
    #: Of accumulated batches, by parameter, until training goes on.
    gradients: dict[str, torch.Tensor] | None = None

    def configure_callbacks(self) -> Any:
        """Stop at signals with a checkpoint, unless the user gave a callback for that."""
        given: Any = self.trainer
        listens = any(isinstance(each, StopOnSignal) for each in given.callbacks)
        return [] if listens else [StopOnSignal()]

    def on_fit_start(self) -> None:
        """Agree on a seed, where none was restored."""
        for needless in NEEDLESS:
            warnings.filterwarnings('ignore', needless)
        if self.seed is None:
            self.seed = self.trainer.strategy.broadcast(torch.initial_seed())

    def on_train_start(self) -> None:
        """Take up accumulated gradients, and the next epoch where one had ended.

        Restored from the last batch of an epoch, Lightning takes a run to be still inside it, does
        not count the next epoch, and repeats one when the run is restored again (its issues 18060
        and 19815).
        """
        parameters = dict(self.named_parameters())
        for name, gradient in (self.gradients or {}).items():
            parameters[name].grad = gradient.to(parameters[name].device)
        self.gradients = None
        loop = self.trainer.fit_loop
        counted = loop.epoch_progress.current
        if loop.restarted_mid_epoch and counted.completed == counted.ready:
            loop.reset_restart_stage()

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Seed all that is drawn for a training batch, from here to the end of its step.

        Neither validation nor a stop in between changes it.

        Args:
            batch: Left as it is.
            dataloader_idx: Not used.

        Returns:
            The batch.
        """
        if self.trainer.training and self.seed is not None:
            batches = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
            place = self.global_rank, self.trainer.current_epoch, batches
            seed_all(self.seed, *place)
        return batch

    def on_save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Keep the seed and, between two steps of the optimizer, the accumulated gradients.

        Args:
            checkpoint: To be saved.
        """
        checkpoint['seed'] = self.seed
        if self._trainer is None:
            return
        trainer = self.trainer
        progress: Any = trainer.fit_loop.epoch_loop.batch_progress
        done = progress.current.processed % trainer.accumulate_grad_batches
        if trainer.training and done and not progress.is_last_batch:
            # Processes average at the optimizer's step: the mean of all serves each
            checkpoint['gradients'] = {
                name: trainer.strategy.reduce(parameter.grad.clone())
                for name, parameter in self.named_parameters()
                if parameter.grad is not None
            }

    def on_load_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Take over seed and accumulated gradients.

        Args:
            checkpoint: To be restored.
        """
        self.seed = checkpoint.get('seed')
        self.gradients = checkpoint.get('gradients')


def check_strategy(strategy: object, task: str) -> None:
    """Refuse strategies that take networks apart.

    Args:
        strategy: Of the Trainer.
        task: Name of the task, for the message.

    Raises:
        ValueError: If it is such a one.
    """
    apart = (FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy)
    if isinstance(strategy, apart):
        raise ValueError(  # noqa: TRY004
            f'{type(strategy).__name__} shares the parameters of a network out, but {task} moves and '
            "saves them whole: train with Trainer(strategy='ddp')"
        )


def seed_all(*key: int) -> None:
    """Seed torch, NumPy and Python from several numbers.

    Args:
        *key: Numbers that are at least 0; others seed independently.
    """
    first, second = map(int, np.random.SeedSequence(key).generate_state(2))
    torch.manual_seed(first << 32 | second)
    np.random.seed(first)
    random.seed(second)
