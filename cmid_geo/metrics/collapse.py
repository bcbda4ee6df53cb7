# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Collapse of embeddings and assignments: spread, cosine, entropy and the rank of the true key."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def standard_deviation(embedding: Float[Tensor, 'batch dim']) -> Float[Tensor, '']:
    """Spread of unit vectors over the batch, averaged over their components.

    Args:
        embedding: Unit vectors.

    Returns:
        0 where all vectors are one, about :math:`1 / sqrt(dim)` where they cover the sphere.
    """
    return embedding.float().std(dim=0, unbiased=False).mean()


def pairwise_cosine(embedding: Float[Tensor, 'batch dim']) -> Float[Tensor, '']:
    """Mean cosine between different vectors of a batch.

    Args:
        embedding: Unit vectors.

    Returns:
        1 where all vectors are one, about 0 where they cover the sphere; 0 for one vector.
    """
    unit = F.normalize(embedding.float(), dim=1)
    number = len(unit)
    total = unit.sum(dim=0).square().sum() - unit.square().sum()
    return total / max(number * (number - 1), 1)


def entropy(probabilities: Float[Tensor, '... prototypes']) -> Float[Tensor, '...']:
    """Entropy of distributions over prototypes.

    Args:
        probabilities: Rows that sum to 1.

    Returns:
        Entropy in nats, from 0 (one prototype) to log(prototypes) (all alike).
    """
    return -torch.special.xlogy(probabilities, probabilities).sum(dim=-1)


@torch.no_grad()
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
        Mean over the batch; 1 is the best, ``1 + filled`` the worst.
    """
    # In half precision many keys would be alike
    with torch.autocast(query.device.type, enabled=False):
        query, queue = query.float(), queue.float()
        better = query @ queue.mT > (query * key.float()).sum(dim=1, keepdim=True)
    if filled is not None:
        better = better & (torch.arange(len(queue), device=queue.device) < filled)
    return 1 + better.sum(dim=1).float().mean()


@torch.no_grad()
def fresh_rank(
    query: Float[Tensor, 'batch dim'], key: Float[Tensor, 'batch dim']
) -> Float[Tensor, '']:
    """Share of the batch's other images whose key beats the true one.

    All these keys are of one teacher, so that only what images show can tell them apart;
    those of a queue can be told by their age too.

    Args:
        query: Unit vectors of the student.
        key: Unit vectors of the teacher, one for each query.

    Returns:
        Mean over the batch; 0 is the best, 0.5 is chance; 0 for one image.
    """
    with torch.autocast(query.device.type, enabled=False):
        cosines = query.float() @ key.float().mT
        better = cosines > cosines.diagonal()[:, None]
    number = len(query)
    return better.sum() / max(number * (number - 1), 1)
