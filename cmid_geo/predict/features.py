# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Features all over a scene, for pictures: finer than cells."""

from pathlib import Path

import numpy as np
import rasterio
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from ..datasets import Chip, SceneDataset
from ..ops.cells import CELL
from ..tasks import CMID


@torch.no_grad()
def embed_scene(
    task: CMID,
    dataset: SceneDataset,
    scene: int,
    stride: int = 16,
    tile: int = 384,
    margin: int = 64,
) -> tuple[Float[Tensor, 'dim rows cols'], Bool[Tensor, 'height width']]:
    """Features all over a scene, finer than cells by shifting the grid of cells.

    The scene is read whole, and run through the network in overlapping tiles of which the
    margins, whose surroundings the network did not see, are dropped.

    Args:
        task: Trained; knows the raw values that stand for 0 and 1.
        dataset: Holds the scene.
        scene: Index of the scene in ``dataset.scenes``.
        stride: Distance of the vectors in pixels, a divisor of 32.
        tile: Side of a tile in pixels, a multiple of 32.
        margin: Pixels around a tile that give context, a multiple of 32.

    Returns:
        One vector for each *stride* x *stride* pixels, which sees what is around its place, the
        first of them the scene's upper left corner; and which pixels of the scene are valid.
    """
    grid = dataset.scenes[scene]
    sample = dataset[Chip((scene,), 0, 0, grid.width, grid.height)]
    low, high = task.low.cpu()[:, None, None], task.high.cpu()[:, None, None]
    image = ((sample['image'] - low) / (high - low)).clamp(0, 1)
    # Where there is no data the network sees the mean, as in training
    image = image.where(sample['valid'], task.mean.cpu()[:, None, None])

    rows, cols = grid.height // CELL + 1, grid.width // CELL + 1
    steps = CELL // stride
    backbone = task.student.backbone
    dim, shift = backbone.num_features, round(-backbone.field_offset)
    features = torch.zeros(dim, rows, steps, cols, steps)
    # In training mode batch norms would use, and move by, what they see here
    training = task.training
    task.eval()
    for down in range(steps):
        for right in range(steps):
            # Half a cell outwards, mirrored there: vectors reach all edges
            top, left = (part * stride - CELL // 2 + shift for part in (down, right))
            shifted = _window(image, top, left, rows * CELL, cols * CELL)
            features[:, :, down, :, right] = _tiled(task, shifted, tile, margin)
    task.train(training)
    return features.view(dim, rows * steps, cols * steps), sample['valid']


def _window(image: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    """Cut a window that may hang over the right and lower edge, mirrored there."""
    rows = _mirror(torch.arange(top, top + height), image.shape[1])
    cols = _mirror(torch.arange(left, left + width), image.shape[2])
    return image[:, rows][:, :, cols]


def _mirror(index: Tensor, size: int) -> Tensor:
    """Fold indices back into [0, size) at both ends."""
    period = max(2 * (size - 1), 1)
    index = index.remainder(period)
    return torch.where(index < size, index, period - index).clamp(0, size - 1)


def _tiled(task: CMID, image: Tensor, tile: int, margin: int) -> Tensor:
    """Features (dim, rows, cols) of an image whose sides are multiples of 32."""
    height, width = image.shape[1:]
    strips = []
    for top in range(0, height, tile):
        strip = []
        for left in range(0, width, tile):
            rows, cols = min(tile, height - top), min(tile, width - left)
            seen = _window(
                image, top - margin, left - margin, rows + 2 * margin, cols + 2 * margin
            )
            cells = task(seen[None].to(task.device))[0].float().cpu()
            edge = margin // CELL
            strip.append(
                cells[:, edge : edge + rows // CELL, edge : edge + cols // CELL]
            )
        strips.append(torch.cat(strip, dim=2))
    return torch.cat(strips, dim=1)


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
    known = (
        _sample(valid[None].float(), features.shape[1:], stride, inverse=True)[0] > 0.5
    )
    known = known if known.any() else torch.ones_like(known)
    vectors = features[:, known].T
    mean = vectors.mean(dim=0)
    _, _, axes = torch.linalg.svd(torch.cov((vectors - mean).T), full_matrices=False)
    # Signs of components are arbitrary: fix them, so that the same run gives the same map
    axes = axes[:3] * axes[:3].gather(1, axes[:3].abs().argmax(1, keepdim=True)).sign()
    colours = torch.einsum('kd,drc->krc', axes, features - mean[:, None, None])
    low, high = torch.quantile(
        colours[:, known][:, :: max(1, int(known.sum()) // 100_000)],
        torch.tensor([0.02, 0.98]),
        dim=1,
    )
    scaled = (colours - low[:, None, None]) / (high - low).clamp_min(1e-12)[
        :, None, None
    ]
    fine = _sample(scaled.clamp(0, 1), (height, width), stride)
    return (1 + 254 * fine * valid - (~valid).float()).round().to(torch.uint8).numpy()


def _sample(
    layers: Tensor, size: tuple[int, ...], stride: int, inverse: bool = False
) -> Tensor:
    """Move layers between the grid of vectors and that of pixels, bilinearly."""
    # A corner lies half a pixel before the pixel's centre
    offset = -0.5
    axes = []
    for length, extent in zip(size, layers.shape[1:]):
        place = torch.arange(length, dtype=torch.float32)
        place = place * stride + offset if inverse else (place - offset) / stride
        axes.append(2 * place / max(extent - 1, 1) - 1)
    row, col = torch.meshgrid(*axes, indexing='ij')
    grid = torch.stack([col, row], dim=-1)[None]
    return F.grid_sample(layers[None], grid, padding_mode='border', align_corners=True)[
        0
    ]


def write_map(
    colours: UInt8[np.ndarray, 'bands height width'],
    dataset: SceneDataset,
    scene: int,
    path: Path,
) -> None:
    """Write a raster that lines up with a scene.

    Args:
        colours: On the scene's grid, 0 where there is no data.
        dataset: Holds the scene.
        scene: Index of the scene in ``dataset.scenes``.
        path: GeoTIFF to write, tiled and compressed, with the scene's CRS and transform.
    """
    grid = dataset.scenes[scene]
    bands, height, width = colours.shape
    if (height, width) != (grid.height, grid.width):
        raise ValueError(
            f'a map of {height}x{width} pixels does not line up with a scene of '
            f'{grid.height}x{grid.width}: pass one value a pixel'
        )
    options = {
        'tiled': True,
        'blockxsize': 256,
        'blockysize': 256,
        'compress': 'deflate',
    }
    with rasterio.open(
        path, 'w', driver='GTiff', count=bands, height=height, width=width, dtype='uint8',
        crs=dataset.crs.to_wkt(), transform=grid.transform, nodata=0, **options,
    ) as file:  # fmt: skip
        file.write(colours)
