# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Principal components of a raster of vectors, block by block."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from .cog import RasterFile

#: A part of a raster: rows and cols.
Part = tuple[tuple[int, int], tuple[int, int]]


def write_components(file: RasterFile, count: int) -> RasterFile:
    """Project vectors on the axes along which they differ most.

    Two passes: the first sums means and covariances over all cells with data, the second
    projects. The sign of each axis is such that its largest coefficient is positive.

    Args:
        file: The vectors; it is taken away.
        count: How many components to keep, at most as many as a vector is long.

    Returns:
        The components, float32, not yet closed.
    """
    file.flush()
    mean, axes = _axes(file, count)
    names = tuple(f'component {number}' for number in range(1, count + 1))
    layer = replace(file.layer, count=count, dtype='float32', names=names)
    result = RasterFile(
        file.path.parent, f'components_{file.path.name}', layer, file.grid
    )
    result.path = file.path
    for rows, cols in _parts(file):
        vectors = file.read(rows, cols).astype(np.float64)
        # NaN, which stands for no data, stays NaN
        projected = np.tensordot(axes, vectors - mean[:, None, None], 1)
        result.write(rows, cols, projected.astype(np.float32))
    file.drop()
    return result


def _axes(file: RasterFile, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean (width), and axes (count, width) by falling variance."""
    width = file.layer.count
    total, number = np.zeros(width), 0
    for vectors in _known(file):
        total += vectors.sum(0)
        number += len(vectors)
    mean = total / max(number, 1)
    spread = np.zeros((width, width))
    for vectors in _known(file):
        centred = vectors - mean
        spread += centred.T @ centred
    axes = np.linalg.eigh(spread)[1][:, ::-1][:, :count].T
    largest = np.take_along_axis(axes, abs(axes).argmax(1)[:, None], 1)
    return mean, axes * np.sign(largest)


def _known(file: RasterFile) -> Iterator[np.ndarray]:
    """Vectors (N, width) of the cells with data, block by block."""
    for part in _parts(file):
        vectors = file.read(*part).reshape(file.layer.count, -1).T.astype(np.float64)
        yield vectors[np.isfinite(vectors).all(1)]


def _parts(file: RasterFile) -> Iterator[Part]:
    side, grid = file.block, file.grid
    for row in range(0, grid.height, side):
        for col in range(0, grid.width, side):
            rows = row, min(row + side, grid.height)
            yield rows, (col, min(col + side, grid.width))
