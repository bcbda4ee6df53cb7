# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from torch import Tensor, nn

from cmid_geo import ChangeDetection, predict_scene
from cmid_geo.predict.inputs import open_source


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read()


@pytest.mark.parametrize(
    'name',
    [
        'naip/m_4709963_se_14_1_20170827.tif',
        'landsat/1990.tif',
        'sentinel2_pair/20160529.jp2',
    ],
)
def test_identity(real_data: Path, tmp_path: Path, name: str) -> None:
    scene = real_data / 'scenes' / name
    with rasterio.open(scene) as file:
        data, dtype = file.read(), file.dtypes[0]
    out = predict_scene(
        nn.Identity(), scene, tmp_path / 'map.tif', size=400, overlap=123, dtype=dtype
    )
    assert (read(out) == data).all()
    with rasterio.open(scene) as one, rasterio.open(out) as other:
        assert one.bounds == other.bounds and one.transform == other.transform
        assert one.crs == other.crs and one.shape == other.shape


def test_one_file_a_band(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / 'scenes/sentinel2_coast'
    out = predict_scene(
        nn.Identity(), folder, tmp_path / 'map.tif', bands=['B04', 'B02'], dtype='uint8'
    )
    found = read(out)
    for band, name in zip(found, ('B04', 'B02'), strict=True):
        assert (band == read(next(folder.glob(f'*{name}*')))[0]).all()


def shift(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, float]:
    """By how many (cols, rows) a second image lies beside the first, and how alike they are.

    From the peak of the correlation of their gradients, between pixels by a parabola.
    """
    most = 3
    inner = slice(most, -most)
    one, two = (
        np.clip(np.gradient(np.log(each + 8.0)), -0.3, 0.3) for each in (first, second)
    )
    found = np.zeros((2 * most + 1, 2 * most + 1))
    for row, col in np.ndindex(found.shape):
        rolled = np.roll(two, (most - row, most - col), (1, 2))[:, inner, inner]
        found[row, col] = np.corrcoef(one[:, inner, inner].ravel(), rolled.ravel())[
            0, 1
        ]
    row, col = np.unravel_index(found.argmax(), found.shape)

    def between(low: float, middle: float, high: float) -> float:
        return (low - high) / (2 * (low - 2 * middle + high))

    x = col - most + between(*found[row, col - 1 : col + 2])
    y = row - most + between(*found[row - 1 : row + 2, col])
    return np.array([x, y]), found.max()


@pytest.mark.parametrize('year', [2009, 2016])
def test_naip_pair_lines_up(real_data: Path, tmp_path: Path, year: int) -> None:
    """Dates begin at other parts of a pixel: aligned, they move by just that."""
    folder = real_data / 'scenes/naip'
    pair = [next(folder.glob(f'*_{each}*.tif')) for each in (year, 2017)]
    image, valid = open_source(pair, 2, [1]).read(100, 100, 512)
    assert valid.all()
    with rasterio.open(pair[0]) as one, rasterio.open(pair[1]) as other:
        t, o = one.transform, other.transform
        offset = np.array([(t.c - o.c) / 5, (o.f - t.f) / 5])
        as_it_is = other.read(1)[100:612, 100:612]
    assert 0.15 < abs(offset).min() and abs(offset).max() < 0.5
    aligned, likeness = shift(image[0, 0], image[1, 0])
    beside, less = shift(image[0, 0], as_it_is)
    np.testing.assert_allclose(beside - aligned, offset, atol=0.1)
    assert likeness > less
    if year == 2016:
        # The orthophotos of 2009 themselves lie 2 m beside the later ones
        assert abs(aligned).max() < 0.1 < abs(beside).min()

    class Same(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return (image[:, 1, :1] - image[:, 0, :1]).abs() - 2

    task = ChangeDetection('unet', backbone='test_resnet', in_channels=4)
    task.model, task.high = Same(), torch.full((4,), 255.0)
    out = predict_scene(task, pair, tmp_path / 'map.tif', size=256)
    with rasterio.open(out) as one, rasterio.open(pair[0]) as other:
        assert one.bounds == other.bounds and one.shape == other.shape


def test_change_of_cities_has_their_grids(real_data: Path, tmp_path: Path) -> None:
    class Difference(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return 20 * (
                (image[:, 1] - image[:, 0]).abs().amax(1, keepdim=True) - 0.10001
            )

    task = ChangeDetection('unet', backbone='test_resnet', in_channels=4)
    task.model, task.high = Difference(), torch.full((4,), 4000.0)
    for city in ('rennes', 'pisa'):
        folder = real_data / 'change' / city
        pair = sorted(p for p in folder.glob('*.tif') if p.stem != 'change')
        found = read(predict_scene(task, pair, tmp_path / f'{city}.tif', size=128))[0]
        with (
            rasterio.open(folder / 'change.tif') as truth,
            rasterio.open(tmp_path / f'{city}.tif') as file,
        ):
            assert file.bounds == truth.bounds and file.shape == truth.shape
        one, two = (read(path).clip(0, 4000).astype(float) / 4000 for path in pair)
        expected = abs(two - one).max(0) >= 0.10001
        assert (found == expected).mean() > 0.9999 and 0 < expected.mean() < 1
