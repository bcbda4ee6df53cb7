# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""What batches of rotated boxes must be, and how they become targets."""

from typing import Any

from torch import Tensor

from ..ops.rotated_boxes import boxes_from_corners, canonical

#: Sides in pixels up to which a box has no area: corners on a line are not exactly so.
NOTHING = 1e-3


def check_boxes(boxes: Tensor, labels: Tensor, num_classes: int) -> None:
    """Refuse boxes and labels of an image that cannot be.

    Args:
        boxes: (N, 5) or (N, 8).
        labels: (N).
        num_classes: Number of classes, the background included.

    Raises:
        ValueError: If a box is not finite, has no area or neither 5 nor 8 values, if there are
            not as many labels, or if a label is no class.
    """
    if boxes.ndim != 2 or boxes.shape[1] not in (5, 8) or len(labels) != len(boxes):
        raise ValueError(
            f'bbox of shape {tuple(boxes.shape)} with label of shape {tuple(labels.shape)}: give (N, 8) '
            'corners or (N, 5) of (cx, cy, w, h, angle), and N labels; (0, 8) where there is nothing'
        )
    if not boxes.isfinite().all():
        bad = boxes[~boxes.isfinite().all(1)][0].tolist()
        raise ValueError(
            f'bbox holds {bad}: all numbers must be finite, correct the labels'
        )
    sides = rectangles(boxes)[:, 2:4] if boxes.shape[1] == 8 else boxes[:, 2:4]
    if (sides <= NOTHING).any():
        bad = boxes[(sides <= NOTHING).any(1)][0].tolist()
        raise ValueError(f'bbox holds {bad}, of no area: leave such boxes out')
    off = (labels < 1) | (labels >= num_classes)
    if off.any():
        raise ValueError(
            f'label holds {sorted(set(labels[off].tolist()))[:5]} but num_classes={num_classes} knows 1 '
            f'to {num_classes - 1}, 0 is the background: raise num_classes=, or count labels from 1'
        )


def rectangles(boxes: Tensor) -> Tensor:
    """Bring boxes to their canonical form.

    Args:
        boxes: (N, 8) of four corners, or (N, 5) of (cx, cy, w, h, angle).

    Returns:
        (N, 5).
    """
    if boxes.shape[1] == 5:
        return canonical(boxes.float())
    return boxes_from_corners(boxes.float().reshape(-1, 4, 2))


def targets_of(batch: Any) -> list[dict[str, Tensor]]:
    """What a batch holds to learn and to measure by.

    Args:
        batch: See :class:`~cmid_geo.tasks.oriented.OrientedDetection`.

    Returns:
        For each image ``boxes`` (N, 5), ``labels`` (N) and, where given, ``difficult`` (N).

    Raises:
        ValueError: If there are no boxes or labels.
    """
    if not {'bbox', 'label'} <= set(batch):
        raise ValueError(
            f"the batch holds {list(batch)}: OrientedDetection learns and measures by 'bbox' and 'label'"
        )
    targets = [
        {'boxes': rectangles(boxes), 'labels': labels}
        for boxes, labels in zip(batch['bbox'], batch['label'], strict=True)
    ]
    for target, hard in zip(targets, batch.get('difficult', ())):
        target['difficult'] = hard
    return targets
