# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Schedules as pure functions of the optimizer step, and the length of a run in steps."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from lightning.fabric.utilities.data import sized_len
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from .checks import refuse
from .types import Hyperparameters

Schedule = Literal['cosine', 'linear', 'step', 'plateau']

#: Parts of a run after which the rate falls to a tenth: epochs 8 and 11 of 12.
MILESTONES = (8 / 12, 11 / 12)


def cosine(progress: float, start: float, end: float) -> float:
    """Half a cosine from *start* to *end*.

    Args:
        progress: Part of the way, from 0 to 1.
        start: Value at 0.
        end: Value at 1.

    Returns:
        The value on the way.
    """
    done = min(max(progress, 0.0), 1.0)
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2


def momentum_at(step: int, total: int, start: float = 0.996, end: float = 1.0) -> float:
    """Momentum of the teacher at an optimizer step.

    Args:
        step: Steps taken so far.
        total: Steps of the whole run.
        start: Momentum at the first step.
        end: Momentum at the end.

    Returns:
        The momentum, on a cosine.
    """
    return cosine(step / max(total, 1), start, end)


def temperature_at(
    step: int, warmup: int, start: float = 0.04, end: float = 0.07
) -> float:
    """Temperature of the teacher's assignments at an optimizer step.

    Args:
        step: Steps taken so far.
        warmup: Steps of the linear rise.
        start: Temperature at the first step.
        end: Temperature after the rise.

    Returns:
        The temperature.
    """
    return start + (end - start) * min(step / max(warmup, 1), 1.0)


def factor_at(
    step: int, total: int, warmup: int, schedule: Schedule, end: float = 0.0
) -> float:
    """Factor of the learning rate at an optimizer step.

    Args:
        step: Steps taken so far.
        total: Steps of the whole run.
        warmup: Steps of the linear warm-up from a hundredth, on top of the schedule.
        schedule: 'cosine' and 'linear' fall to *end*; 'step' falls to a tenth after 8/12 of the
            run, and again after 11/12.
        end: Factor at the end.

    Returns:
        A factor from 0 to 1.
    """
    done = min(step / max(total, 1), 1.0)
    falls = {
        'cosine': cosine(done, 1.0, end),
        'linear': 1 - (1 - end) * done,
        'step': 0.1 ** sum(done >= milestone for milestone in MILESTONES),
    }
    warm = 0.01 + 0.99 * step / warmup if step < warmup else 1.0
    return falls[schedule] * warm


def count_steps(trainer: Trainer, cure: str = '') -> int:
    """Count the optimizer steps of a run, whose data are then set up.

    Args:
        trainer: Of the run.
        cure: What else to do about a run without end, for the message.

    Returns:
        The number of steps.

    Raises:
        ValueError: If the run has no end.
    """
    total = trainer.estimated_stepping_batches
    if math.isinf(total):
        raise ValueError(
            'the run has no end (max_steps=-1, max_epochs=-1): schedules need one, set '
            f'Trainer(max_epochs=...) or Trainer(max_steps=...){cure}'
        )
    # With max_steps alone nothing has asked for the data yet
    trainer.fit_loop.setup_data()
    return int(total)


def length_of(name: str, given: Hyperparameters, epoch: float, task: str) -> int:
    """Length of a schedule: its steps where given, else its epochs times their steps.

    Args:
        name: Of the schedule, such as 'warmup'.
        given: Hyperparameters of the task: ``<name>_steps`` and ``<name>_epochs``.
        epoch: Optimizer steps of an epoch; infinite where not known.
        task: Name of the task, for the message.

    Returns:
        The number of steps.

    Raises:
        ValueError: If only epochs are given, and their length is not known.
    """
    steps, epochs = given[f'{name}_steps'], given[f'{name}_epochs']
    if steps is not None:
        return int(steps)
    if epochs and math.isinf(epoch):
        raise ValueError(
            f'{name}_epochs={epochs} but the length of an epoch is not known: '
            f'give steps, {task}({name}_steps=...)'
        )
    # A last, smaller group of accumulated batches is a step too
    return round(epochs * math.ceil(epoch)) if epochs else 0


#: Of a queue, in time constants of the teacher, above which keys can be told by their age.
MOST_SPAN = 0.6


