# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

from pathlib import Path

import pytest
from torchgeo.datasets import DatasetNotFoundError

from cmid_geo.datasets import Chip, SceneDataset

from .rasterfiles import noise, truncate, write


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
