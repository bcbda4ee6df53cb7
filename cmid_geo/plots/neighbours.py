# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Figure of the nearest neighbours of chips by their features."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer, Real
from torch import Tensor

from .canvas import check_lengths, show_image, subplots

if TYPE_CHECKING:
    import matplotlib.figure


def plot_neighbours(
    images: Real[Tensor, 'samples bands height width'],
    features: Float[Tensor, 'samples dim'],
    queries: int | Sequence[int] = 0,
    count: int = 6,
    bands: Sequence[str] | None = None,
    labels: Integer[Tensor, ' samples'] | None = None,
    names: Sequence[str] | None = None,
    valid: Bool[Tensor, 'samples height width'] | None = None,
) -> 'matplotlib.figure.Figure':
    """Show chips beside those whose features are most like theirs.

    Args:
        images: Chips, of any value range.
        features: A vector of each, such as the mean over its cells.
        queries: Index of the chip to begin with, or of several.
        count: Neighbours to show.
        bands: Names of the bands; the first three are shown where they are not known.
        labels: Class of each chip.
        names: Of the classes; their numbers by default.
        valid: Whether a pixel holds data; all that are finite by default.

    Returns:
        A figure with a row for each query, the query first and then its neighbours by falling cosine similarity, which stands above
        each; with labels in blue where the class is the query's, and red where it is another.

    Raises:
        ValueError: If an index or a number is off, or lengths differ.
    """
    check_lengths(images=images, features=features, labels=labels, valid=valid)
    queries = [queries] if isinstance(queries, int) else list(queries)
    total = len(images)
    if (
        not 1 <= count < total
        or not queries
        or not all(0 <= q < total for q in queries)
    ):
        raise ValueError(
            f'queries={queries} with count={count} of {total} chips: give indices from 0 to {total - 1}, and a '
            'count from 1 to one less than there are chips'
        )
    unit = F.normalize(features.detach().float().cpu(), dim=1)
    figure, axes = subplots(
        len(queries), count + 1, 1.9 * (count + 1), 2.4 * len(queries)
    )
    for row, query in zip(axes, queries, strict=True):
        # Vectors that are not finite are like none
        cosine = (unit @ unit[query]).nan_to_num(-2)
        cosine[query] = -2  # itself is no neighbour
        best = cosine.topk(count).indices.tolist()
        for axis, index in zip(row, (query, *best), strict=True):
            told = 'query' if index == query else f'{float(cosine[index]):z.2f}'
            own = None if valid is None else valid[index]
            name, colour = '', 'black'
            if labels is not None:
                label = int(labels[index])
                name = f'\n{label if names is None else names[label]}'
                if index != query:
                    colour = 'C0' if label == int(labels[query]) else 'C3'
            show_image(axis, images[index], bands, own)
            axis.set_title(told + name, fontsize=9, color=colour)
    about = 'Nearest chips by cosine similarity of their features'
    if labels is not None:
        about += '; blue: the class of the query, red: another'
    figure.suptitle(about, fontsize=10)
    return figure
