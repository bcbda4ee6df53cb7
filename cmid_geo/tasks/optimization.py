# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Optimizers of tasks, and how their learning rate follows a schedule."""

from typing import Any, Literal

from lightning.pytorch.utilities.types import OptimizerLRScheduler
from timm.optim import create_optimizer_v2
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau
from torchgeo.tasks import BaseTask

from .checks import refuse
from .schedules import Schedule, count_steps, factor_at, length_of, warmup_faults

#: Names of optimizers, and what timm calls them; its 'sgd' is Nesterov's.
OPTIMIZERS = {'adamw': 'adamw', 'adan': 'adan', 'sgd': 'momentum'}
OptimizerName = Literal['adamw', 'adan', 'sgd']


def make_optimizer(
    network: nn.Module,
    name: OptimizerName,
    lr: float,
    weight_decay: float,
    momentum: float = 0.9,
    layer_decay: float | None = None,
    **options: Any,
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
        **options: Others of the optimizer's class, such as ``betas``.

    Returns:
        The optimizer; the rates of its groups are final.

    Raises:
        ValueError: If nothing is to be trained.
    """
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError(
            'no parameter is to be trained: set freeze_backbone=False or freeze_decoder=False'
        )
    optimizer = create_optimizer_v2(
        network, opt=OPTIMIZERS[name], lr=lr, weight_decay=weight_decay, momentum=momentum,
        layer_decay=layer_decay, **options,
    )  # fmt: skip
    for group in optimizer.param_groups:
        # timm leaves this to schedulers of its own
        group['lr'] = lr * group.get('lr_scale', 1.0)
    return optimizer


def follow_schedule(
    optimizer: Optimizer, schedule: Schedule, total: int, warmup: int, end: float
) -> OptimizerLRScheduler:
    """Let an optimizer's learning rate follow a schedule, by step.

    Args:
        optimizer: With its highest learning rate.
        schedule: See :func:`~cmid_geo.tasks.schedules.factor_at`.
        total: Steps of the whole run.
        warmup: Steps of the linear warm-up.
        end: Factor of the learning rate at the end.

    Returns:
        Both, as Lightning takes them.
    """
    constants = total, warmup, schedule, end
    follow = LambdaLR(optimizer, lambda step: factor_at(step, *constants))
    by_step: Any = {'scheduler': follow, 'interval': 'step'}
    return {'optimizer': optimizer, 'lr_scheduler': by_step}


def configure_recipe(
    task: BaseTask, network: nn.Module, layer_decay: float | None = None
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
    trainer: Any = task.trainer
    given = task.hparams
    lr = given['lr']
    optimizer = make_optimizer(
        network, given['optimizer'], lr, given['weight_decay'], given['momentum'], layer_decay
    )  # fmt: skip
    if given['schedule'] == 'plateau':
        mode = 'min' if task.mode == 'min' else 'max'
        watched = ReduceLROnPlateau(optimizer, mode, patience=given['patience'])
        by_metric: Any = {
            'scheduler': watched,
            'monitor': task.monitor,
            # Other epochs have no metric
            'frequency': trainer.check_val_every_n_epoch or 1,
        }
        return {'optimizer': optimizer, 'lr_scheduler': by_metric}
    total = count_steps(trainer, ", or choose schedule='plateau'")
    name = type(task).__name__
    epoch = trainer.num_training_batches / trainer.accumulate_grad_batches
    warmup = length_of('warmup', given, epoch, name)
    if not trainer.fast_dev_run:
        refuse(warmup_faults(warmup, total, name))
    end = min(given['lr_end'] / lr, 1.0) if lr else 0.0
    return follow_schedule(optimizer, given['schedule'], total, warmup, end)
