# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Figure of what methods make of few labels."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .canvas import subplots

if TYPE_CHECKING:
    import matplotlib.figure

#: Signs of the curves, so that they are told apart in grey, too.
MARKERS = 'osD^vP*X'


def plot_label_efficiency(
    scores: Mapping[str, Mapping[float, float | Sequence[float]]],
    score: str = 'overall accuracy',
) -> 'matplotlib.figure.Figure':
    """Show a score over the fraction of the labels that was learned from.

    Args:
        scores: Of each method, by label fraction in (0, 1]: the score, or that of each seed.
        score: Its name.

    Returns:
        A curve for each method through the means over seeds, with a point for each seed and a band of one
        standard deviation (of the sample) where there are several.

    Raises:
        ValueError: If there is nothing to show, or a fraction is out of range.
    """
    if not scores or not all(scores.values()):
        raise ValueError(
            f'scores={dict(scores)!r} lack values: give each method a score by label fraction'
        )
    fractions = sorted({fraction for each in scores.values() for fraction in each})
    off = [fraction for fraction in fractions if not 0 < fraction <= 1]
    if off:
        raise ValueError(
            f'label fractions {off} are not in (0, 1]: divide percentages by 100'
        )
    figure, ((axis,),) = subplots(1, 1, 6.4, 4.2)
    for number, (method, values) in enumerate(scores.items()):
        xs = sorted(values)
        seeds = [np.atleast_1d(np.asarray(values[x], float)) for x in xs]
        means = np.array([each.mean() for each in seeds])
        spread = np.array([each.std(ddof=1) if len(each) > 1 else 0 for each in seeds])
        most = max(map(len, seeds))
        label = f'{method} ({most} seeds)' if most > 1 else method
        colour, marker = f'C{number % 10}', MARKERS[number % len(MARKERS)]
        axis.plot(xs, means, marker=marker, color=colour, label=label)
        if spread.any():
            axis.fill_between(
                xs, means - spread, means + spread, color=colour, alpha=0.15, lw=0
            )
        for x, each in zip(xs, seeds, strict=True):
            if len(each) > 1:
                axis.plot([x] * len(each), each, '.', color=colour, alpha=0.5, ms=4)
    axis.set_xscale('log')
    axis.set_xticks(fractions, [f'{100 * fraction:.3g} %' for fraction in fractions])
    axis.minorticks_off()
    axis.set(xlabel='labels learned from', ylabel=score)
    axis.grid(alpha=0.3)
    axis.legend()
    return figure
