# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Clusters of features: k-means, and how well clusters agree with classes."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics.functional.clustering import normalized_mutual_info_score


def k_means(
    features: Float[Tensor, 'samples dim'],
    clusters: int,
    restarts: int = 4,
    iterations: int = 50,
    seed: int = 0,
) -> Int[Tensor, ' samples']:
    """Find clusters by k-means, begun by k-means++ (Arthur and Vassilvitskii, SODA 2007).

    Args:
        features: One vector a sample.
        clusters: Number of clusters, at most the samples.
        restarts: Beginnings, of which that with the smallest squared distances counts.
        iterations: Of Lloyd's algorithm, at most.
        seed: The same seed gives the same clusters; no other random numbers are touched.

    Returns:
        Cluster of each sample, from 0.

    Raises:
        ValueError: If there are more clusters than samples.
    """
    if not 1 <= clusters <= len(features):
        raise ValueError(
            f'clusters={clusters} of {len(features)} samples: ask for 1 to {len(features)}'
        )
    generator = torch.Generator().manual_seed(seed)
    features = features.float()
    best, least = features.new_zeros(len(features), dtype=torch.long), float('inf')
    for _ in range(restarts):
        centers = _begin(features, clusters, generator)
        found = best
        for _ in range(iterations):
            distance, nearest = torch.cdist(features, centers).min(1)
            if torch.equal(nearest, found):
                break
            found = nearest
            sums = torch.zeros_like(centers).index_add_(0, found, features)
            counts = torch.bincount(found, minlength=clusters)[:, None]
            # A cluster without samples stays where it is
            centers = torch.where(counts > 0, sums / counts.clamp_min(1), centers)
        distance, found = torch.cdist(features, centers).min(1)
        cost = float(distance.square().sum())
        if cost < least:
            best, least = found, cost
    return best


def _begin(features: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Draw samples as first centres, each in proportion to its squared distance from those before."""
    # On the host, so that all devices draw alike
    first = int(torch.randint(len(features), (), generator=generator, device='cpu'))
    chosen, distance = [first], (features - features[first]).square().sum(1)
    for _ in range(clusters - 1):
        # All samples may lie on centres already
        weight = distance.cpu() + 1e-12
        place = int(torch.multinomial(weight, 1, generator=generator))
        chosen.append(place)
        apart = (features - features[place]).square().sum(1)
        distance = torch.minimum(distance, apart)
    return features[chosen]


def cluster_agreement(
    features: Float[Tensor, 'samples dim'], labels: Int[Tensor, ' samples']
) -> float:
    """Normalized mutual information of classes with as many clusters of unit vectors.

    Args:
        features: One vector a sample; brought to unit length.
        labels: Class of each.

    Returns:
        From 0 (clusters tell nothing of classes) to 1 (they are the classes).
    """
    unit = torch.nn.functional.normalize(features.float(), dim=1)
    found = k_means(unit, len(labels.unique()))
    return float(normalized_mutual_info_score(found, labels))
