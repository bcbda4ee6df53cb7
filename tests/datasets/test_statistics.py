# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

from pathlib import Path

import numpy as np
import pytest
from rasterfiles import noise, write

from cmid_geo.datasets import SceneDataset, estimate_statistics


def test_uint8(tmp_path: Path) -> None:
    array = noise(2, 128, 128)
    write(tmp_path / 'a.tif', array)
    stats = estimate_statistics(SceneDataset(tmp_path), patch_size=128, chips=20)
    assert stats.bands == (1, 2)
    assert stats.low == (0, 0) and stats.high == (255, 255)
    np.testing.assert_allclose(stats.mean, array.mean((1, 2)) / 255, atol=0.01)
    np.testing.assert_allclose(stats.std, array.std((1, 2)) / 255, atol=0.01)


def test_percentiles_of_valid_pixels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    array = rng.uniform(1000, 2000, (1, 128, 128)).astype(np.float32)
    array[:, :30] = -9999
    write(tmp_path / 'a.tif', array, nodata=-9999)
    stats = estimate_statistics(
        SceneDataset(tmp_path), patch_size=128, chips=20, min_valid=0.5
    )
    np.testing.assert_allclose((stats.low, stats.high), ([1020], [1980]), atol=5)
    np.testing.assert_allclose(stats.mean, 0.5, atol=0.01)


def test_given_and_reproducible(tmp_path: Path) -> None:
    write(tmp_path / 'a.tif', noise(2, 128, 128, dtype='uint16'))
    dataset = SceneDataset(tmp_path)
    stats = estimate_statistics(dataset, 0.0, [400.0, 200.0], patch_size=64)
    assert stats.low == (0, 0) and stats.high == (400, 200)
    assert stats.mean[1] == pytest.approx(2 * stats.mean[0], rel=0.02)
    assert stats == estimate_statistics(dataset, 0.0, [400.0, 200.0], patch_size=64)


def test_statistics_are_of_clamped_values(tmp_path: Path) -> None:
    array = np.zeros((1, 64, 64), np.uint16)
    array[:, :, :32] = 1000
    write(tmp_path / 'a.tif', array)
    stats = estimate_statistics(SceneDataset(tmp_path), 0.0, 100.0, patch_size=64)
    assert stats.mean[0] == pytest.approx(0.5, abs=0.01)
    assert stats.std[0] == pytest.approx(0.5, abs=0.01)


def test_constant_band(tmp_path: Path) -> None:
    array = noise(2, 64, 64, dtype='uint16')
    array[1] = 700
    write(tmp_path / 'a.tif', array)
    with pytest.warns(UserWarning, match=r'\[2\] hardly vary.*bands='):
        stats = estimate_statistics(SceneDataset(tmp_path), patch_size=64)
    assert stats.low[1] == 700 < stats.high[1]
    assert stats.mean[1] == 0 and stats.std[1] == 1


def test_table(tmp_path: Path) -> None:
    write(tmp_path / 'a.tif', noise(2, 64, 64), descriptions=('red', 'infrared'))
    text = str(estimate_statistics(SceneDataset(tmp_path), patch_size=64))
    head, red, infrared = text.splitlines()
    assert head.split() == ['band', 'low', 'high', 'mean', 'std']
    assert red.split()[:3] == ['red', '0', '255']
    assert len(head) == len(red) == len(infrared)


@pytest.mark.parametrize(
    ('low', 'high', 'cure'),
    [
        (0.0, None, 'give the other as well'),
        ([0.0, 0.0, 0.0], 1.0, '3 values for 2 bands'),
        ([0.0, 5.0], 5.0, 'swap or correct'),
    ],
)
def test_bad_limits(tmp_path: Path, low: object, high: object, cure: str) -> None:
    write(tmp_path / 'a.tif', noise(2, 64, 64))
    with pytest.raises(ValueError, match=cure):
        estimate_statistics(SceneDataset(tmp_path), low, high, patch_size=64)
