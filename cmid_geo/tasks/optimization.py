# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Optimizers and schedules that downstream tasks are trained by."""

import math
from typing import Any, Literal, cast

from lightning.pytorch.utilities.types import OptimizerLRScheduler
from timm.optim import create_optimizer_v2
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from .types import Hyperparameters

#: Names of optimizers, and what timm calls them; its 'sgd' is Nesterov's.
OPTIMIZERS = {'adamw': 'adamw', 'adan': 'adan', 'sgd': 'momentum'}
OptimizerName = Literal['adamw', 'adan', 'sgd']
Schedule = Literal['cosine', 'linear', 'step', 'plateau']

#: Shares of a run after which the rate falls to a tenth: epochs 8 and 11 of 12.
MILESTONES = (8 / 12, 11 / 12)


def make_optimizer(
    network: nn.Module,
    name: OptimizerName,
    lr: float,
    weight_decay: float,
    momentum: float = 0.9,
    layer_decay: float | None = None,
) -> Optimizer:
    """Make an optimizer that decays no biases and norms.

    Args:
        network: All that is trained; parameters without gradient are left out.
        name: 'adamw', 'adan' or 'sgd'.
        lr: Learning rate.
        weight_decay: On all parameters but biases and norms.
        momentum: Of 'sgd'.
        layer_decay: Each layer learns this many times as fast as the one behind it, in (0, 1];
            only for whole networks of timm, which know the order of their layers.

    Returns:
        The optimizer; the rates of its groups are final.

    Raises:
        ValueError: If nothing is to be trained.
    """
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError(
            'no parameter is to be trained: set freeze_backbone=False or freeze_decoder=False'
        )
    options: dict[str, Any] = {'momentum': momentum} if name == 'sgd' else {}
    optimizer = create_optimizer_v2(
        network, opt=OPTIMIZERS[name], lr=lr, weight_decay=weight_decay, layer_decay=layer_decay,
        **options,
    )  # fmt: skip
    for group in optimizer.param_groups:
        # timm leaves this to schedulers of its own
        group['lr'] = lr * group.get('lr_scale', 1.0)
    return optimizer


def factor_at(
    step: int, total: int, warmup: int, schedule: Schedule, end: float = 0.0
) -> float:
    """Share of the learning rate at an optimizer step.

    Args:
        step: Steps taken so far.
        total: Steps of the whole run.
        warmup: Steps of the linear warm-up from a hundredth, on top of the schedule.
        schedule: 'cosine' and 'linear' fall to *end*; 'step' falls to a tenth after 8/12 of the
            run, and again after 11/12.
        end: Share at the end.

    Returns:
        A factor from 0 to 1.
    """
    done = min(step / max(total, 1), 1.0)
    falls = {
        'cosine': end + (1 - end) * (1 + math.cos(math.pi * done)) / 2,
        'linear': 1 - (1 - end) * done,
        'step': 0.1 ** sum(done >= milestone for milestone in MILESTONES),
    }
    warm = 0.01 + 0.99 * step / warmup if step < warmup else 1.0
    return falls[schedule] * warm


def configure_recipe(
    task: Any, network: nn.Module, layer_decay: float | None = None
) -> OptimizerLRScheduler:
    """Make optimizer and schedule of a task by its hyperparameters.

    Args:
        task: With ``lr``, ``optimizer``, ``weight_decay``, ``momentum``, ``schedule``,
            ``lr_end``, ``warmup_epochs``, ``warmup_steps`` and ``patience``.
        network: What is trained.
        layer_decay: See :func:`make_optimizer`.

    Returns:
        Both, as Lightning takes them.

    Raises:
        ValueError: If the run has no end, or is shorter than the warm-up.
    """
    given = task.hparams
    optimizer = make_optimizer(
        network, given['optimizer'], given['lr'], given['weight_decay'], given['momentum'],
        layer_decay,
    )  # fmt: skip
    if given['schedule'] == 'plateau':
        watched = ReduceLROnPlateau(optimizer, task.mode, patience=given['patience'])
        plan: dict[str, Any] = {'scheduler': watched, 'monitor': task.monitor}
    else:
        total, warmup = _length(task.trainer, given)
        end = given['lr_end'] / given['lr'] if given['lr'] else 0.0

        def factor(step: int) -> float:
            return factor_at(step, total, warmup, given['schedule'], min(end, 1.0))

        plan = {'scheduler': LambdaLR(optimizer, factor), 'interval': 'step'}
    return cast(OptimizerLRScheduler, {'optimizer': optimizer, 'lr_scheduler': plan})


def _length(trainer: Any, given: Hyperparameters) -> tuple[int, int]:
    """Steps of a run and of its warm-up."""
    total = trainer.estimated_stepping_batches
    if math.isinf(total):
        raise ValueError(
            'the run has no end (max_steps=-1, max_epochs=-1): schedules need one, set '
            "Trainer(max_epochs=...) or Trainer(max_steps=...), or choose schedule='plateau'"
        )
    warmup = given['warmup_steps']
    if warmup is None:
        # With max_steps alone nothing has asked for the data yet
        trainer.fit_loop.setup_data()
        epoch = math.ceil(
            trainer.num_training_batches / trainer.accumulate_grad_batches
        )
        warmup = round(given['warmup_epochs'] * epoch)
    if warmup > total and not trainer.fast_dev_run:
        raise ValueError(
            f'the warm-up of {warmup} steps is longer than the run of {total}: lower warmup_epochs= or '
            'warmup_steps=, or raise Trainer(max_epochs=...)'
        )
    return int(total), int(warmup)
