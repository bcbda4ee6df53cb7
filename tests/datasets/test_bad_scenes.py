# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterfiles import noise, truncate, write
from torchgeo.datasets import DatasetNotFoundError

from cmid_geo.datasets import Chip, SceneDataset


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError, match='specify a different `paths`'):
        SceneDataset(tmp_path)
    with pytest.raises(ValueError, match='check the spelling'):
        SceneDataset(tmp_path / 'missing')
    with pytest.raises(ValueError, match='no file matches'):
        SceneDataset([str(tmp_path / '*.tif')])


@pytest.mark.parametrize('damage', ['truncated', 'garbage'])
def test_damaged(tmp_path: Path, damage: str) -> None:
    write(tmp_path / 'good.tif', noise(3, 256, 256))
    bad = write(tmp_path / 'bad.tif', noise(3, 256, 256), interleave='band')
    truncate(bad) if damage == 'truncated' else bad.write_bytes(b'no raster')
    with pytest.raises(ValueError, match=r'bad.tif.*skip_unreadable=True'):
        SceneDataset(tmp_path)
    with pytest.warns(UserWarning, match=r'skipped .*bad.tif'):
        dataset = SceneDataset(tmp_path, skip_unreadable=True)
    assert [Path(path).name for path in dataset.files] == ['good.tif']
    with (
        pytest.warns(UserWarning),
        pytest.raises(ValueError, match='at least one scene must be whole'),
    ):
        SceneDataset(bad, skip_unreadable=True)


def test_damaged_later(tmp_path: Path) -> None:
    path = write(tmp_path / 'a.tif', noise(3, 512, 512))
    dataset = SceneDataset(tmp_path)
    truncate(path)
    with pytest.raises(ValueError, match=r'cannot read .*a.tif.*replace it'):
        dataset[Chip((0,), 0, 0, 512, 512)]


def test_no_crs(tmp_path: Path) -> None:
    write(tmp_path / 'a.tif', noise(1, 64, 64), crs=None)
    with pytest.raises(ValueError, match=r'a.tif.*rio edit-info --crs'):
        SceneDataset(tmp_path, crs='EPSG:32633', skip_unreadable=True)


def test_no_bands(tmp_path: Path) -> None:
    write(tmp_path / 'a.tif', noise(1, 64, 64))
    with pytest.raises(ValueError, match='bands=None for all'):
        SceneDataset(tmp_path, bands=[])


def test_complex(tmp_path: Path) -> None:
    write(tmp_path / 'a.tif', noise(1, 64, 64, dtype='complex64'))
    with pytest.raises(ValueError, match=r'complex64.*amplitude'):
        SceneDataset(tmp_path)


def test_damage_in_the_middle_is_found_where_it_may_be_skipped(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ('bad', 'good'):
        with rasterio.open(
            tmp_path / f'{name}.tif', 'w', driver='GTiff', width=512, height=512, count=1, dtype='uint8',
            crs='EPSG:32633', transform=rasterio.transform.from_origin(0, 0, 1, 1), tiled=True,
            blockxsize=128, blockysize=128, compress='deflate',
        ) as file:  # fmt: skip
            file.write(rng.integers(1, 255, (1, 512, 512), dtype='uint8'))
    whole = bytearray((tmp_path / 'bad.tif').read_bytes())
    middle = len(whole) // 2
    whole[middle : middle + 20_000] = bytes(20_000)
    (tmp_path / 'bad.tif').write_bytes(whole)
    with pytest.warns(UserWarning, match=r'skipped .*bad\.tif'):
        dataset = SceneDataset(tmp_path, skip_unreadable=True)
    assert [Path(scene.files[0]).name for scene in dataset.scenes] == ['good.tif']
