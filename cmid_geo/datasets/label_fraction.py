# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Few labels: a stratified draw of a data set in which no class is lost."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def check_fraction(
    fraction: float, name: str = 'label_fraction', whole: bool = True
) -> float:
    """Refuse a fraction that cannot be drawn.

    Args:
        fraction: Of a data set.
        name: Of the argument, for the message.
        whole: Whether it may be all of the data set.

    Returns:
        The fraction.

    Raises:
        ValueError: If it is out of range.
    """
    if not 0 < fraction <= 1 or (fraction == 1 and not whole):
        end = 'up to 1' if whole else 'below 1'
        raise ValueError(
            f'{name}={fraction} is a fraction of the samples: give one above 0, {end}'
        )
    return fraction


def hold_out(
    classes: Sequence[npt.ArrayLike] | npt.NDArray[np.integer],
    val_fraction: float | None,
    label_fraction: float,
    seed: int = 0,
) -> tuple[list[int], list[int]]:
    """Hold out a part of a data set, and draw few labels of the rest.

    Args:
        classes: Class, or classes, of each sample, as of :func:`draw_fraction`.
        val_fraction: To hold out, in (0, 1); None for nothing.
        label_fraction: To draw of the rest, in (0, 1].
        seed: Of both draws.

    Returns:
        Sorted indices of samples to train on, and of those that are held out.

    Raises:
        ValueError: If a fraction is out of range, or leaves nothing to train on.
    """
    held = [] if val_fraction is None else draw_fraction(classes, val_fraction, seed)
    rest = sorted({*range(len(classes))} - {*held})
    if not rest:
        raise ValueError(
            f'val_fraction={val_fraction} of {len(classes)} images leaves none to train on: lower it, or '
            'give images to validate on'
        )
    drawn = draw_fraction([classes[index] for index in rest], label_fraction, seed)
    return [rest[index] for index in drawn], held


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
    check_fraction(fraction)
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
