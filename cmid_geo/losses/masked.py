# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Cross-entropy, focal and overlap losses of labels of which some are not known.

All are 0, with gradient 0, where nothing is known: chips without a label are common. The losses of
SMP and torch are NaN there, or count what is to be ignored.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from .autocast import in_full_precision

DenseLossName = Literal['ce', 'bce', 'dice', 'jaccard', 'focal', 'ce+dice']


class DenseLoss(nn.Module):
    """A loss over the known pixels of a batch: 0, with gradient 0, where none is known.

    One map of logits means two classes, and its sigmoid is the probability of class 1.
    """

    class_weights: Tensor | None
    pos_weight: Tensor | None

    def __init__(
        self,
        name: DenseLossName,
        class_weights: Tensor | None = None,
        pos_weight: Tensor | None = None,
    ) -> None:
        """Initialize a new DenseLoss instance.

        Args:
            name: 'ce' and 'bce' are cross-entropy, 'dice' and 'jaccard' soft overlap, 'focal' is
                cross-entropy that neglects easy pixels, and 'ce+dice' the sum of both.
            class_weights: Weight of each class in cross-entropy.
            pos_weight: Weight of class 1 in cross-entropy of one map of logits.
        """
        super().__init__()
        self.names = name.replace('bce', 'ce').split('+')
        self.register_buffer('class_weights', class_weights, False)
        self.register_buffer('pos_weight', pos_weight, False)

    @in_full_precision
    def forward(
        self,
        logits: Float[Tensor, 'batch maps height width'],
        labels: Int[Tensor, 'batch height width'],
        known: Bool[Tensor, 'batch height width'],
    ) -> Float[Tensor, '']:
        """Compute the loss.

        Args:
            logits: One map, or one a class.
            labels: Classes; anything where not known.
            known: True where a label counts.

        Returns:
            The loss.
        """
        losses = {
            'ce': lambda: masked_cross_entropy(
                logits, labels, known, self.class_weights, self.pos_weight
            ),
            'focal': lambda: ratio(
                focal(logits, labels.where(known, 0)) * known, known
            ),
            'dice': lambda: overlap_loss(logits, labels, known),
            'jaccard': lambda: overlap_loss(logits, labels, known, jaccard=True),
        }
        return torch.stack([losses[name]() for name in self.names]).sum()


class LabelledCrossEntropy(nn.Module):
    """Cross-entropy averaged over what has a label; 0 where nothing has."""

    weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | Sequence[float] | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        """Initialize a new LabelledCrossEntropy instance.

        Args:
            weight: Weight of each class.
            ignore_index: Label that does not count.
            label_smoothing: Probability of the target spread over all classes, in [0, 1].
        """
        super().__init__()
        weight = None if weight is None else torch.as_tensor(weight, dtype=torch.float)
        self.register_buffer('weight', weight)
        self.ignore_index, self.label_smoothing = ignore_index, label_smoothing

    def forward(
        self, logits: Float[Tensor, 'batch classes *rest'], labels: Tensor
    ) -> Float[Tensor, '']:
        """Compute the loss.

        Args:
            logits: One a class.
            labels: Classes (batch, *rest), or probabilities of each class like *logits*.

        Returns:
            The mean, weighted by the labels' classes where there are weights.
        """
        options: Any = {'label_smoothing': self.label_smoothing}
        if labels.is_floating_point():
            return F.cross_entropy(logits, labels, self.weight, **options)
        known = is_known(labels, self.ignore_index)
        return masked_cross_entropy(logits, labels, known, self.weight, **options)


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
        self.ignore_index = ignore_index

    def forward(
        self, logits: Float[Tensor, '*shape'], labels: Tensor
    ) -> Float[Tensor, '']:
        """Compute the loss.

        Args:
            logits: Above 0 for what is held true.
            labels: 0 or 1, of the same shape.

        Returns:
            The mean.
        """
        known = is_known(labels, self.ignore_index)
        maps = logits[:, None]
        return masked_cross_entropy(maps, labels, known, pos_weight=self.pos_weight)


class WhereLabelled(nn.Module):
    """Another loss, and 0 where nothing has a label: many are NaN there."""

    def __init__(self, criterion: nn.Module, ignore_index: int | None) -> None:
        """Initialize a new WhereLabelled instance.

        Args:
            criterion: Of logits and labels.
            ignore_index: Label that does not count.
        """
        super().__init__()
        self.criterion, self.ignore_index = criterion, ignore_index

    def forward(
        self, logits: Float[Tensor, 'batch *shape'], labels: Tensor
    ) -> Float[Tensor, '']:
        """Compute the loss.

        Args:
            logits: As the loss takes them.
            labels: As the loss takes them.

        Returns:
            The loss.
        """
        if is_known(labels, self.ignore_index).any():
            return self.criterion(logits, labels)
        return 0 * logits.sum()


def is_known(
    labels: Shaped[Tensor, '*shape'], ignore_index: int | None
) -> Bool[Tensor, '*shape']:
    """Find the labels that count.

    Args:
        labels: Of any kind.
        ignore_index: Label that does not count; None if all do.

    Returns:
        True where a label counts.
    """
    if ignore_index is None:
        return torch.ones_like(labels, dtype=torch.bool)
    return labels != ignore_index


