# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Bootstrap intervals of accuracies."""

import torch
from jaxtyping import Bool
from torch import Tensor


def bootstrap_interval(
    right: Bool[Tensor, ' samples'],
    level: float = 0.95,
    draws: int = 200,
    seed: int = 0,
) -> tuple[float, float]:
    """Interval of the accuracy by the percentiles of bootstraps (Efron, 1979).

    Args:
        right: Whether each sample was classified rightly.
        level: Of confidence, in (0, 1).
        draws: Number of bootstraps, each of as many samples, drawn with replacement.
        seed: The same seed gives the same interval; no other random numbers are touched.

    Returns:
        Lower and upper end, in [0, 1].
    """
    generator = torch.Generator().manual_seed(seed)
    places = torch.randint(len(right), (draws, len(right)), generator=generator)
    accuracy = right.cpu().double()[places].mean(1)
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.double)
    low, high = accuracy.quantile(ends).tolist()
    return low, high
