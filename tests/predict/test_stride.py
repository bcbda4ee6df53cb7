# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Maps of vectors that lie nearer than a backbone's cells."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from chips import SMALL
from rasterfiles import noise, write
from torch import Tensor, nn

from cmid_geo import CMID
from cmid_geo.__main__ import main
from cmid_geo.models import export_backbone
from cmid_geo.predict import predict_scene
from cmid_geo.predict.checkpoint import open_task

#: Upper left corner of the scenes, and their pixels' size, in metres.
ORIGIN, RES = (500_000.0, 5_000_000.0), 10.0


class Means(CMID):
    """Means of cells: each vector depends on its own 32x32 pixels alone."""

    def forward(self, image: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(image, 32)


def means() -> Means:
    task = Means(**SMALL)
    task.high.fill_(255)
    task.student.backbone.num_features = 3
    task.student.backbone.field_offset = 0.0
    return task


def check_ground(finer: Path, coarser: Path, scene: Path) -> None:
    """Twice the rows and columns over the same ground, which is the scene's."""
    with (
        rasterio.open(finer) as one,
        rasterio.open(coarser) as other,
        rasterio.open(scene) as file,
    ):
        assert one.shape == (2 * other.height, 2 * other.width)
        assert one.bounds == other.bounds == file.bounds and one.crs == file.crs
        t, o = one.transform, file.transform
        assert t[:6] == (16 * o.a, 0, o.c, 0, 16 * o.e, o.f)


@pytest.mark.parametrize('overlap', [0, 32])
def test_every_second_vector_is_one_of_the_cells(tmp_path: Path, overlap: int) -> None:
    """Vectors are centred on their places: those of half the stride lie a fourth of a cell aside.

    So a scene that begins 8 pixels later has every second of its finer vectors where the whole
    scene has its cells.
    """
    data = noise(3, 264, 200)
    later = (ORIGIN[0] + 8 * RES, ORIGIN[1] - 8 * RES)
    whole = write(tmp_path / 'whole.tif', data, origin=ORIGIN, res=RES)
    part = write(tmp_path / 'part.tif', data[:, 8:, 8:], origin=later, res=RES)
    options: Any = {'size': 96, 'overlap': overlap, 'batch_size': 3}
    cells = predict_scene(means(), whole, tmp_path / 'cells.tif', **options)
    coarser = predict_scene(means(), part, tmp_path / 'coarser.tif', **options)
    finer = predict_scene(means(), part, tmp_path / 'finer.tif', stride=16, **options)
    check_ground(finer, coarser, part)
    with rasterio.open(finer) as one, rasterio.open(cells) as other:
        fine, coarse = one.read(), other.read()
        assert one.xy(2, 4) == other.xy(1, 2)
    # The first and the last see what is mirrored at the edges of the later scene
    np.testing.assert_allclose(fine[:, 2::2, 2::2], coarse[:, 1:8, 1:6], atol=1e-3)
    # Of those between, one by hand: 32 pixels around the middle of its place
    row, col = 16 * 5 + 8, 16 * 7 + 8
    around = data[:, 8 + row - 16 : 8 + row + 16, 8 + col - 16 : 8 + col + 16]
    np.testing.assert_allclose(fine[:, 5, 7], around.mean((1, 2)) / 255, atol=1e-3)


def test_command_maps_what_a_backbone_sees_of_shifted_scenes(
    tmp_path: Path, make_task: Callable[..., Any]
) -> None:
    """A window with its margin holds all that the backbone sees from each of four places."""
    checkpoint = export_backbone(make_task(), tmp_path / 'backbone.ckpt')
    data = noise(3, 192, 256)
    scene = write(tmp_path / 'scene.tif', data, origin=ORIGIN, res=RES)
    words = ['map', str(checkpoint), str(scene), '--size=256', '--low=0', '--high=255']
    for stride in (16, 32):
        main([*words, f'--out={tmp_path / str(stride)}', f'--stride={stride}'])
    finer, coarser = (tmp_path / f'{stride}/scene.tif' for stride in (16, 32))
    check_ground(finer, coarser, scene)

    network: Any = open_task(checkpoint)
    shift = round(-network.network.field_offset)
    # The scene is in the window's middle, which it does not fill from north to south
    around = np.pad(data, ((0, 0), (96, 96), (64, 64)), mode='reflect') / 255
    window = torch.from_numpy(around).float()[None, :, 64:]

    def see(row: int, col: int) -> np.ndarray:
        rows, cols = slice(row + shift, None), slice(64 + col + shift, None)
        with torch.no_grad():
            return network(window[..., rows, cols][..., :256, :256])[0].numpy()

    with rasterio.open(coarser) as file:
        np.testing.assert_allclose(file.read(), see(0, 0)[:, 1:7], atol=2e-3)
    with rasterio.open(finer) as file:
        found = file.read()
    for row in range(2):
        for col in range(2):
            expected = see(16 * row - 8, 16 * col - 8)[:, 1:7]
            seen = found[:, row::2, col::2]
            np.testing.assert_allclose(seen, expected, atol=2e-3)
    assert not np.allclose(found[:, ::2, ::2], found[:, 1::2, 1::2], atol=0.1)


@pytest.mark.parametrize('stride', [0, 12, 64])
def test_strides_are_divisors_of_a_cell(tmp_path: Path, stride: int) -> None:
    scene = write(tmp_path / 'scene.tif', noise(3, 64, 64))
    message = f'stride={stride} with Means: give a divisor of 32, for a backbone'
    with pytest.raises(ValueError, match=message):
        predict_scene(means(), scene, tmp_path / 'map.tif', stride=stride, size=64)
    with pytest.raises(ValueError, match='stride=16 with Identity'):
        predict_scene(nn.Identity(), scene, tmp_path / 'map.tif', stride=16)
