# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Contrastive loss of whole views: the global loss."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .autocast import in_full_precision
from .masked import weighted_mean


@in_full_precision
def info_nce(
    query: Float[Tensor, 'batch dim'],
    key: Float[Tensor, 'batch dim'],
    queue: Float[Tensor, 'keys dim'],
    temperature: float,
    weight: Float[Tensor, ' batch'] | None = None,
    filled: Int[Tensor, ''] | None = None,
) -> Float[Tensor, '']:
    r"""InfoNCE: minus the log probability that a query picks its own key among a queue's.

    .. math::

        -\log \frac{\exp(q \cdot k / \tau)}
        {\exp(q \cdot k / \tau) + \sum_j \exp(q \cdot n_j / \tau)}

    averaged over the batch. With the queue empty the loss is 0; with K negatives that
    tell nothing it is :math:`\log(1 + K)`.

    Args:
        query: Unit vectors of the student.
        key: Unit vectors of the teacher, one for each query. No gradient flows into them.
        queue: Unit vectors of other images, the negatives :math:`n_j`.
        temperature: :math:`\tau`, greater than 0.
        weight: Weight of each sample, at least 0; all 1 by default.
        filled: Number of rows of *queue*, counted from the first, that hold keys; all by
            default. A tensor, so that the shapes stay fixed while the queue fills.

    Returns:
        The weighted mean over the batch; 0 if all weights are 0.
    """
    positive = (query * key.detach()).sum(dim=1, keepdim=True)
    negative = query @ queue.detach().mT
    if filled is not None:
        rows = torch.arange(len(queue), device=queue.device)
        negative = negative.masked_fill(rows >= filled, -torch.inf)
    # The true key stands in column 0
    logits = torch.cat([positive, negative], dim=1) / temperature
    loss = torch.logsumexp(logits, dim=1) - logits[:, 0]
    return weighted_mean(loss, weight)
