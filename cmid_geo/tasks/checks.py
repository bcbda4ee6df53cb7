# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Checks of runs, data, batches and labels, as early as each can be made."""

from collections.abc import Sequence

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from ..ops.bands import find_bands, names_of
from .types import Hyperparameters


def check_data(datamodule: object, given: Hyperparameters) -> None:
    """Refuse a datamodule whose chips do not fit the task.

    Args:
        datamodule: May have a ``value_range`` and a ``patch_size``.
        given: Hyperparameters of the task.

    Raises:
        ValueError: If bands or sizes do not fit.
    """
    faults = []
    known = getattr(datamodule, 'value_range', None)
    if known is not None and len(known.low) > 1:
        faults += _band_faults(len(known.low), given['in_channels'], 'CMID')
    patch = getattr(datamodule, 'patch_size', None)
    sides = (patch,) if isinstance(patch, int) else tuple(patch or ())
    if sides and min(sides) < given['size']:
        faults.append(
            f'chips are {min(sides)} pixels but views need {given["size"]}: raise '
            'SceneDataModule(patch_size=...) or lower CMID(size=...)'
        )
    refuse(faults)


def refuse(faults: list[str]) -> None:
    """Refuse for all reasons at once: mended one by one, each would cost another start.

    Args:
        faults: A sentence each.

    Raises:
        ValueError: If there are any.
    """
    if len(faults) == 1:
        raise ValueError(faults[0])
    if faults:
        listed = '\n'.join(f'- {fault}' for fault in faults)
        raise ValueError(f'{len(faults)} things are in the way:\n{listed}')


def check_run(trainer: Trainer, stage: str, task: str) -> None:
    """Refuse a precision that tasks cannot work in, and a stage without data.

    Args:
        trainer: Of the run.
        stage: Either 'fit', 'validate', 'test' or 'predict'.
        task: Name of the task, for the message.

    Raises:
        ValueError: If so.
    """
    if trainer.precision in ('16-true', 'bf16-true'):
        mixed = str(trainer.precision).replace('true', 'mixed')
        raise ValueError(
            f'precision={trainer.precision!r}: {task} keeps weights and the raw values of its bands in '
            f'32 bits, which half precision would round; choose precision={mixed!r}'
        )
    verb = TrainerFn(stage).value
    loop = getattr(trainer, f'{verb}_loop')
    # Lightning asks the task itself for data where it was given none
    if loop._data_source.instance is trainer.lightning_module:
        raise ValueError(
            f'there is nothing to {verb} on: give --data, or in Python Trainer.{verb}(task, datamodule=...) or '
            'dataloaders=...'
        )


def check_bands(bands: int, expected: int, task: str = 'CMID') -> None:
    """Refuse another number of bands than the network takes.

    Args:
        bands: Number of bands of the data.
        expected: Number of bands of the network.
        task: Name of the task, for the message.

    Raises:
        ValueError: If they differ.
    """
    refuse(_band_faults(bands, expected, task))


def _band_faults(bands: int, expected: int, task: str) -> list[str]:
    """Tell if there are other bands than the network takes."""
    if bands == expected:
        return []
    fault = (
        f'the data have {bands} bands but {task}(in_channels={expected}): pass in_channels={bands}, '
        'or choose bands by bands= of the datamodule'
    )
    return [fault]


def check_names(
    known: Sequence[str | int], found: Sequence[str | int], task: str, where: str
) -> None:
    """Refuse bands of other names than a task knows, or in another order.

    Args:
        known: Names or positions that the task knows, in its order.
        found: Names or positions of as many bands, in theirs.
        task: Name of the task, for the message.
        where: Who has those bands, for the message.

    Raises:
        ValueError: If both name their bands, and not alike.

    Warns:
        UserWarning: If one of both does not, so that nobody can tell.
    """
    named = bool(names_of(known)), bool(names_of(found))
    if all(named):
        if find_bands(names_of(known), names_of(found)) != list(range(len(known))):
            raise ValueError(
                f'{where} has bands {list(found)} but {task} knows {list(known)}: give the same in the same '
                f'order, as by bands={list(known)} of the datamodule, or start a new task'
            )
    elif list(known) != list(found):
        rank_zero_warn(
            f'{where} has bands {list(found)} and {task} knows {list(known)}: positions stand for files that '
            'do not name their bands, which are taken in this order; choose them by bands= of the datamodule'
        )


