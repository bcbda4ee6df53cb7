# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""The synthetic scenes: repeatable, georeferenced, and true to their masks."""

import os
from pathlib import Path

import numpy as np
import pytest
import rasterio
from numpy import ndarray
from rasterio.enums import ColorInterp

from cmid_geo.datasets.synthetic.landscape import (
    BUILDING,
    FIELD,
    OTHER,
    ROAD,
    WATER,
    WOOD,
)
from cmid_geo.datasets.synthetic.scenes import SyntheticScenes, write_synthetic_scenes

DATES = ('20230615', '20240921')
SIZE = 512


def read(path: Path) -> ndarray:
    with rasterio.open(path) as source:
        return source.read()


@pytest.fixture(scope='module')
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('synthetic')
    write_synthetic_scenes(folder, scenes=3, size=SIZE)
    return folder


@pytest.fixture(scope='module')
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('small')
    write_synthetic_scenes(folder, scenes=2, size=128)
    return folder


def stack(root: Path, date: str) -> tuple[ndarray, ndarray]:
    """Return the images and masks of a date side by side, (4, pixels) and (pixels)."""
    images = [read(path) for path in sorted(root.glob(f'images/*_{date}.tif'))]
    masks = [read(path)[0] for path in sorted(root.glob(f'masks/*_{date}.tif'))]
    return np.concatenate(images, 1).reshape(4, -1), np.concatenate(masks).ravel()


def test_files(small: Path, tmp_path: Path) -> None:
    written = write_synthetic_scenes(tmp_path, scenes=2, size=128)
    assert [path.relative_to(tmp_path).as_posix() for path in written] == [
        f'images/scene_{scene:02}_{date}.tif' for scene in (0, 1) for date in DATES
    ]
    names = sorted(path.relative_to(small) for path in small.rglob('*.*'))
    assert len(names) == 10  # no temporary file is left
    assert Path('changes/scene_01_20230615_20240921.tif') in names
    assert Path('masks/scene_01_20240921.tif') in names


def test_same_seed_same_pixels(small: Path, tmp_path: Path) -> None:
    write_synthetic_scenes(tmp_path, scenes=3, size=128)
    for path in small.rglob('*.tif'):  # a third scene changes nothing in the others
        np.testing.assert_array_equal(
            read(path), read(tmp_path / path.relative_to(small))
        )


def test_seeds_and_scenes_differ(small: Path, tmp_path: Path) -> None:
    other = write_synthetic_scenes(tmp_path, scenes=1, size=128, seed=1)[0]
    first = read(small / 'images' / other.name)
    second = read(small / 'images/scene_01_20230615.tif')
    assert (first != read(other)).mean() > 0.8
    assert (first != second).mean() > 0.8
    masks = [read(folder / 'masks' / other.name) for folder in (small, tmp_path)]
    assert (masks[0] != masks[1]).any()  # another place, not only another noise


def test_global_random_state_is_left_alone(tmp_path: Path) -> None:
    before = np.random.get_state()[1]
    write_synthetic_scenes(tmp_path, scenes=1, size=128)
    np.testing.assert_array_equal(before, np.random.get_state()[1])


def test_format(root: Path) -> None:
    with rasterio.open(root / 'images/scene_00_20230615.tif') as image:
        assert image.descriptions == ('red', 'green', 'blue', 'nir')
        assert image.dtypes == ('uint8',) * 4
        assert image.block_shapes == [(256, 256)] * 4
        assert image.profile['compress'] == 'deflate'
        assert image.crs == 'EPSG:32632'
        assert image.res == (1, 1)
        assert image.nodata is None
        # A fourth band of bytes is easily taken for transparency.
        assert ColorInterp.alpha not in image.colorinterp
        assert (image.dataset_mask() == 255).all()
        assert image.read().min() > 0
    with rasterio.open(root / 'masks/scene_00_20230615.tif') as mask:
        assert mask.tags()['class_5'] == 'building'
        assert mask.colormap(1)[WATER] == (50, 110, 200, 255)


def test_places(root: Path) -> None:
    boxes = {}
    for path in root.rglob('*.tif'):
        with rasterio.open(path) as source:
            boxes.setdefault(path.name[:8], set()).add(tuple(source.bounds))
    assert all(len(places) == 1 for places in boxes.values())  # equal at all dates
    lefts = sorted(next(iter(places))[0] for places in boxes.values())
    assert len(lefts) == 3
    assert min(np.diff(lefts)) >= SIZE + 500


@pytest.mark.parametrize('date', DATES)
def test_masks_agree_with_images(root: Path, date: str) -> None:
    image, mask = stack(root, date)
    red, green, blue, nir = (
        np.array([band[mask == kind].mean() for kind in range(6)])
        for band in image.astype(float)
    )
    assert set(np.unique(mask)) == {OTHER, FIELD, WOOD, WATER, ROAD, BUILDING}
    index = (nir - red) / (nir + red)
    assert index[WOOD] > 0.3
    assert index[WATER] < -0.1
    assert abs(index[ROAD]) < 0.15
    assert nir[WATER] < 0.5 * min(nir[FIELD], nir[WOOD], nir[ROAD])
    assert red[BUILDING] > blue[BUILDING]
    assert green[WOOD] < green[FIELD]


def test_places_have_a_character(root: Path) -> None:
    masks = [read(root / f'masks/scene_0{k}_{DATES[0]}.tif') for k in range(3)]
    share = np.array([[(mask == kind).mean() for kind in range(6)] for mask in masks])
    assert share[:, FIELD].argmax() == 0
    assert share[:, WOOD].argmax() == 1
    assert share[:, BUILDING].argmax() == 2


