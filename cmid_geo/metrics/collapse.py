# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Signs of collapse: what embeddings and assignments look like when nothing is learned."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
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
        Entropy in nats: from 0 (one prototype) to log(prototypes) (all alike).
    """
    return -torch.special.xlogy(probabilities, probabilities).sum(dim=-1)
