# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Resuming a stopped run so that it ends as if it had not been stopped."""

import random
import warnings
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from lightning.pytorch.strategies.model_parallel import ModelParallelStrategy
from torchgeo.tasks import BaseTask

from ..callbacks.run_folder import RunFolder
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
    #: Latest values by name of a run that was restored, until training goes on.
    metrics: Mapping[str, float] = MappingProxyType({})

    def configure_callbacks(self) -> Any:
        """Guard the checkpoints and stop at signals with one, unless the user gave such callbacks.

        They are called in this order, after all that save.
        """
        given = {type(each) for each in cast(Any, self.trainer).callbacks}
        return [kind() for kind in (RunFolder, StopOnSignal) if kind not in given]

    def on_fit_start(self) -> None:
        """Agree on a seed, where none was restored."""
        for needless in NEEDLESS:
            warnings.filterwarnings('ignore', needless)
        if self.seed is None:
            self.seed = self.trainer.strategy.broadcast(torch.initial_seed())

    def on_train_start(self) -> None:
        """Take up accumulated gradients and metrics, and do what was left of the last step and epoch."""
        parameters = dict(self.named_parameters())
        for name, gradient in (self.gradients or {}).items():
            parameters[name].grad = gradient.to(parameters[name].device)
        self.gradients = None
        metrics = {name: torch.tensor(each) for name, each in self.metrics.items()}
        self.trainer.callback_metrics.update(metrics)
        self.metrics = {}
        if self.trainer.fit_loop.is_resuming:
            _catch_up(self.trainer.fit_loop)

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
        """Keep the seed, metrics and, between two steps of the optimizer, accumulated gradients.

        Args:
            checkpoint: To be saved.
        """
        checkpoint['seed'] = self.seed
        if self._trainer is None:
            return
        trainer = self.trainer
        latest = trainer.callback_metrics.items()
        checkpoint['metrics'] = {name: float(each) for name, each in latest}
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
        """Take over seed, metrics and accumulated gradients.

        Args:
            checkpoint: To be restored.
        """
        self.seed = checkpoint.get('seed')
        self.gradients = checkpoint.get('gradients')
        self.metrics = checkpoint.get('metrics', {})


def _catch_up(loop: Any) -> None:
    """Do what an undisturbed run does between a checkpoint and its next batch.

    Checkpoints are saved before the validation that is due at their batch, and before a plateau
    schedule sees the epoch's metric. Lightning leaves out both in a restored run; from an epoch's
    last batch it goes on in the next epoch, but does not begin it (its issues 18060 and 19815).
    """
    steps, epochs = (
        loop.epoch_loop,
        (loop.epoch_progress.current, loop.epoch_progress.total),
    )
    # Old checkpoints have none
    measured = bool(loop.trainer.callback_metrics)
    # Else a plateau schedule would not see the epoch in which the run goes on; not of the inner
    # loops, which have batches to skip
    loop._restarting = steps.restarted_on_last and not measured
    if steps.restarted_on_train_batch_end and epochs[0].completed == epochs[0].ready:
        # Lightning counted the epoch as done
        for each in epochs:
            each.processed -= 1
            each.completed -= 1
        steps.restarting = False
        steps.batch_progress.increment_completed()
        steps.on_advance_end(loop._data_fetcher)
        loop.on_advance_end()
        loop.reset_restart_stage()
        steps.reset_restart_stage()
    elif steps.restarted_on_train_batch_end:
        # Lightning will count the step itself
        stepped = steps._batches_that_stepped
        steps.val_loop.restarting = False
        steps.on_advance_end(loop._data_fetcher)
        steps._batches_that_stepped = stepped
    elif loop.resumed_on_epoch_end or loop.restarted_on_epoch_end:
        epochs[0].completed = epochs[0].processed - 1
        if measured:
            steps.update_lr_schedulers('epoch', update_plateau_schedulers=True)
        # With max_steps Lightning would end the epoch once more
        steps.restarting = False
        for each in epochs:
            each.completed = each.processed
        loop.reset_restart_stage()
        steps.reset_restart_stage()


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
