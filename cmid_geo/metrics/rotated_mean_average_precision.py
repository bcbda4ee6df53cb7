# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Mean average precision of rotated boxes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Int8
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from ..ops.rotated_boxes import rotated_iou

#: Rotated IoU above which a detection may be a hit: 0.5, 0.55, ..., 0.95.
THRESHOLDS = tuple(0.5 + 0.05 * step for step in range(10))

#: What a detection is at a threshold.
MISS, HIT, IGNORED = 0, 1, 2


class RotatedMAP(Metric):
    """Mean average precision by the IoU of the boxes themselves.

    Of an image and class, each detection belongs to the object that it overlaps most; the best
    one above the threshold is a hit, all others are misses; those of difficult objects count
    neither way, and neither do these objects. The average precision is the area under the curve
    of precision, made to fall, over recall (VOC's since 2010), and for ``map_50_11_points`` the mean
    of that curve at the recalls 0, 0.1, ..., 1 (VOC's of 2007): so do DOTA's own evaluation and mmrotate
    by default, and so the figures of papers. Classes without objects are left out of means.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    scores: list[Tensor]
    labels: list[Tensor]
    verdicts: list[Tensor]
    counts: Tensor

    def __init__(self, num_classes: int, **options: Any) -> None:
        """Initialize a new RotatedMAP instance.

        Args:
            num_classes: Number of classes, the background, which is class 0, included.
            options: Of torchmetrics' Metric.
        """
        super().__init__(**options)
        for name in ('scores', 'labels', 'verdicts'):
            self.add_state(name, default=[], dist_reduce_fx='cat')
        counts = torch.zeros(num_classes, dtype=torch.long)
        self.add_state('counts', default=counts, dist_reduce_fx='sum')

    def update(
        self,
        predictions: Sequence[dict[str, Tensor]],
        targets: Sequence[dict[str, Tensor]],
    ) -> None:
        """Take in images.

        Args:
            predictions: For each image ``boxes`` (N, 5), ``scores`` (N) and ``labels`` (N).
            targets: For each image ``boxes`` (M, 5), ``labels`` (M) and, where known,
                ``difficult`` (M) bool.

        Raises:
            ValueError: If there are not as many of both.
        """
        if len(predictions) != len(targets):
            raise ValueError(
                f'{len(predictions)} predictions but {len(targets)} targets: give one of each an image'
            )
        for found, wanted in zip(predictions, targets, strict=True):
            difficult = wanted.get('difficult')
            if difficult is None:
                difficult = torch.zeros_like(wanted['labels'], dtype=torch.bool)
            difficult = difficult.to(self.counts.device, torch.bool)
            clear = wanted['labels'].to(self.counts.device)[~difficult]
            self.counts += clear.bincount(minlength=len(self.counts))
            self.scores.append(found['scores'].float())
            self.labels.append(found['labels'])
            self.verdicts.append(_judge_image(found, wanted, difficult))

    def compute(self) -> dict[str, Tensor]:
        """Compute what was taken in so far.

        Returns:
            ``map_50_11_points``, DOTA's measure; the areas ``map_50``, ``map_75`` and ``map``, the mean
            over IoU 0.5 to 0.95; NaN without objects. ``map_50_per_class``, areas of the
            (num_classes - 1), NaN for classes without.
        """
        counts = self.counts
        shape = len(counts), len(THRESHOLDS)
        table = torch.full(shape, torch.nan, device=counts.device)
        points = table[:, 0].clone()
        if len(self.scores):
            scores, labels = dim_zero_cat(self.scores), dim_zero_cat(self.labels)
            verdicts = dim_zero_cat(self.verdicts)
            for label in counts.nonzero()[:, 0]:
                own, objects = labels == label, int(counts[label])
                found = average_precision(scores[own], verdicts[own], objects)
                table[label], points[label] = found
        return {
            'map': table.nanmean(),
            'map_50': table[:, 0].nanmean(),
            'map_50_11_points': points.nanmean(),
            'map_75': table[:, 5].nanmean(),
            'map_50_per_class': table[1:, 0],
        }


def _judge_image(
    found: dict[str, Tensor], wanted: dict[str, Tensor], difficult: Tensor
) -> Tensor:
    """Verdict on each detection of an image at each threshold."""
    labels = found['labels']
    verdicts = labels.new_full((len(labels), len(THRESHOLDS)), MISS, dtype=torch.int8)
    for label in labels.unique():
        own, objects = (labels == label).nonzero()[:, 0], wanted['labels'] == label
        own = own[found['scores'][own].argsort(descending=True, stable=True)]
        boxes = found['boxes'][own]
        overlaps = rotated_iou(boxes, wanted['boxes'][objects].to(boxes))
        verdicts[own] = judge(overlaps, difficult[objects])
    return verdicts


def judge(
    overlaps: Float[Tensor, 'found objects'], difficult: Tensor
) -> Int8[Tensor, 'found thresholds']:
    """Verdicts on the detections of a class in an image.

    Args:
        overlaps: IoU of detections, the best first, with objects.
        difficult: (objects) bool.

    Returns:
        :data:`HIT`, :data:`MISS` or :data:`IGNORED` at each threshold.
    """
    shape = len(overlaps), len(THRESHOLDS)
    verdicts = overlaps.new_full(shape, MISS, dtype=torch.int8)
    if not overlaps.numel():
        return verdicts
    best, match = overlaps.max(1)
    over = best[:, None] > best.new_tensor(THRESHOLDS)
    own = match[:, None] == torch.arange(overlaps.shape[1], device=match.device)
    # (found, objects, thresholds): who claims which object, and who is the first to
    claims = own[..., None] & over[:, None]
    first = (claims & (claims.cumsum(0) == 1)).any(1)
    verdicts[first] = HIT
    verdicts[over & difficult[match][:, None]] = IGNORED
    return verdicts


def average_precision(
    scores: Float[Tensor, 'found'],
    verdicts: Int[Tensor, 'found thresholds'],
    count: int,
) -> tuple[Float[Tensor, 'thresholds'], Float[Tensor, '']]:
    """Average precision of the detections of a class.

    torchmetrics' curves do not make precision fall, and its MeanAveragePrecision takes COCO's 101
    recalls and boxes that are upright.

    Args:
        scores: Confidences of all detections of a class.
        verdicts: What they are at each threshold.
        count: Number of objects that are not difficult, above 0.

    Returns:
        Values in [0, 1], areas under the falling curve of precision over recall at each threshold; and the
        mean of that curve at the recalls 0, 0.1, ..., 1, at the first threshold.
    """
    if not len(scores):
        nothing = scores.new_zeros(verdicts.shape[1])
        return nothing, nothing[0]
    verdicts = verdicts[scores.argsort(descending=True, stable=True)]
    hit = verdicts == HIT
    hits, seen = hit.cumsum(0), (verdicts != IGNORED).cumsum(0)
    # Made to fall: the best at as many hits or more
    precision = (hits / seen.clamp(min=1)).flip(0).cummax(0).values.flip(0)
    # By DOTA's own numbers in double precision, of which 3 * 0.1 is more than 0.3
    needed = np.searchsorted(np.arange(count + 1) / count, np.arange(0.0, 1.1, 0.1))
    reached = hits[:, :1] >= torch.from_numpy(needed).to(hits.device)
    # Recall rises by one object at each hit
    area = (hit * precision).sum(0) / count
    return area, (reached * precision[:, :1]).amax(0).mean()
