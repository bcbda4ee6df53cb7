# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""A share of images that has its share of every class."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def few_images(labels: Sequence[Any], fraction: float, seed: int = 0) -> list[int]:
    """Choose a share of images that has the same share of each class's images.

    Classes are served from the rarest: each gets images at random until it has its share of
    those that show it, rounded, and at least one. Images without a needed class fill up the rest.
    As an image shows several classes, there may be a few more than the share.

    Args:
        labels: Of the boxes of each image.
        fraction: Share to choose, in (0, 1].
        seed: The same seed chooses the same images.

    Returns:
        Indices in rising order.

    Raises:
        ValueError: If the share is none.
    """
    if not 0 < fraction <= 1:
        raise ValueError(
            f'label_fraction={fraction} is a share of the images: give one in (0, 1]'
        )
    order = np.random.default_rng(seed).permutation(len(labels)).tolist()
    shown = [set(np.unique(np.asarray(each)).tolist()) for each in labels]
    owners = {
        label: [index for index in order if label in shown[index]]
        for label in sorted(set().union(*shown))
    }
    chosen: set[int] = set()
    for own in sorted(owners.values(), key=len):
        wanted = max(1, round(fraction * len(own)))
        missing = wanted - len(chosen & set(own))
        chosen |= set(
            [index for index in own if index not in chosen][: max(missing, 0)]
        )
    left = max(1, round(fraction * len(labels))) - len(chosen)
    chosen |= set([index for index in order if index not in chosen][: max(left, 0)])
    return sorted(chosen)
