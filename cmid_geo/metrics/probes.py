# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Classes by frozen features: linear probe and nearest neighbours."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

#: Penalties on the squared weights of a linear probe to choose from.
DECAYS = (1e-4, 1e-3, 1e-2, 1e-1)


def split_classes(
    labels: Int[Tensor, ' samples'], part: float, seed: int = 0
) -> tuple[Int[Tensor, ' first'], Int[Tensor, ' rest']]:
    """Split samples so that a part of each class comes first.

    Args:
        labels: Class of each sample.
        part: Part of each class, from 0 to 1.
        seed: The same seed gives the same split; no other random numbers are touched.

    Returns:
        Indices of the part, and of the rest. Both hold a sample at least of each class that has
        two or more; of a class of one the rest has it.
    """
    generator = torch.Generator().manual_seed(seed)
    first, rest = [], []
    for label in labels.unique():
        mine = (labels == label).nonzero()[:, 0].cpu()
        mine = mine[torch.randperm(len(mine), generator=generator)]
        count = min(max(1, round(part * len(mine))), len(mine) - 1)
        first.append(mine[:count])
        rest.append(mine[count:])
    return torch.cat(first).to(labels.device), torch.cat(rest).to(labels.device)


def standardize(
    known: Float[Tensor, 'known dim'], *others: Float[Tensor, '_ dim']
) -> list[Tensor]:
    """Shift and scale all features so that the known ones have mean 0 and standard deviation 1."""
    mean, std = known.mean(0), known.std(0, unbiased=False).clamp_min(1e-6)
    return [(each - mean) / std for each in (known, *others)]


def linear_probe(
    known: Float[Tensor, 'known dim'],
    labels: Int[Tensor, ' known'],
    asked: Float[Tensor, 'asked dim'],
    decays: Sequence[float] = DECAYS,
    iterations: int = 100,
) -> Int[Tensor, ' asked']:
    """Classify by a logistic regression on standardized features.

    Its penalty is chosen on a fifth of the known samples; then it learns from all of them.

    Args:
        known: Features of samples whose class is known.
        labels: Their classes, from 0.
        asked: Features of the samples to classify.
        decays: Penalties on half the squared weights to choose from; the first of equally good ones.
        iterations: Of L-BFGS, at most.

    Returns:
        The classes of the asked samples.
    """
    known, asked = standardize(known.float(), asked.float())
    best = decays[0]
    if len(decays) > 1:
        held, rest = split_classes(labels, 0.2)
        scores = []
        for decay in decays:
            found = logistic_regression(known[rest], labels[rest], decay, iterations)(
                known[held]
            )
            scores.append(float((found.argmax(1) == labels[held]).float().mean()))
        best = decays[scores.index(max(scores))]
    return logistic_regression(known, labels, best, iterations)(asked).argmax(1)


def nearest_neighbours(
    known: Float[Tensor, 'known dim'],
    labels: Int[Tensor, ' known'],
    asked: Float[Tensor, 'asked dim'],
    k: int = 5,
    standardized: bool = False,
) -> Int[Tensor, ' asked']:
    """Classify by the vote of the nearest known samples, by cosine.

    Args:
        known: Features of samples whose class is known.
        labels: Their classes, from 0.
        asked: Features of the samples to classify.
        k: Number of neighbours.
        standardized: Whether to standardize features first, by the known ones.

    Returns:
        The classes of the asked samples; of classes with as many votes the first.
    """
    if standardized:
        known, asked = standardize(known, asked)
    known, asked = (F.normalize(each.float(), dim=1) for each in (known, asked))
    classes, found = int(labels.max()) + 1, []
    # In parts: all cosines at once would not fit for many samples
    for part in asked.split(4096):
        nearest = (part @ known.mT).topk(min(k, len(known))).indices
        found.append(F.one_hot(labels[nearest], classes).sum(1).argmax(1))
    return torch.cat(found)


def logistic_regression(
    known: Float[Tensor, 'known dim'],
    labels: Int[Tensor, ' known'],
    decay: float,
    iterations: int = 100,
) -> nn.Linear:
    """Learn a linear classifier by L-BFGS.

    Args:
        known: Features of samples whose class is known, best standardized.
        labels: Their classes, from 0.
        decay: Penalty on half the squared weights.
        iterations: At most.

    Returns:
        Features to scores of the classes, without gradients.
    """
    # Begins at 0, and so touches no random numbers that count
    linear = nn.utils.skip_init(nn.Linear, known.shape[1], int(labels.max()) + 1)
    linear = linear.to(known.device)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    optimizer = torch.optim.LBFGS(
        linear.parameters(), max_iter=iterations, line_search_fn='strong_wolfe'
    )

    def closure() -> Any:
        optimizer.zero_grad()
        loss = F.cross_entropy(linear(known), labels)
        loss = loss + decay * linear.weight.square().sum() / 2
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return linear.requires_grad_(False)
