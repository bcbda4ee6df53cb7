# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Figure of an evaluation: accuracies with their intervals, and the confusion matrix."""

from collections.abc import Mapping, Sequence

import matplotlib.figure
from matplotlib import pyplot as plt
from torch import Tensor

from .predictions import draw_confusion


def evaluation_figure(
    accuracies: Mapping[str, Mapping[str, tuple[float, float, float]]],
    titles: Mapping[str, str],
    confusion: Tensor,
    classes: Sequence[str],
) -> matplotlib.figure.Figure:
    """Show accuracies of several features beside the confusion matrix of the first.

    Args:
        accuracies: Value and ends of its interval, in [0, 1], by name of the features and of the accuracy.
        titles: Of the accuracies.
        confusion: Counts (classes, classes): true classes down, predicted ones across.
        classes: Their names.

    Returns:
        The figure.
    """
    side = max(5.0, 0.32 * len(classes) + 2.5)
    figure = plt.figure(figsize=(6 + side, side), layout='constrained')
    left, right = figure.subplots(1, 2, width_ratios=(6, side))
    width = 0.8 / len(accuracies)
    for place, (name, each) in enumerate(accuracies.items()):
        at = [number + (place - (len(accuracies) - 1) / 2) * width for number in range(len(titles))]  # fmt: skip
        values = [each[kind] for kind in titles]
        heights = [100 * value for value, _, _ in values]
        spread = [[100 * (v - low) for v, low, _ in values], [100 * (high - v) for v, _, high in values]]  # fmt: skip
        # A value lies within the interval of its bootstraps, but for rounding
        spread = [[max(part, 0.0) for part in row] for row in spread]
        left.bar(at, heights, 0.95 * width, yerr=spread, capsize=3, label=name)
        for x, height, (_, _, high) in zip(at, heights, values):
            text = f'{height:.0f}'
            left.text(x, 100 * high + 1, text, ha='center', va='bottom', fontsize=8)
    left.set_xticks(range(len(titles)), titles.values())
    left.set(ylim=(0, 108), ylabel='test images classified rightly (%)')
    left.set_title('accuracy, 95 % intervals')
    left.legend(loc='upper center', bbox_to_anchor=(0.5, -0.08), ncols=len(accuracies), frameon=False)  # fmt: skip
    shown = draw_confusion(right, confusion, classes)
    right.set_title(f'linear probe on {next(iter(accuracies))}: % of the true class')
    figure.colorbar(shown, ax=right, label='fraction of the true class', shrink=0.8)
    return figure