def test_changes(root: Path) -> None:
    for k in range(3):
        old, new = (read(root / f'masks/scene_0{k}_{date}.tif') for date in DATES)
        change = read(root / f'changes/scene_0{k}_{DATES[0]}_{DATES[1]}.tif')
        np.testing.assert_array_equal(change, old != new)
        assert 0.005 < change.mean() < 0.3
        assert ((old == WOOD) & (new == OTHER)).any()  # felled
        assert ((old == FIELD) & (new == OTHER)).any()  # stripped
        assert ((old != ROAD) & (new == ROAD)).any()  # built
        assert not ((old == ROAD) & (new != ROAD)).any()
        assert not ((old == BUILDING) & (new != BUILDING)).any()
        np.testing.assert_array_equal(
            old == WATER, (new == WATER) | ((old == WATER) & (new == ROAD))
        )


def test_season_is_not_change(root: Path) -> None:
    # Fields that stay fields look different, and are not marked.
    (before, old), (after, new) = (stack(root, date) for date in DATES)
    same = (old == FIELD) & (new == FIELD)
    shift = np.abs(after[:3].astype(float) - before[:3]).mean(0)
    assert shift[same].mean() > 20


def test_three_dates(tmp_path: Path) -> None:
    dates = ('20220401', '20230615', '20240921')
    write_synthetic_scenes(tmp_path, scenes=1, size=256, dates=dates)
    steps = sorted(path.name for path in tmp_path.glob('changes/*'))
    assert steps == ['scene_00_20220401_20230615.tif', 'scene_00_20230615_20240921.tif']
    assert all(read(tmp_path / 'changes' / step).any() for step in steps)


def test_shadows_fall_away_from_the_sun(root: Path) -> None:
    # Noon is in the south: the ground north of a building is darker than south of it.
    image, mask = (
        read(root / f'{kind}/scene_02_{DATES[1]}.tif') for kind in ('images', 'masks')
    )
    built, ground = mask[0] == BUILDING, np.isin(mask[0], (OTHER, FIELD))
    light = image[1].astype(float)
    north = ground & np.roll(built, -2, 0) & ~np.roll(built, 2, 0)
    south = ground & np.roll(built, 2, 0) & ~np.roll(built, -2, 0)
    assert light[north].mean() < 0.8 * light[south].mean()


def test_existing_files_are_kept(tmp_path: Path) -> None:
    paths = write_synthetic_scenes(tmp_path, scenes=1, size=128)
    pixels = read(paths[1])
    os.utime(paths[0], (1, 1))
    paths[1].unlink()
    write_synthetic_scenes(tmp_path, scenes=1, size=128)
    assert paths[0].stat().st_mtime == 1
    np.testing.assert_array_equal(read(paths[1]), pixels)  # only what lacked


@pytest.mark.parametrize(
    'other',
    [{'seed': 1}, {'size': 129}, {'scenes': 1}, {'dates': ('2020' + '0101', DATES[0])}],
)
def test_other_parameters_are_refused(small: Path, other: dict) -> None:
    stamps = {path: path.stat().st_mtime_ns for path in small.rglob('*.tif')}
    with pytest.raises(ValueError, match=r'give another root=, or delete'):
        write_synthetic_scenes(small, **{'scenes': 2, 'size': 128, **other})
    assert stamps == {path: path.stat().st_mtime_ns for path in small.rglob('*.tif')}


def test_foreign_files_are_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / 'images').mkdir()
    with rasterio.open(
        tmp_path / 'images/mine.tif', 'w', 'GTiff', 8, 8, 1, 'EPSG:32632',
        rasterio.Affine(1, 0, 9, 0, -1, 9), 'uint8',
    ):  # fmt: skip
        pass
    with pytest.raises(ValueError, match=r'mine\.tif was written with something else'):
        write_synthetic_scenes(tmp_path)


@pytest.mark.parametrize(
    ('bad', 'message'),
    [
        ({'scenes': 0}, 'scenes=0 .* raise scenes='),
        ({'size': 0}, 'size=0 .* raise size='),
        ({'size': 127}, 'size=127 .* 128'),
        ({'seed': -1}, 'seed=-1 .* raise seed='),
        ({'dates': ('20230615',)}, 'two or more'),
        ({'dates': ('20240921', '20230615')}, 'each after the one before'),
        ({'dates': ('20230615', '20230615')}, 'each after the one before'),
        ({'dates': ('20230615', '20240231')}, "'20240231' .* YYYYMMDD"),
        ({'dates': ('20230615', '2024-9-2')}, "'2024-9-2' .* YYYYMMDD"),
        ({'dates': '20230615'}, 'two or more'),
    ],
)
def test_bad_parameters(tmp_path: Path, bad: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_synthetic_scenes(tmp_path / 'new', **bad)
    assert not (tmp_path / 'new').exists()


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / 'file').touch()
    with pytest.raises(ValueError, match=r'must be a folder .* give another root='):
        write_synthetic_scenes(tmp_path / 'file', size=128)


def test_dataset(small: Path) -> None:
    dataset = SyntheticScenes(small, scenes=2, size=128, bands=('nir', 'red'))
    assert len(dataset) == 4  # images only
    path = small / 'images/scene_01_20230615.tif'
    with rasterio.open(path) as source:
        left, bottom, right, top = source.bounds
    day = dataset.index.index[dataset.index.bounds.minx == left][0]
    sample = dataset[left:right, bottom:top, day.left : day.right]
    dates = [read(small / f'images/scene_01_{date}.tif')[[3, 0]] for date in DATES]
    image = sample['image'].numpy()
    assert any(np.array_equal(image, pixels) for pixels in dates)
    assert sample['valid'].all()
