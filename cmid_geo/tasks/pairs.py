# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""What batches of two dates must hold."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from .downstream import check_classes


def check_pairs(image: Tensor) -> None:
    """Refuse images that are no pairs.

    Args:
        image: Of a batch.

    Raises:
        ValueError: If it is not (batch, 2, bands, height, width).
    """
    if image.ndim != 5 or image.shape[1] != 2:
        raise ValueError(
            f'image has shape {tuple(image.shape)} but change is seen between two dates: give '
            '(batch, 2, bands, height, width)'
        )


def check_masks(
    image: Tensor, mask: Tensor, num_classes: int | None, ignore_index: int | None
) -> None:
    """Refuse masks that do not fit the images, and labels that do not exist.

    Args:
        image: (batch, ..., height, width).
        mask: Labels.
        num_classes: Number of classes; None for change or none.
        ignore_index: Label that is not learned.

    Raises:
        ValueError: If a shape or a label is off.
    """
    plain = (len(image), *image.shape[-2:])
    if mask.shape not in (plain, (plain[0], 1, *plain[1:])):
        raise ValueError(
            f'mask has shape {tuple(mask.shape)} but images {tuple(image.shape)}: give one label a '
            'pixel, (batch, height, width)'
        )
    if num_classes is not None:
        check_classes(mask, num_classes, ignore_index, 'mask')
        return
    off = (mask != 0) & (mask != 1)
    if ignore_index is not None:
        off &= mask != ignore_index
    if off.any():
        raise ValueError(
            f'mask holds {mask[off].unique()[:5].tolist()} but binary change is 0 or 1: read masks of '
            '0 and 255 with binary=True, leave a label out with ignore_index=, or set '
            "task='multiclass'"
        )


def known_pixels(batch: dict[str, Any]) -> Bool[Tensor, 'batch height width']:
    """Where both dates hold data.

    Args:
        batch: With ``image``, and ``valid`` of both dates or of each.

    Returns:
        True where they do; everywhere without ``valid``.
    """
    valid = batch.get('valid')
    if valid is None:
        return torch.ones_like(batch['image'][:, 0, 0], dtype=torch.bool)
    return valid.all(dim=1) if valid.ndim == 4 else valid


def check_choices(
    task: str,
    num_classes: int | None,
    labels: Sequence[str] | None,
    pos_weight: Any,
    class_weights: Any,
    num_labels: int | None = None,
) -> None:
    """Refuse arguments that do not go together.

    Args:
        task: 'binary' or 'multiclass'.
        num_classes: Number of classes.
        labels: Names of the classes.
        pos_weight: Weight of change.
        class_weights: Weights of the classes.
        num_labels: Number of labels, of which this task has none.

    Raises:
        ValueError: If there are too few classes, or names or weights of others.
    """
    classes = 2
    if num_labels is not None:
        raise ValueError(
            f"num_labels={num_labels} with task={task!r}: change has no task='multilabel', leave it out"
        )
    if task == 'multiclass':
        if num_classes is None or num_classes < 2:
            raise ValueError(
                f"num_classes={num_classes} with task='multiclass': give the number of classes, no "
                'change among them, at least 2'
            )
        classes = num_classes
        if pos_weight is not None:
            raise ValueError(
                f"pos_weight={pos_weight} with task='multiclass': it weighs the one class of 'binary', "
                'give class_weights= instead'
            )
    elif num_classes is not None:
        raise ValueError(
            f"num_classes={num_classes} with task='binary', which has one map: leave it out, or set "
            "task='multiclass'"
        )
    for name, values in (('labels', labels), ('class_weights', class_weights)):
        if values is not None and len(values) != classes:
            raise ValueError(
                f'{name} has {len(values)} entries for {classes} classes: give one a class'
            )