def tell_span(given: Hyperparameters, batch: int) -> None:
    """Say for how long the queue keeps keys, in time constants of the teacher, and warn if it is too long.

    A teacher that moved on since a key was made tells it from fresh ones by its age: then the global
    loss falls though images are hardly told apart, which ``fresh_rank`` shows. The paper's span is 0.51.

    Args:
        given: ``queue_size`` and ``momentum``.
        batch: Images a step, over all processes and accumulated batches.
    """
    size, momentum = given['queue_size'], given['momentum']
    steps, constant = size / (2 * batch), 1 / max(1 - momentum, 1e-12)
    span = steps / constant
    told = (
        f'the queue holds the keys of {steps:.4g} steps, {span:.2f} time constants of the teacher '
        f'(1 / (1 - momentum) = {constant:.4g} steps)'
    )
    if span <= MOST_SPAN:
        rank_zero_info(told)
        return
    fewer = max(int(MOST_SPAN * constant * 2 * batch), 1)
    # Rounded up, or who follows it would be warned again
    digits = max(4, 1 - math.floor(math.log10(MOST_SPAN / steps)))
    slower = math.ceil((1 - MOST_SPAN / steps) * 10**digits) / 10**digits
    rank_zero_warn(
        f'{told}: above {MOST_SPAN} the loss tells keys by their age, not by what images show (watch '
        f'fresh_rank; chance is 0.5). Use CMID(queue_size={fewer}) or less, CMID(momentum={slower:.{digits}f}) or '
        'more, or a larger batch'
    )


def warmup_faults(warmup: int, total: int, task: str) -> list[str]:
    """Tell if the warm-up is longer than the run.

    Args:
        warmup: Steps of the warm-up.
        total: Steps of the run.
        task: Name of the task, for the message.

    Returns:
        A sentence, or none.
    """
    fault = (
        f'the warm-up of {warmup} steps is longer than the run of {total}: lower '
        f'{task}(warmup_epochs=...) or {task}(warmup_steps=...), or raise Trainer(max_epochs=...)'
    )
    return [fault] if warmup > total else []


@dataclass(frozen=True)
class Horizon:
    """A run of pretraining and its schedules in optimizer steps.

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
    def of(cls, trainer: Any, given: Hyperparameters) -> 'Horizon':
        """Read a run's length off its Trainer and data.

        Args:
            trainer: Sets up the training data if they are not yet.
            given: Hyperparameters of the task.

        Returns:
            The run in steps.

        Raises:
            ValueError: If the run has no end, its epochs no length, or for all of these at once:
                if it is shorter than the warm-up, its epochs smaller than the queue, or than what
                the datamodule needs.
        """
        total = count_steps(trainer)
        loader, accumulated = trainer.train_dataloader, trainer.accumulate_grad_batches
        each, length = _batch_size(loader) * trainer.world_size, sized_len(loader)
        # Without a whole batch: as many as there will be when that is mended
        batches = trainer.num_training_batches or 1
        epochs = trainer.max_epochs or 0
        if not trainer.num_training_batches and epochs > 0:
            total = min(limit for limit in (epochs, trainer.max_steps) if limit > 0)
        horizon = cls(
            total=total,
            warmup=length_of('warmup', given, batches / accumulated, 'CMID'),
            temperature=length_of('teacher_temp', given, batches / accumulated, 'CMID'),
            batch=each * accumulated,
            chips=math.inf if length is None else max(length, 1) * each,
        )
        faults = _data_faults(trainer, each)
        # One batch to try the wiring is no run to judge by
        if not trainer.fast_dev_run:
            faults += warmup_faults(horizon.warmup, total, 'CMID')
            faults += horizon.queue_faults(given['queue_size'])
        refuse(faults)
        return horizon

    def queue_faults(self, size: int) -> list[str]:
        """Tell if a queue would hold a chip's own keys.

        Args:
            size: Of the queue.

        Returns:
            A sentence, or none.
        """
        keys = 2 * self.chips
        fault = (
            f'queue_size={size} is more than the {keys:.0f} keys of an epoch, two for each of '
            f'{self.chips:.0f} chips: a chip would meet its own old keys as negatives. Lower '
            f'CMID(queue_size={keys:.0f}) or raise SceneDataModule(length={math.ceil(size / 2)})'
        )
        return [fault] if size > keys else []


def _data_faults(trainer: Trainer, batch: int) -> list[str]:
    """Tell what is in the way of training on the data, as their datamodule knows it."""
    told = getattr(getattr(trainer, 'datamodule', None), 'faults', None)
    faults = told(trainer.world_size) if callable(told) else []
    if not faults and not trainer.num_training_batches:
        faults = [
            f'the data hold no whole batch of {batch} chips: lower the batch size, or give more data'
        ]
    return faults


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
