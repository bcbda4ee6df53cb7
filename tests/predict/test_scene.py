# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Whole scenes, through networks whose answer is known."""

import itertools
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
import torch.nn.functional as F
from affine import Affine
from rasterfiles import noise, write
from rasterio.transform import from_origin
from torch import Tensor, nn

from cmid_geo.datasets.gdal import gdal_settings
from cmid_geo.predict import predict_scene

PLACES: dict[str, tuple[str, Affine]] = {
    'utm': ('EPSG:32633', from_origin(500_000.3, 4_500_000.7, 0.5, 0.5)),
    'degrees': ('EPSG:4326', from_origin(7.1, 45.3, 1e-4, 1e-4)),
    # 0.5 m, turned by 30 degrees
    'rotated': (
        'EPSG:32633',
        Affine(0.433, 0.25, 500_000.3, 0.25, -0.433, 4_500_000.7),
    ),
}
SIZES = ((64, 64), (128, 96), (100, 70), (65, 64), (64, 97), (20, 31), (1, 5))
OVERLAPS = (0, 1, 8, 31)


def values(shape: tuple[int, int], dtype: str, nodata: float | None) -> np.ndarray:
    """Noise over all of a type's range, with a hole where there is a nodata value."""
    rng = np.random.default_rng(sum(shape))
    if dtype == 'float32':
        data = rng.normal(size=(3, *shape)) * 10 ** rng.uniform(-20, 20, (3, *shape))
    else:
        data = rng.integers(1, np.iinfo(dtype).max, (3, *shape))
    data = data.astype(dtype)
    if nodata is not None:
        data[:, shape[0] // 3 : shape[0] // 2 + 1, : shape[1] // 2] = nodata
    return data


@pytest.mark.parametrize('place', PLACES)
@pytest.mark.parametrize(
    ('dtype', 'nodata'),
    [('uint8', None), ('uint8', 0), ('uint16', 65535), ('float32', -9999.0)],
)
def test_identity_gives_the_scene_back_bit_for_bit(
    tmp_path: Path, place: str, dtype: str, nodata: float | None
) -> None:
    crs, transform = PLACES[place]
    for number, (shape, overlap) in enumerate(itertools.product(SIZES, OVERLAPS)):
        # Each place and type sees a fourth of all shapes, all together see each
        if (number + len(place) + len(dtype) + bool(nodata)) % 4:
            continue
        data = values(shape, dtype, nodata)
        scene = write(
            tmp_path / 'scene.tif', data, crs=crs, transform=transform, nodata=nodata
        )
        out = predict_scene(
            nn.Identity(), scene, tmp_path / 'map.tif', size=64, overlap=overlap,
            batch_size=3, dtype=dtype,
        )  # fmt: skip
        with rasterio.open(scene) as one, rasterio.open(out) as other:
            known = one.dataset_mask() > 0
            assert (other.read()[:, known] == data[:, known]).all(), (shape, overlap)
            assert ((other.dataset_mask() > 0) == known).all(), (shape, overlap)
            assert other.dtypes == one.dtypes
            assert other.crs == one.crs and other.bounds == one.bounds
            assert other.transform == one.transform and other.shape == one.shape
    assert [path.name for path in tmp_path.iterdir()] != []
    assert {path.name for path in tmp_path.iterdir()} == {'scene.tif', 'map.tif'}


@pytest.mark.parametrize('tta', ['flips', 'turns', 'all'])
def test_turns_do_not_move_anything(tmp_path: Path, tta: Any) -> None:
    data = noise(2, 90, 70)
    scene = write(tmp_path / 'scene.tif', data)
    out = predict_scene(nn.Identity(), scene, tmp_path / 'map.tif', size=64, tta=tta)
    with rasterio.open(out) as file:
        assert (file.read() == data).all()


def test_turns_are_averaged(tmp_path: Path) -> None:
    """A network that looks to its left looks to both sides in the mean of a flip."""

    class Left(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return image.roll(1, -1)

    data = noise(1, 64, 64).astype('float32')
    scene = write(tmp_path / 'scene.tif', data)
    found = {}
    for tta in ('none', 'flips', 'turns'):
        out = predict_scene(
            Left(), scene, tmp_path / f'{tta}.tif', size=64, overlap=0, tta=tta
        )  # fmt: skip
        with rasterio.open(out) as file:
            found[tta] = file.read()
    left, right = np.roll(data, 1, 2), np.roll(data, -1, 2)
    np.testing.assert_array_equal(found['none'], left)
    np.testing.assert_allclose(found['flips'], (left + right) / 2, rtol=1e-6)
    around = (left + right + np.roll(data, 1, 1) + np.roll(data, -1, 1)) / 4
    np.testing.assert_allclose(found['turns'], around, rtol=1e-6)


class EdgeBlind(nn.Module):
    """Like all networks with padding it sees less near its window's edge."""

    def forward(self, image: Tensor) -> Tensor:
        return F.avg_pool2d(image, 15, 1, 7)


def test_no_visible_seam(tmp_path: Path) -> None:
    data = np.full((1, 200, 200), 100, 'uint8')
    scene = write(tmp_path / 'scene.tif', data)
    steps = {}
    for overlap in (0, 30):
        out = predict_scene(
            EdgeBlind(), scene, tmp_path / 'map.tif', size=64, overlap=overlap
        )
        with rasterio.open(out) as file:
            found = file.read(1)
        steps[overlap] = max(abs(np.diff(found, axis=axis)).max() for axis in (0, 1))
        if overlap:
            # The scene's own edge is no edge to the network
            assert found.min() > 85
    assert steps[30] < 4 < steps[0]


def test_a_known_place_comes_out_there(tmp_path: Path) -> None:
    data = np.zeros((1, 300, 260), 'uint8')
    data[0, 211, 137] = 200
    crs, transform = PLACES['rotated']
    scene = write(tmp_path / 'scene.tif', data, crs=crs, transform=transform)
    out = predict_scene(nn.Identity(), scene, tmp_path / 'map.tif', size=64)
    x, y = 0.433 * 137.5 + 0.25 * 211.5, 0.25 * 137.5 - 0.433 * 211.5
    with rasterio.open(out) as file:
        here = file.index(500_000.3 + x, 4_500_000.7 + y)
        assert here == (211, 137)
        assert next(file.sample([(500_000.3 + x, 4_500_000.7 + y)]))[0] == 200


def test_file_is_cloud_optimised(tmp_path: Path) -> None:
    data = noise(1, 700, 1300)
    scene = write(tmp_path / 'scene.tif', data)
    out = predict_scene(nn.Identity(), scene, tmp_path / 'map.tif', dtype='uint8')
    with rasterio.open(out) as file:
        assert file.overviews(1) == [2, 4]
        assert file.profile['compress'] == 'deflate' and file.profile['tiled']
        assert file.block_shapes == [(512, 512)]
        assert file.tags(ns='IMAGE_STRUCTURE')['LAYOUT'] == 'COG'


def test_nan_and_masks_are_no_data(tmp_path: Path) -> None:
    data = np.ones((2, 80, 80), 'float32')
    data[0, 10:20, 30:40] = np.nan
    scene = write(tmp_path / 'scene.tif', data)
    with rasterio.open(
        predict_scene(nn.Identity(), scene, tmp_path / 'map.tif', size=64)
    ) as file:
        found = file.read()
        assert np.isnan(file.nodata)
    # A pixel is valid where all its bands are
    assert np.isnan(found[:, 10:20, 30:40]).all() and np.isnan(found).sum() == 200
    mask = np.full((80, 80), 255, 'uint8')
    mask[50:, :] = 0
    scene = write(tmp_path / 'masked.tif', noise(1, 80, 80), mask=mask)
    out = predict_scene(
        nn.Identity(), scene, tmp_path / 'map.tif', size=64, dtype='uint8'
    )
    with rasterio.open(out) as file:
        assert file.nodata is None and not file.dataset_mask()[50:].any()
        assert (file.dataset_mask()[:50] == 255).all()


class Every(nn.Module):
    """Gives values from 0 to 255, whatever the scene."""

    def forward(self, image: Tensor) -> Tensor:
        rows = torch.arange(image.shape[-1]).view(-1, 1)
        return (rows * 255 // 63).expand(len(image), 2, *image.shape[2:]).float()


@pytest.mark.parametrize('nodata', [0, 255, None])
@pytest.mark.parametrize('dtype', ['uint8', 'int16', 'float32'])
def test_no_valid_value_becomes_no_data(
    tmp_path: Path, dtype: str, nodata: int | None
) -> None:
    data = noise(1, 704, 64)
    mask = np.full((704, 64), 255, 'uint8')
    mask[100:120, 10:30] = 0
    data[0][mask == 0] = nodata or 0
    given = {'mask': mask} if nodata is None else {'nodata': nodata}
    scene = write(tmp_path / 'scene.tif', data, **given)
    out = predict_scene(
        Every(), scene, tmp_path / 'map.tif', size=64, overlap=0, dtype=dtype
    )
    with rasterio.open(out) as file:
        found = file.read(masked=True)
        assert file.overviews(1) == [2]
    assert (np.ma.getmaskarray(found) == (mask == 0)).all()
    expected = np.tile(np.arange(64) * 255 // 63, 11)[:, None]
    assert (found == expected).all() and {0, 255} <= set(found.compressed().tolist())
    # The file is all there is
    assert {path.name for path in tmp_path.iterdir()} == {'scene.tif', 'map.tif'}


def test_windows_without_data_are_not_predicted(tmp_path: Path) -> None:
    class Counting(nn.Module):
        seen = 0

        def forward(self, image: Tensor) -> Tensor:
            self.seen += len(image)
            return image

    data = noise(1, 256, 256)
    data[:, :, 64:] = 0
    scene = write(tmp_path / 'scene.tif', data, nodata=0)
    model = Counting()
    out = predict_scene(
        model, scene, tmp_path / 'map.tif', size=64, overlap=0, dtype='uint8'
    )
    # One to find out what the module gives, then the four of the first column
    assert model.seen == 5
    with rasterio.open(out) as file:
        assert (file.read() == data).all()


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    scene = write(tmp_path / 'scene.tif', noise(3, 70, 70))
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    threads = threading.active_count()
    predict_scene(model, scene, tmp_path / 'map.tif', size=64)
    assert model.training and model[0].training and not model[1].training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert threading.active_count() == threads
    files = [
        os.path.realpath(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd')
    ]
    assert not [file for file in files if file.startswith(str(tmp_path))]
    model(torch.randn(1, 3, 8, 8)).sum().backward()


@pytest.mark.parametrize('precision', ['bf16-mixed', '32-true'])
def test_precision(tmp_path: Path, precision: Any) -> None:
    torch.manual_seed(0)
    data = noise(3, 70, 70)
    scene = write(tmp_path / 'scene.tif', data)
    model = nn.Conv2d(3, 1, 1, bias=False)
    out = predict_scene(
        model, scene, tmp_path / 'map.tif', size=64, precision=precision
    )
    with rasterio.open(out) as file:
        found = file.read(1)
    exact = np.tensordot(model.weight.detach().numpy()[0, :, 0, 0], data, 1)
    error = abs(found - exact).max()
    assert (error < 1e-3) == (precision == '32-true') and error < 3


def test_planning_teaches_nothing(tmp_path: Path) -> None:
    scene = write(tmp_path / 'scene.tif', noise(1, 70, 70))
    model = nn.Sequential(nn.BatchNorm2d(1)).train()
    out = predict_scene(model, scene, tmp_path / 'map.tif', size=64)
    norm: Any = model[0]
    assert norm.num_batches_tracked == 0 and norm.running_var == 1
    with rasterio.open(out) as file:
        np.testing.assert_allclose(file.read(1), noise(1, 70, 70)[0], rtol=1e-4)


def test_the_scene_is_safe(tmp_path: Path) -> None:
    scene = write(tmp_path / 'scene.tif', noise(1, 70, 70))
    before = scene.read_bytes()
    (tmp_path / 'link.tif').symlink_to(scene)
    for out in (scene, tmp_path / 'link.tif'):
        with pytest.raises(ValueError, match='is the scene itself: choose another'):
            predict_scene(nn.Identity(), scene, out, size=64)
    (tmp_path / 'folder.tif').mkdir()
    with pytest.raises(ValueError, match='is a folder: choose another'):
        predict_scene(nn.Identity(), scene, tmp_path / 'folder.tif', size=64)
    assert scene.read_bytes() == before


def test_windows_that_do_not_come_back(tmp_path: Path) -> None:
    class First(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return image[:1]

    scene = write(tmp_path / 'scene.tif', noise(1, 170, 170))
    with pytest.raises(ValueError, match='shorter than'):
        predict_scene(First(), scene, tmp_path / 'map.tif', size=64)
    assert [path.name for path in tmp_path.iterdir()] == ['scene.tif']


def test_gdal_is_left_to_the_user() -> None:
    with rasterio.Env(VSI_CACHE_SIZE='777'), gdal_settings(True):
        options = rasterio.env.getenv()
        assert options['VSI_CACHE_SIZE'] == '777' and options['VSI_CACHE'] == 'TRUE'
        assert options['GDAL_CACHEMAX'] == 2**27
    with gdal_settings(False):
        assert 'VSI_CACHE' not in rasterio.env.getenv()


class Broken(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        if image.shape[0] > 1 or image.any():
            raise RuntimeError('out of luck')
        return image


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    scene = write(tmp_path / 'scene.tif', noise(3, 70, 70))
    with pytest.raises(RuntimeError, match='out of luck'):
        predict_scene(Broken(), scene, tmp_path / 'map.tif', size=64)
    assert [path.name for path in tmp_path.iterdir()] == ['scene.tif']


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'overlap': 32}, 'overlap=32 of windows of size=64'),
        ({'batch_size': 0}, 'batch_size=0: give at least 1'),
        ({'num_workers': 0}, 'num_workers=0: give at least 1'),
        ({'output': 'classes'}, "output='classes' with Identity: it gives values"),
        ({'components': 3}, 'components=3 with Identity: give 1 or more, for a'),
        ({'threshold': 2}, 'threshold=2: give a prob'),
        ({'low': 1}, 'low=1 and high=None: give both'),
        ({'bands': [4]}, 'has no band 4'),
        ({'out': 'map.png'}, "map.png': Identity gives .tif"),
    ],
)
def test_bad_arguments(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    scene = write(tmp_path / 'scene.tif', noise(3, 70, 70))
    out = tmp_path / options.pop('out', 'map.tif')
    with pytest.raises(ValueError, match=message):
        predict_scene(nn.Identity(), scene, out, **({'size': 64} | options))
    assert [path.name for path in tmp_path.iterdir()] == ['scene.tif']


def test_bad_scenes(tmp_path: Path) -> None:
    for name in 'ab':
        write(tmp_path / f'several/{name}.tif', noise(1, 20, 20))
    bare = write(tmp_path / 'bare.tif', noise(1, 20, 20), crs=None)
    model, out = nn.Identity(), tmp_path / 'map.tif'
    with pytest.raises(ValueError, match='holds 2 scenes: give one'):
        predict_scene(model, tmp_path / 'several', out)
    with pytest.raises(ValueError, match='has no coordinate reference system'):
        predict_scene(model, bare, out)
    with pytest.raises(ValueError, match='no file matches'):
        predict_scene(model, tmp_path / 'none.tif', out)
    with pytest.raises(ValueError, match='into .* give a module that keeps'):
        predict_scene(nn.AvgPool2d(2), tmp_path / 'several/a.tif', out)


def test_what_the_scene_does_not_say(tmp_path: Path) -> None:
    data = noise(1, 90, 90)
    data[:, :10] = 250
    scene = write(tmp_path / 'scene.tif', data, crs=None)
    out = predict_scene(
        nn.Identity(), scene, tmp_path / 'map.tif', size=64, nodata=250, file_crs='EPSG:32633'
    )  # fmt: skip
    with rasterio.open(out) as file:
        assert file.crs == 'EPSG:32633'
        assert (
            np.isnan(file.read(1)[:10]).all()
            and (file.read(1)[10:] == data[0, 10:]).all()
        )
