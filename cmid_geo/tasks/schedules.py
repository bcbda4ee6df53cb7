# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""How long a run is."""

import math
from dataclasses import dataclass
from typing import Any

from .checks import refuse
from .types import Hyperparameters


@dataclass(frozen=True)
class Horizon:
    """A run and its schedules in optimizer steps.

    Attributes:
        total: Steps of the whole run.
        warmup: Steps over which the learning rate rises.
        temperature: Steps over which the teacher's temperature rises.
        batch: Images a step, over all processes and accumulated batches.
        chips: Images an epoch, over all processes.
    """

    total: int
    warmup: int
    temperature: int
    batch: int
    chips: float

    @classmethod
    def of(cls, trainer: Any, parameters: Hyperparameters) -> 'Horizon':
        """Read a run's length off its Trainer and data.

        Args:
            trainer: Sets up the training data if they are not yet.
            parameters: The task's.

        Returns:
            The run in steps.

        Raises:
            ValueError: If the run has no end, its epochs no length, or for all of these at once:
                if it is shorter than the warm-up, its epochs smaller than the queue, or than what
                the datamodule needs.
        """
        total = trainer.estimated_stepping_batches
        if math.isinf(total):
            raise ValueError(
                'the run has no end (max_steps=-1, max_epochs=-1): schedules need one, '
                'set Trainer(max_epochs=...) or Trainer(max_steps=...)'
            )
        # With max_steps alone nothing has asked for the data yet
        trainer.fit_loop.setup_data()
        accumulated = trainer.accumulate_grad_batches
        loader: Any = trainer.train_dataloader
        each = _batch_size(loader) * trainer.world_size
        # Without a whole batch: as many as there will be when that is mended
        batches = trainer.num_training_batches or 1
        if not trainer.num_training_batches and trainer.max_epochs > 0:
            limits = (trainer.max_epochs, trainer.max_steps)
            total = min(limit for limit in limits if limit > 0)
        epoch = batches / accumulated
        horizon = cls(
            total=int(total),
            warmup=_steps('warmup', parameters, epoch),
            temperature=_steps('teacher_temp', parameters, epoch),
            batch=each * accumulated,
            chips=(_length(loader) or 1) * each,
        )
        faults = _data_faults(trainer, each)
        # One batch to try the wiring is no run to judge by
        if not trainer.fast_dev_run:
            faults += horizon.faults(parameters)
        refuse(faults)
        return horizon

    def faults(self, parameters: Hyperparameters) -> list[str]:
        """Tell which schedules and queues do not fit the run.

        Args:
            parameters: The task's.

        Returns:
            A sentence each.
        """
        faults = []
        if self.warmup > self.total:
            faults.append(
                f'the warm-up of {self.warmup} steps is longer than the run of {self.total}: lower '
                'CMID(warmup_epochs=...) or CMID(warmup_steps=...), or raise Trainer(max_epochs=...)'
            )
        queue, keys = parameters['queue_size'], 2 * self.chips
        if queue > keys:
            faults.append(
                f'queue_size={queue} is more than the {keys:.0f} keys of an epoch, two for each of '
                f'{self.chips:.0f} chips: a chip would meet its own old keys as negatives. Lower '
                f'CMID(queue_size={keys:.0f}) or raise SceneDataModule(length={math.ceil(queue / 2)})'
            )
        return faults


def _data_faults(trainer: Any, batch: int) -> list[str]:
    """Tell what is in the way of training on the data, as their datamodule knows it."""
    told = getattr(trainer.datamodule, 'faults', None)
    faults = told(trainer.world_size) if callable(told) else []
    if not trainer.num_training_batches and not faults:
        faults = [
            f'the data hold no whole batch of {batch} chips: lower the batch size, or give more data'
        ]
    return faults


def _steps(schedule: str, parameters: Hyperparameters, epoch: float) -> int:
    """Length of a schedule: its steps where given, else its epochs times their steps."""
    steps = parameters[f'{schedule}_steps']
    if steps is not None:
        return int(steps)
    epochs = parameters[f'{schedule}_epochs']
    if epochs and math.isinf(epoch):
        raise ValueError(
            f'{schedule}_epochs={epochs} but the length of an epoch is not known: '
            f'give steps, CMID({schedule}_steps=...)'
        )
    # A last, smaller group of accumulated batches is a step too
    return round(epochs * math.ceil(epoch)) if epochs else 0


def _batch_size(loader: object) -> int:
    """Images a batch of a data loader, also of one with a batch sampler."""
    for source in (loader, getattr(loader, 'batch_sampler', None)):
        size = getattr(source, 'batch_size', None)
        if isinstance(size, int):
            return size
    raise ValueError(
        f'the batch size of a {type(loader).__name__} is not known, but the learning rate scales '
        'with it: train with one torch DataLoader that has a batch_size'
    )


def _length(loader: Any) -> float:
    """Batches a data loader gives; infinite where it does not tell."""
    try:
        return float(len(loader))
    except TypeError:
        return math.inf
