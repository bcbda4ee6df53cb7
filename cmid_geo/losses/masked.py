# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Losses of a label for every pixel, of which some are not known."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

DenseLossName = Literal['ce', 'bce', 'dice', 'jaccard', 'focal', 'ce+dice']


class DenseLoss(nn.Module):
    """A loss over the known pixels of a batch: 0, with gradient 0, where none is known.

    One map of scores means two classes, and its sigmoid is the probability of class 1.
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
            pos_weight: Weight of class 1 in cross-entropy of one map of scores.
        """
        super().__init__()
        self.names = tuple(name.split('+'))
        self.register_buffer('class_weights', class_weights, False)
        self.register_buffer('pos_weight', pos_weight, False)

    def forward(
        self,
        scores: Float[Tensor, 'batch maps height width'],
        labels: Int[Tensor, 'batch height width'],
        known: Bool[Tensor, 'batch height width'],
    ) -> Float[Tensor, '']:
        """Compute the loss.

        Args:
            scores: One map, or one a class.
            labels: Classes; anything where not known.
            known: True where a label counts.

        Returns:
            The loss.
        """
        scores = scores.float()
        labels = labels.where(known, 0)
        total = scores.new_zeros(())
        for name in self.names:
            if name in ('ce', 'bce'):
                entropy, weight = cross_entropy(
                    scores, labels, self.class_weights, self.pos_weight
                )
                total = total + _mean(entropy, weight * known)
            elif name == 'focal':
                total = total + _mean(focal(scores, labels), known.to(scores))
            else:
                total = total + overlap_loss(scores, labels, known, name == 'jaccard')
        return total


def cross_entropy(
    scores: Float[Tensor, 'batch maps height width'],
    labels: Int[Tensor, 'batch height width'],
    class_weights: Float[Tensor, ' classes'] | None = None,
    pos_weight: Float[Tensor, ''] | None = None,
) -> tuple[Float[Tensor, 'batch height width'], Float[Tensor, 'batch height width']]:
    """Cross-entropy of each pixel, and what it counts.

    Args:
        scores: One map, or one a class.
        labels: Classes.
        class_weights: Of each class; a mean over pixels divides by their sum, as torch's does.
        pos_weight: Of class 1 where there is one map; as torch's it raises the loss instead.

    Returns:
        -log of the label's probability (times *pos_weight* for class 1), and weights.
    """
    if scores.shape[1] == 1:
        entropy = F.binary_cross_entropy_with_logits(
            scores[:, 0], labels.to(scores), pos_weight=pos_weight, reduction='none'
        )
    else:
        entropy = F.cross_entropy(scores, labels.long(), reduction='none')
    if class_weights is None:
        return entropy, torch.ones_like(entropy)
    return entropy, class_weights[labels.long()]


def focal(
    scores: Float[Tensor, 'batch maps height width'],
    labels: Int[Tensor, 'batch height width'],
    gamma: float = 2.0,
) -> Float[Tensor, 'batch height width']:
    r"""Focal loss of each pixel, :math:`-(1 - p)^\gamma \log p` of the label's probability p.

    Args:
        scores: One map, or one a class.
        labels: Classes.
        gamma: How much easy pixels are neglected; 0 gives cross-entropy.

    Returns:
        The loss (Lin et al. 2017, https://arxiv.org/abs/1708.02002).
    """
    entropy, _ = cross_entropy(scores, labels)
    return (1 - torch.exp(-entropy)) ** gamma * entropy


def overlap_loss(
    scores: Float[Tensor, 'batch maps height width'],
    labels: Int[Tensor, 'batch height width'],
    known: Bool[Tensor, 'batch height width'],
    jaccard: bool = False,
) -> Float[Tensor, '']:
    r"""One minus the soft overlap of probabilities p and labels y, a mean over classes.

    Dice is :math:`2\sum py / (\sum p + \sum y)`, Jaccard
    :math:`\sum py / (\sum p + \sum y - \sum py)`; sums run over the known pixels of the batch.
    Classes without a known pixel in the batch are left out: there is nothing to overlap with.

    Args:
        scores: One map, for which class 1 alone counts, or one a class.
        labels: Classes.
        known: True where a label counts.
        jaccard: Whether to take Jaccard's.

    Returns:
        The loss in [0, 1].
    """
    if scores.shape[1] == 1:
        shares, truth = scores.sigmoid(), (labels == 1)[:, None]
    else:
        shares = scores.softmax(dim=1)
        classes = torch.arange(scores.shape[1], device=labels.device)
        truth = labels[:, None] == classes[:, None, None]
    counts = known[:, None].to(scores)
    shares, truth = shares * counts, truth.to(scores) * counts
    both, area = (shares * truth).sum((0, 2, 3)), truth.sum((0, 2, 3))
    union = shares.sum((0, 2, 3)) + area
    above, below = (both, union - both) if jaccard else (2 * both, union)
    # Where no pixel is known, 0 / 0 would spoil the gradient too
    return _mean(1 - above / below.clamp_min(1e-6), (area > 0).to(scores))


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean, 0 without weights."""
    total = weights.sum()
    return (values * weights).sum() / total.where(total > 0, 1.0)
