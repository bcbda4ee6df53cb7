# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
import torch.nn.functional as F
from chips import SMALL
from rasterio.transform import from_origin

from cmid_geo.datasets import SceneDataset
from cmid_geo.plots.canvas import display_bands, stretch
from cmid_geo.predict import embed_scene, principal_colours, write_map
from cmid_geo.tasks import CMID


class MeanCells(CMID):
    """A network whose features are the means of the cells: what it sees can be checked."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(image, 32)


@pytest.fixture
def scene(tmp_path: Path) -> SceneDataset:
    """200 x 150 pixels whose bands are x, y and a block without data."""
    y, x = np.mgrid[:150, :200].astype('uint8')
    data = np.stack([x + 1, y + 1, np.full_like(x, 7)])
    data[:, 100:, :40] = 0
    transform = from_origin(500_000.25, 4_500_000.75, 0.5, 0.5)
    with rasterio.open(
        tmp_path / 'a.tif', 'w', driver='GTiff', width=200, height=150, count=3, dtype='uint8',
        crs='EPSG:32633', transform=transform, nodata=0,
    ) as file:  # fmt: skip
        file.write(data)
    return SceneDataset(tmp_path)


def task() -> MeanCells:
    made = MeanCells(**(SMALL | {'output_dim': 4}))
    made.high.fill_(255)
    made.mean.zero_()
    made.student.backbone.num_features = 3
    made.student.backbone.field_offset = 0.0
    return made


@pytest.mark.parametrize('stride', [8, 16, 32])
def test_vectors_lie_where_they_should(scene: SceneDataset, stride: int) -> None:
    features, valid = embed_scene(task(), scene, 0, stride, tile=64, margin=32)
    assert features.is_contiguous()
    whole, _ = embed_scene(task(), scene, 0, stride, tile=1024, margin=0)
    torch.testing.assert_close(features, whole)
    assert not valid[100:, :40].any() and valid.sum() == 150 * 200 - 50 * 40
    # Vector (i, j) is the mean of 32 pixels around the corner (i, j) * stride; pixel x has x + 1
    for i, j in ((32 // stride, 32 // stride), (64 // stride, 96 // stride)):
        expected = (j * stride + 0.5) / 255, (i * stride + 0.5) / 255
        assert features[0, i, j].item() == pytest.approx(expected[0], abs=1e-5)
        assert features[1, i, j].item() == pytest.approx(expected[1], abs=1e-5)


@pytest.mark.parametrize('name', ['resnet18', 'convnext_atto'])
def test_a_bright_dot_comes_out_where_it_is(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    made = CMID(**(SMALL | {'model': name})).eval()
    made.high.fill_(255)
    data = np.full((3, 256, 256), 100, 'uint8')
    seen = []
    for number, place in enumerate((None, (100, 140), (131, 111))):
        scene = data.copy()
        if place is not None:
            scene[:, place[0] - 1 : place[0] + 2, place[1] - 1 : place[1] + 2] = 255
        folder = tmp_path / str(number)
        folder.mkdir()
        with rasterio.open(
            folder / 'a.tif', 'w', driver='GTiff', width=256, height=256, count=3, dtype='uint8',
            crs='EPSG:32633', transform=from_origin(5e5, 4.5e6, 1, 1),
        ) as file:  # fmt: skip
            file.write(scene)
        vectors, _ = embed_scene(made, SceneDataset(folder), 0, stride=8)
        seen.append((vectors, place))
    # Vector (i, j) belongs to the corner (8 i, 8 j), half a pixel before that pixel's centre
    axis = torch.arange(vectors.shape[1]) * 8 - 0.5
    for vectors, place in seen[1:]:
        share = (vectors - seen[0][0]).square().sum(0)
        share = share / share.sum()
        found = (share.sum(1) @ axis).item(), (share.sum(0) @ axis).item()
        assert found == pytest.approx(place, abs=4)


def test_map_lines_up(scene: SceneDataset, tmp_path: Path) -> None:
    features, valid = embed_scene(task(), scene, 0, 8)
    colours = principal_colours(features, valid, 8)
    assert colours.shape == (3, 150, 200) and colours.dtype == np.uint8
    assert (colours[:, ~valid.numpy()] == 0).all() and (
        colours[:, valid.numpy()] > 0
    ).all()
    # x and y are what varies: some component rises from left to right
    slopes = [np.corrcoef(c[:90].mean(0), np.arange(200))[0, 1] for c in colours]
    assert max(abs(s) for s in slopes) > 0.95
    write_map(colours, scene, 0, tmp_path / 'map.tif')
    with (
        rasterio.open(tmp_path / 'map.tif') as one,
        rasterio.open(tmp_path / 'a.tif') as two,
    ):
        assert (one.crs, one.transform, one.shape) == (
            two.crs,
            two.transform,
            two.shape,
        )
        assert one.nodata == 0 and (one.read() == colours).all()
    with pytest.raises(ValueError, match='10x10 pixels does not line up.*150x200'):
        write_map(colours[:, :10, :10], scene, 0, tmp_path / 'bad.tif')


def test_display() -> None:
    assert display_bands(['B02', 'B03', 'B04', 'B08']) == [2, 1, 0]
    assert display_bands(['red', 'green', 'blue', 'nir']) == [0, 1, 2]
    assert display_bands(['B1', 'B2', 'B3', 'B4']) == [0, 1, 2]
    assert display_bands(['B1']) == [0, 0, 0]
    shown = stretch(torch.linspace(0, 50, 400).view(1, 20, 20))
    assert shown.shape == (20, 20, 1) and shown.min() == 0 and shown.max() == 1