@in_full_precision
def cross_entropy(
    logits: Float[Tensor, 'batch maps *rest'],
    labels: Shaped[Tensor, 'batch *rest'],
    class_weights: Float[Tensor, ' classes'] | None = None,
    pos_weight: Float[Tensor, '...'] | None = None,
    label_smoothing: float = 0.0,
) -> Float[Tensor, 'batch *rest']:
    """Cross-entropy of each label.

    Args:
        logits: One map, or one a class.
        labels: Classes.
        class_weights: Of each class.
        pos_weight: Of class 1 where there is one map.
        label_smoothing: Probability spread over all classes, in [0, 1], where there are several.

    Returns:
        -log of the label's probability, times its weight.
    """
    if logits.shape[1] > 1:
        return F.cross_entropy(
            logits, labels.long(), class_weights,
            reduction='none', label_smoothing=label_smoothing,
        )  # fmt: skip
    weight = None if class_weights is None else class_weights[labels.long()]
    return F.binary_cross_entropy_with_logits(
        logits[:, 0], labels.to(logits), weight, pos_weight=pos_weight, reduction='none'
    )


def masked_cross_entropy(
    logits: Float[Tensor, 'batch maps *rest'],
    labels: Shaped[Tensor, 'batch *rest'],
    known: Bool[Tensor, 'batch *rest'],
    class_weights: Float[Tensor, ' classes'] | None = None,
    pos_weight: Float[Tensor, '...'] | None = None,
    label_smoothing: float = 0.0,
) -> Float[Tensor, '']:
    """Cross-entropy averaged over the known labels.

    Args:
        logits: One map, or one a class.
        labels: Classes; anything where not known.
        known: True where a label counts.
        class_weights: Of each class; the mean divides by their sum, as torch's does.
        pos_weight: Of class 1 where there is one map; as torch's it raises the loss instead.
        label_smoothing: Probability spread over all classes, in [0, 1], where there are several.

    Returns:
        The mean; 0 where nothing is known.
    """
    labels = labels.where(known, 0)
    entropy = cross_entropy(logits, labels, class_weights, pos_weight, label_smoothing)
    weight = known if class_weights is None else class_weights[labels.long()] * known
    return ratio(entropy * known, weight)


def focal(
    logits: Float[Tensor, 'batch maps height width'],
    labels: Int[Tensor, 'batch height width'],
    gamma: float = 2.0,
) -> Float[Tensor, 'batch height width']:
    r"""Focal loss of each pixel, :math:`-(1 - p)^\gamma \log p` of the label's probability p.

    Args:
        logits: One map, or one a class.
        labels: Classes.
        gamma: How much easy pixels are neglected; 0 gives cross-entropy.

    Returns:
        The loss (Lin et al. 2017, https://arxiv.org/abs/1708.02002).
    """
    entropy = cross_entropy(logits, labels)
    return (1 - torch.exp(-entropy)) ** gamma * entropy


def overlap_loss(
    logits: Float[Tensor, 'batch maps height width'],
    labels: Int[Tensor, 'batch height width'],
    known: Bool[Tensor, 'batch height width'],
    jaccard: bool = False,
) -> Float[Tensor, '']:
    r"""One minus the soft overlap of probabilities p and labels y, a mean over classes.

    Dice is :math:`2\sum py / (\sum p + \sum y)`, Jaccard
    :math:`\sum py / (\sum p + \sum y - \sum py)`; sums run over the known pixels of the batch.
    Classes without a known pixel in the batch are left out: there is nothing to overlap with.

    Args:
        logits: One map, for which class 1 alone counts, or one a class.
        labels: Classes.
        known: True where a label counts.
        jaccard: Whether to take Jaccard's.

    Returns:
        The loss in [0, 1].
    """
    if logits.shape[1] == 1:
        probability, truth = logits.sigmoid(), (labels == 1)[:, None]
    else:
        probability = logits.softmax(dim=1)
        classes = torch.arange(logits.shape[1], device=labels.device)
        truth = labels[:, None] == classes[:, None, None]
    counts = known[:, None].to(logits)
    probability, truth = probability * counts, truth.to(logits) * counts
    both, area = (probability * truth).sum((0, 2, 3)), truth.sum((0, 2, 3))
    union = probability.sum((0, 2, 3)) + area
    above, below = (both, union - both) if jaccard else (2 * both, union)
    # Where no pixel is known, 0 / 0 would spoil the gradient too
    seen = (area > 0).to(logits)
    return ratio((1 - above / below.clamp_min(1e-6)) * seen, seen)


def ratio(
    above: Shaped[Tensor, '*shape'], below: Shaped[Tensor, '*shape']
) -> Float[Tensor, '']:
    """Sum of one by the sum of the other, of weights at least 0; 0 where both are 0."""
    total = below.sum()
    # Without a branch, which would wait for the device
    return above.sum() / total.where(total > 0, 1)


def weighted_mean(
    values: Float[Tensor, ' batch'], weight: Float[Tensor, ' batch'] | None
) -> Float[Tensor, '']:
    """Mean over samples by weights at least 0, all 1 by default; 0 where all are 0."""
    return values.mean() if weight is None else ratio(values * weight, weight)
