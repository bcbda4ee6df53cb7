# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Principal components of a backbone's vectors: as maps, and as colours of a picture."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, UInt8
from torch import Tensor

from ..datasets import Chip, SceneDataset
from ..ops.cells import CELL
from ..tasks import CMID
from .cog import RasterFile
from .inputs import SceneSource
from .outputs import Layer
from .predictor import SceneMapper

#: A part of a scene: first column, first row, width and height in pixels.
Part = tuple[int, int, int, int]


def principal_axes(
    vectors: Callable[[], Iterable[Float64[np.ndarray, 'some width']]], count: int
) -> tuple[Float64[np.ndarray, 'width'], Float64[np.ndarray, 'count width']]:
    """Find the axes along which vectors differ most.

    Two passes: the first sums means, the second covariances. The sign of each axis is such that its
    largest coefficient is positive, so that the same vectors give the same axes.

    Args:
        vectors: Called for each pass, gives the vectors part by part.
        count: How many axes.

    Returns:
        The mean, and the axes by falling variance.
    """
    sums, numbers = zip(*((part.sum(0), len(part)) for part in vectors()), strict=True)
    mean = np.sum(sums, axis=0) / max(sum(numbers), 1)
    spread = np.zeros((len(mean), len(mean)))
    for part in vectors():
        spread += (part - mean).T @ (part - mean)
    axes = np.linalg.eigh(spread)[1][:, ::-1][:, :count].T
    largest = np.take_along_axis(axes, abs(axes).argmax(1)[:, None], 1)
    return mean, axes * np.sign(largest)


def write_components(file: RasterFile, count: int) -> RasterFile:
    """Project vectors on their principal axes, in memory that does not grow with the map.

    Args:
        file: The vectors; it is taken away.
        count: How many components to keep, at most as many as a vector is long.

    Returns:
        The components, float32, not yet closed.
    """

    def known() -> Iterator[np.ndarray]:
        """Vectors (places, dim) of each block, but those without data."""
        for _, block in file.blocks():
            vectors = block.reshape(len(block), -1).T.astype(np.float64)
            yield vectors[np.isfinite(vectors).all(1)]

    mean, axes = principal_axes(known, count)
    names = tuple(f'component {number}' for number in range(1, count + 1))
    layer = replace(file.layer, count=count, dtype='float32', names=names)
    name = f'components_{file.path.name}'
    result = RasterFile(file.path.parent, name, layer, file.grid)
    result.path = file.path
    for corner, block in file.blocks():
        # NaN, which stands for no data, stays NaN
        projected = np.tensordot(axes, block - mean[:, None, None], 1)
        result.write(corner, projected.astype(np.float32))
    file.drop()
    return result


