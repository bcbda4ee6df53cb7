# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Losses of labelled images or pixels, some of which may have no label."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

#: Label that no data set uses, where nothing is to be ignored.
NOTHING = -1000


class LabelledCrossEntropy(nn.Module):
    """Cross-entropy averaged over what has a label; 0 where nothing has.

    torch's own is NaN there, and a chip without a labelled pixel is common.
    """

    weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | Sequence[float] | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        """Initialize a new LabelledCrossEntropy instance.

        Args:
            weight: Of each class.
            ignore_index: Label that does not count.
            label_smoothing: Share of the target spread over all classes, in [0, 1].
        """
        super().__init__()
        weight = None if weight is None else torch.as_tensor(weight, dtype=torch.float)
        self.register_buffer('weight', weight)
        self.ignore_index = NOTHING if ignore_index is None else ignore_index
        self.label_smoothing = label_smoothing

    def forward(
        self, scores: Float[Tensor, 'batch classes *rest'], labels: Tensor
    ) -> Float[Tensor, '']:
        """Compute the loss.

        Args:
            scores: Of each class, unbounded.
            labels: Whole numbers (batch, *rest), or shares of each class like *scores*.

        Returns:
            The mean, weighted by the labels' classes where there are weights.
        """
        if labels.is_floating_point():
            return F.cross_entropy(
                scores, labels, self.weight, label_smoothing=self.label_smoothing
            )
        total = F.cross_entropy(
            scores, labels, self.weight, ignore_index=self.ignore_index, reduction='sum',
            label_smoothing=self.label_smoothing,
        )  # fmt: skip
        known = labels != self.ignore_index
        if self.weight is None:
            count = known.sum()
        else:
            count = (self.weight[labels.where(known, 0)] * known).sum()
        return total / count.clamp_min(1e-6 if self.weight is not None else 1)


class LabelledBinaryCrossEntropy(nn.Module):
    """Binary cross-entropy averaged over what has a label; 0 where nothing has."""

    pos_weight: Tensor | None

    def __init__(
        self, pos_weight: Tensor | float | None = None, ignore_index: int | None = None
    ) -> None:
        """Initialize a new LabelledBinaryCrossEntropy instance.

        Args:
            pos_weight: Weight of what is true.
            ignore_index: Label that does not count.
        """
        super().__init__()
        weight = None if pos_weight is None else torch.as_tensor(pos_weight).float()
        self.register_buffer('pos_weight', weight)
        self.ignore_index = NOTHING if ignore_index is None else ignore_index

    def forward(
        self, scores: Float[Tensor, '*shape'], labels: Tensor
    ) -> Float[Tensor, '']:
        """Compute the loss.

        Args:
            scores: Unbounded, above 0 for what is held true.
            labels: 0 or 1, of the same shape.

        Returns:
            The mean.
        """
        known = labels != self.ignore_index
        truth = labels.where(known, 0).to(scores)
        each = F.binary_cross_entropy_with_logits(
            scores, truth, pos_weight=self.pos_weight, reduction='none'
        )
        return (each * known).sum() / known.sum().clamp_min(1)


class WhereLabelled(nn.Module):
    """Another loss, and 0 where nothing has a label: many are NaN there."""

    def __init__(self, criterion: nn.Module, ignore_index: int | None) -> None:
        """Initialize a new WhereLabelled instance.

        Args:
            criterion: Of scores and labels.
            ignore_index: Label that does not count.
        """
        super().__init__()
        self.criterion = criterion
        self.ignore_index = NOTHING if ignore_index is None else ignore_index

    def forward(
        self, scores: Float[Tensor, 'batch *shape'], labels: Tensor
    ) -> Float[Tensor, '']:
        """Compute the loss.

        Args:
            scores: As the loss takes them.
            labels: Likewise.

        Returns:
            The loss.
        """
        if (labels == self.ignore_index).all():
            return 0 * scores.sum()
        return self.criterion(scores, labels)
