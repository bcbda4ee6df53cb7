# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Figure of features in two dimensions, by t-SNE or UMAP."""

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer, Real
from torch import Tensor

from .canvas import (
    blank,
    check_lengths,
    class_colours,
    display_bands,
    stretch,
    subplots,
)

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

#: Signs of the classes, by turns: colours of more than ten are hard to tell apart.
MARKERS = 'os^Dv'

#: Library of each method, and how it is installed.
LIBRARIES = {
    'tsne': ('sklearn.manifold', "pip install 'cmid-geo[plots]'"),
    # It brings a compiler of its own, which is much for one figure
    'umap': ('umap', 'pip install umap-learn'),
}

#: Label of what has no class, and its colour.
NO_CLASS, UNLABELLED = -1, (0.72, 0.72, 0.72)

#: Fewest vectors that have neighbours to keep.
FEWEST = 5


def plot_embedding(
    features: Float[Tensor, 'samples dim'],
    labels: Integer[Tensor, ' samples'] | None = None,
    names: Sequence[str] | None = None,
    images: Real[Tensor, 'samples bands height width'] | None = None,
    bands: Sequence[str] | None = None,
    valid: Bool[Tensor, 'samples height width'] | None = None,
    method: Literal['tsne', 'umap'] = 'tsne',
    thumbnails: int = 24,
    seed: int = 0,
) -> 'matplotlib.figure.Figure':
    """Show features in two dimensions, in the colours of their classes, with some of their images.

    Neighbours stay neighbours; distances between groups, and their sizes, tell nothing.

    Args:
        features: A vector of each chip.
        labels: Class of each, -1 for none: these are grey.
        names: Of the classes; their numbers by default.
        images: Chips, of any value range.
        bands: Names of the bands; the first three are shown where they are not known.
        valid: Whether a pixel holds data; all that are finite by default.
        method: 't-SNE' by scikit-learn, written 'tsne', or 'umap' where umap-learn is installed.
        thumbnails: Images to show, spread over the figure.
        seed: Of the method: with one seed the figure is the same.

    Returns:
        The figure.

    Raises:
        ImportError: If the method's library is not installed.
        ValueError: If lengths differ, there are too few vectors, or one is not finite.
    """
    check_lengths(features=features, labels=labels, images=images, valid=valid)
    places = reduce_features(features, method, seed)
    figure, ((axis,),) = subplots(1, 1, 9, 7)
    known = torch.zeros(len(features)).long() if labels is None else labels.cpu()
    kinds = known.unique().tolist()
    # A class that is not known lies behind those that are
    colours = dict(enumerate(class_colours(max(kinds) + 1))) | {NO_CLASS: UNLABELLED}
    for number, kind in enumerate(kinds):
        own = places[(known == kind).numpy()]
        name = str(kind) if names is None or kind == NO_CLASS else names[kind]
        name = 'unlabelled' if kind == NO_CLASS else name
        marker = MARKERS[number % len(MARKERS)] if len(kinds) > 10 else 'o'
        axis.scatter(*own.T, s=16, color=colours[kind], marker=marker, label=name, lw=0)
    if labels is not None:
        figure.legend(
            loc='outside right upper', frameon=False, fontsize=8, markerscale=1.5
        )
    if images is not None:
        for index in spread_out(places, min(thumbnails, len(places))):
            own = None if valid is None else valid[index]
            picture = _thumbnail(images[index], bands, own)
            _pin(axis, picture, places[index], colours[int(known[index])])
    axis.set(xticks=[], yticks=[])
    axis.margins(0.08)
    axis.set_title(f'{len(places)} chips by {"t-SNE" if method == "tsne" else "UMAP"}')
    return figure


def reduce_features(
    features: Float[Tensor, 'samples dim'], method: str = 'tsne', seed: int = 0
) -> Float[np.ndarray, 'samples 2']:
    """Bring vectors to two dimensions so that neighbours by cosine stay neighbours.

    Args:
        features: A vector of each sample.
        method: 'tsne' or 'umap'.
        seed: Of the method.

    Returns:
        Two numbers of each sample.

    Raises:
        ImportError: If the method's library is not installed.
        ValueError: If the method is not known, there are too few vectors, or one is not finite.
    """
    if method not in LIBRARIES:
        raise ValueError(f'method={method!r} is not known: choose of {list(LIBRARIES)}')
    vectors = F.normalize(features.detach().float().cpu(), dim=1).numpy()
    if len(vectors) < FEWEST or not np.isfinite(vectors).all():
        raise ValueError(
            f'{len(vectors)} vectors, {int((~np.isfinite(vectors)).any(1).sum())} of them not finite: give at '
            f'least {FEWEST}, all finite'
        )
    library, how = LIBRARIES[method]
    try:
        module: Any = import_module(library)
    except ImportError as error:
        raise ImportError(
            f'method={method!r} needs {library.split(".")[0]}, which is not installed: {how}'
        ) from error
    if method == 'umap':
        near = min(15, len(vectors) - 1)
        reducer = module.UMAP(n_neighbors=near, metric='cosine', random_state=seed)
    else:
        # Of unit vectors Euclidean neighbours are those by cosine
        near = min(30.0, (len(vectors) - 1) / 3)
        reducer = module.TSNE(perplexity=near, init='pca', random_state=seed)
    return np.asarray(reducer.fit_transform(vectors), np.float64)


def spread_out(places: Float[np.ndarray, 'samples 2'], count: int) -> list[int]:
    """Choose samples that lie apart, so that their images do not hide each other.

    Args:
        places: Of the samples.
        count: To choose, at most as many as there are.

    Returns:
        Indices: each next one is the farthest from those before.
    """
    chosen: list[int] = []
    distance = np.linalg.norm(places - places.mean(0), axis=1)
    for _ in range(count):
        chosen.append(int(distance.argmax()))
        from_last = np.linalg.norm(places - places[chosen[-1]], axis=1)
        # The first one was far from the middle, all others shall be far from it
        distance = np.minimum(distance, from_last) if chosen[1:] else from_last
    return chosen


def _thumbnail(
    image: Tensor, bands: Sequence[str] | None, valid: Tensor | None, side: int = 40
) -> np.ndarray:
    """RGBA of an image of at most so many pixels on a side, transparent where it holds no data."""
    step = max(1, -(-max(image.shape[1:]) // side))
    cut = (slice(None, None, step), slice(None, None, step))
    shown = display_bands(len(image) if bands is None else bands)
    seen = blank(image[shown], valid)
    colours = stretch(seen)[cut]
    return np.dstack([colours, seen[0][cut].isfinite().numpy()])


def _pin(
    axis: 'matplotlib.axes.Axes',
    picture: np.ndarray,
    place: np.ndarray,
    colour: tuple[float, ...],
) -> None:
    """Pin a small image to its place, in a frame of the class's colour."""
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    box = OffsetImage(picture, zoom=38 / max(picture.shape[:2]))
    frame = {'edgecolor': colour, 'facecolor': '0.85', 'lw': 2}
    axis.add_artist(
        AnnotationBbox(box, tuple(place), pad=0.12, bboxprops=frame, zorder=3)
    )