def embed_scene(
    task: CMID,
    dataset: SceneDataset,
    scene: int,
    stride: int = 16,
    tile: int = 384,
    margin: int = 64,
    part: Part | None = None,
) -> tuple[Float[Tensor, 'dim rows cols'], Bool[Tensor, 'height width']]:
    """Features all over a scene, or a part of it, in memory.

    It is run through the network in overlapping tiles of which the margins, whose surroundings the
    network did not see, are dropped. Maps of large scenes are for
    :func:`~cmid_geo.predict.predict_scene`.

    Args:
        task: Trained; knows the raw values that stand for 0 and 1.
        dataset: Holds the scene.
        scene: Index of the scene in ``dataset.scenes``.
        stride: Distance of the vectors in pixels, a divisor of 32.
        tile: Side of a tile in pixels, a multiple of 32.
        margin: Pixels around a tile that give context, a multiple of 32.
        part: First column, first row, width and height in pixels; by default the whole scene.

    Returns:
        One vector for each *stride* x *stride* pixels, which sees what is around its place, the
        first of them the part's upper left corner; and which of its pixels are valid.
    """
    mapper, source = SceneMapper(task, stride=stride), SceneSource((dataset.scenes[scene],))  # fmt: skip
    col, row, width, height = part or (0, 0, source.grid.width, source.grid.height)
    rows, cols = ((side // CELL + 1) * CELL for side in (height, width))
    side, edge = min(tile, max(rows, cols)), mapper.margin + margin
    inner = slice(margin // stride, (margin + side) // stride)
    # Places around corners of pixels, not in the middle of them
    corner_row, corner_col = (first - edge - stride // 2 for first in (row, col))

    def see(top: int, left: int) -> Tensor:
        """Features of the window whose corner is so far from the first."""
        read = source.read(corner_row + top, corner_col + left, side + 2 * edge)
        batch = (torch.from_numpy(each)[None].to(task.device) for each in read)
        return mapper(*batch)[0, :, inner, inner].cpu()

    features = torch.empty(mapper.product.channels or 1, rows // stride, cols // stride)
    with mapper.running(task.device):
        for top, left in itertools.product(range(0, rows, side), range(0, cols, side)):
            place = features[:, top // stride :, left // stride :]
            place = place[:, : side // stride, : side // stride]
            # The last tiles reach beyond the scene
            place.copy_(see(top, left)[:, : place.shape[1], : place.shape[2]])
    return features, dataset[Chip((scene,), col, row, width, height)]['valid']


def principal_colours(
    features: Float[Tensor, 'dim rows cols'],
    valid: Bool[Tensor, 'height width'],
    stride: int = 16,
) -> UInt8[np.ndarray, '3 height width']:
    """The first three principal components of features as colours.

    Args:
        features: From :func:`embed_scene`.
        valid: From :func:`embed_scene`.
        stride: Distance of the vectors in pixels.

    Returns:
        Red, green and blue from 1 to 255 on the scene's own grid; 0 where not valid. Each
        component is stretched from its 2nd to its 98th percentile.
    """
    height, width = valid.shape
    down = (torch.arange(features.shape[1]) * stride).clamp(max=height - 1)
    across = (torch.arange(features.shape[2]) * stride).clamp(max=width - 1)
    known = valid[down][:, across]
    known = known if known.any() else torch.ones_like(known)
    vectors = features.permute(1, 2, 0).double().numpy()
    mean, axes = principal_axes(lambda: [vectors[known.numpy()]], 3)
    values = (vectors - mean) @ axes.T
    low, high = np.percentile(values[known.numpy()], [2, 98], axis=0)
    scaled = ((values - low) / np.maximum(high - low, 1e-12)).clip(0, 1)
    layers = torch.from_numpy(scaled).permute(2, 0, 1)[None].float()
    # Interpolation takes vectors for the middle of their places, half a stride further
    layers = F.pad(layers, (0, 1, 0, 1), 'replicate')
    fine = F.interpolate(layers, scale_factor=stride, mode='bilinear')[0]
    fine = fine[:, stride // 2 :, stride // 2 :][:, :height, :width]
    return (1 + 254 * fine * valid - (~valid).float()).round().to(torch.uint8).numpy()


def write_map(
    colours: UInt8[np.ndarray, 'bands height width'],
    dataset: SceneDataset,
    scene: int,
    path: Path,
    part: Part | None = None,
) -> None:
    """Write a raster that lines up with a scene, or a part of it.

    Args:
        colours: On the scene's grid, 0 where there is no data.
        dataset: Holds the scene.
        scene: Index of the scene in ``dataset.scenes``.
        path: Cloud-optimised GeoTIFF to write, with the scene's CRS and transform.
        part: First column, first row, width and height in pixels; by default the whole scene.
    """
    grid = dataset.scenes[scene].grid
    grid = grid if part is None else grid.window(*part)
    bands, height, width = colours.shape
    if (height, width) != (grid.height, grid.width):
        raise ValueError(
            f'a map of {height}x{width} pixels does not line up with a scene of '
            f'{grid.height}x{grid.width}: pass one value a pixel'
        )
    file = RasterFile(path.parent, path.name, Layer('', bands, 'uint8', 0), grid)
    file.write((0, 0), colours)
    file.close()