def check_start(
    given: Sequence[str], wanted: Sequence[str], cure: str, sortable: bool = False
) -> bool:
    """Refuse data to whose bands the filters of other bands were given.

    Args:
        given: Names of the weights' bands, whose filters were taken in order.
        wanted: Names of the data's bands.
        cure: What to do, for the message.
        sortable: Whether filters of the same bands in another order can be sorted.

    Returns:
        Whether they are to be sorted.

    Raises:
        ValueError: If a band that the weights know has the filters of another one.

    Warns:
        UserWarning: If the weights know none of the bands.
    """
    places = find_bands(wanted, given)
    if not any(place is not None for place in places):
        rank_zero_warn(
            f'the weights are of bands {list(given)}, the data of {list(wanted)}: filters were taken in '
            'order'
        )
    # One band has the sum of all filters; more than there are have them over and over
    others = [p not in (None, i % len(given)) for i, p in enumerate(places)]
    crossed = len(wanted) > 1 and any(others)
    alike = len(wanted) == len(given) and None not in places
    if crossed and not (alike and sortable):
        raise ValueError(
            f'the weights are of bands {list(given)}, whose filters were taken in order, but the data are of '
            f'{list(wanted)}: {cure}'
        )
    return crossed


def check_batch(batch: object, bands: int, task: str = 'CMID') -> None:
    """Refuse chips that are not in [0, 1], or have other bands.

    Args:
        batch: With ``image`` and optionally ``valid``.
        bands: Number of bands of the network.
        task: Name of the task, for the message.

    Raises:
        ValueError: If a value is off.
    """
    if not isinstance(batch, dict) or 'image' not in batch:
        found = list(batch) if isinstance(batch, dict) else type(batch).__name__
        raise ValueError(
            f"the batch holds {found}: {task} reads 'image', and 'valid' where given"
        )
    image, valid = batch['image'], batch.get('valid')
    check_bands(image.shape[-3], bands, task)
    seen = image if valid is None else image.where(valid.unsqueeze(-3), 0.5)
    low, high = (value.item() for value in torch.aminmax(seen.float()))
    # A resampled or rounded value may stand out a little; NaN compares as False
    if not (low >= -0.1 and high <= 1.1):
        raise ValueError(
            f'chips hold values from {low:.4g} to {high:.4g} but {task} takes [0, 1]: use '
            'SceneDataModule, or let a TorchGeo datamodule only scale: dm.aug = AugmentationSequential('
            'Normalize(mean=0, std=scale), data_keys=None, keepdim=True) of kornia.augmentation'
        )


def check_classes(
    labels: Tensor, num_classes: int, ignore_index: int | None, name: str
) -> None:
    """Refuse labels that are no class.

    Args:
        labels: Whole numbers of any shape.
        num_classes: Number of classes.
        ignore_index: Label that is not learned, which may be any number.
        name: What to call the labels.

    Raises:
        ValueError: If a label is no class and not ignored.
    """
    off = (labels < 0) | (labels >= num_classes)
    if ignore_index is not None:
        off &= labels != ignore_index
    if off.any():
        found = sorted({int(label) for label in labels[off].unique()[:5]})
        raise ValueError(
            f'{name} holds {found} but num_classes={num_classes} knows 0 to {num_classes - 1}: raise '
            'num_classes=, correct the labels, or leave one out with ignore_index='
        )


def check_masks(image: Tensor, mask: Tensor, maps: int = 1) -> None:
    """Refuse masks that do not fit the images.

    Args:
        image: (B, ..., H, W).
        mask: Labels.
        maps: How many a pixel may have, each a map.

    Raises:
        ValueError: If it is neither (B, H, W) nor (B, maps, H, W).
    """
    plain = (len(image), *image.shape[-2:])
    if mask.shape not in (plain, (plain[0], maps, *plain[1:])):
        raise ValueError(
            f'mask has shape {tuple(mask.shape)} but images {tuple(image.shape)}: give one label a '
            'pixel, (B, H, W)'
        )


def check_labelling(given: Hyperparameters) -> None:
    """Refuse kinds of labels, losses, names and numbers that do not go together.

    Args:
        given: Hyperparameters of a task.

    Raises:
        ValueError: If they do not.
    """
    task, loss = given['task'], given['loss']
    needed = {'multiclass': 'num_classes', 'multilabel': 'num_labels'}.get(task)
    if needed and not given[needed]:
        raise ValueError(f'task={task!r} needs {needed}=: give the number of classes')
    if loss in ('ce', 'bce') and (loss == 'ce') != (task == 'multiclass'):
        right = 'ce' if task == 'multiclass' else 'bce'
        raise ValueError(
            f"loss={loss!r} does not go with task={task!r}: choose loss={right!r}, or 'dice'"
        )
    names = given['labels']
    # Of the two of a binary task the one that is true may stand alone
    counts = (given[needed],) if needed else (1, 2)
    if names is not None and len(names) not in counts:
        raise ValueError(
            f'labels={list(names)} are {len(names)} names but task={task!r} has '
            f'{" or ".join(map(str, counts))}: give one a class'
        )
