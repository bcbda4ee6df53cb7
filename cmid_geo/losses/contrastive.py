# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Contrast of whole views: the global loss."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .autocast import in_full_precision


@in_full_precision
def info_nce(
    query: Float[Tensor, 'batch dim'],
    key: Float[Tensor, 'batch dim'],
    queue: Float[Tensor, 'keys dim'],
    temperature: float,
    weight: Float[Tensor, ' batch'] | None = None,
    filled: Int[Tensor, ''] | None = None,
) -> Float[Tensor, '']:
    r"""How badly each query picks out its own key among the keys of a queue (InfoNCE).

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
    logits, negatives = _similarities(query, key.detach(), queue.detach(), filled)
    logits = logits.masked_fill(~negatives, -torch.inf) / temperature
    # The true key stands in column 0
    loss = torch.logsumexp(logits, dim=1) - logits[:, 0]
    if weight is None:
        return loss.mean()
    return (loss * weight).sum() / weight.sum().clamp_min(1e-6)


@torch.no_grad()
@in_full_precision
def key_rank(
    query: Float[Tensor, 'batch dim'],
    key: Float[Tensor, 'batch dim'],
    queue: Float[Tensor, 'keys dim'],
    filled: Int[Tensor, ''] | None = None,
) -> Float[Tensor, '']:
    """Place of the true key among the queue's, by similarity to the query.

    Args:
        query: Unit vectors of the student.
        key: Unit vectors of the teacher, one for each query.
        queue: Unit vectors of other images.
        filled: Number of rows of *queue* that hold keys; all by default.

    Returns:
        Mean over the batch: 1 is the best, ``1 + filled`` the worst.
    """
    logits, negatives = _similarities(query, key, queue, filled)
    better = (logits[:, 1:] > logits[:, :1]) & negatives[:, 1:]
    return 1 + better.sum(dim=1).to(logits.dtype).mean()


def _similarities(
    query: Float[Tensor, 'batch dim'],
    key: Float[Tensor, 'batch dim'],
    queue: Float[Tensor, 'keys dim'],
    filled: Int[Tensor, ''] | None,
) -> tuple[Float[Tensor, 'batch columns'], Bool[Tensor, '1 columns']]:
    """Cosines of each query with its key (column 0) and the queue, and which columns count."""
    positive = (query * key).sum(dim=1, keepdim=True)
    logits = torch.cat([positive, query @ queue.mT], dim=1)
    columns = torch.arange(logits.shape[1], device=logits.device)
    counted = columns <= (len(queue) if filled is None else filled)
    return logits, counted[None]
