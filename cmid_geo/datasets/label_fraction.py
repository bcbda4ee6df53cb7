# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Few labels: a stratified draw of a data set in which no class is lost."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def draw_fraction(
    classes: Sequence[npt.ArrayLike] | npt.NDArray[np.integer],
    fraction: float,
    seed: int = 0,
) -> list[int]:
    """Draw a part of a data set, the same fraction of each class.

    A sample that shows several classes counts for the one that fewest samples show. What no drawn
    sample shows is then added.

    Args:
        classes: Class of each sample; or classes, of which a sample may show several or none.
        fraction: To draw, in (0, 1], rounded in each class.
        seed: Of the draw. With the same seed, and one class a sample, a smaller part lies within a
            larger one.

    Returns:
        Sorted indices, at least one; each class that any sample shows is among them.

    Raises:
        ValueError: If *fraction* is out of range.
    """
    if not 0 < fraction <= 1:
        raise ValueError(
            f'label_fraction={fraction} is a share of the labels: give one above 0, up to 1'
        )
    order = np.random.default_rng(seed).permutation(len(classes)).tolist()
    shown = [np.unique(np.asarray(each)).tolist() for each in classes]
    count = Counter(kind for kinds in shown for kind in kinds)
    strata: dict[int | None, list[int]] = {}
    for index in order:
        rarest = min(shown[index], key=lambda kind: (count[kind], kind), default=None)
        strata.setdefault(rarest, []).append(index)
    drawn: list[int] = []
    for kind, members in strata.items():
        drawn += members[: max(kind is not None, round(fraction * len(members)))]
    for kind in sorted(count):
        if not any(kind in shown[index] for index in drawn):
            drawn.append(next(index for index in order if kind in shown[index]))
    return sorted(drawn or order[:1])
