# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

from pathlib import Path

import numpy as np
import rasterio
import torch
from torchgeo.datasets import RasterDataset

from cmid_geo.datasets import Chip, RandomChips, SceneDataset, estimate_statistics


def test_naip_equals_torchgeo(real_data: Path) -> None:
    class Dated(RasterDataset):
        filename_regex = r'.*_(?P<date>\d{8})'

    ours, theirs = (
        SceneDataset(real_data / 'scenes/naip'),
        Dated(real_data / 'scenes/naip'),
    )
    assert len(ours) == 10 and [s.start.year for s in ours.scenes][:2] == [2009, 2010]
    for chip in RandomChips(ours, 224, 20, seed=0):
        scene = ours.scenes[chip.scenes[0]]
        x, y = scene.transform.c + chip.col * 5, scene.transform.f - chip.row * 5
        query = (
            slice(x, x + 1120, 5),
            slice(y - 1120, y, 5),
            slice(scene.start, scene.stop),
        )
        image = ours[query]['image']
        assert torch.equal(image, theirs[query]['image'])
        assert torch.equal(image, ours[chip]['image'])


def test_naip_dates_are_aligned(real_data: Path) -> None:
    """Placed on one grid, two dates agree better than shifted by a pixel."""
    dataset = SceneDataset(real_data / 'scenes/naip', bands=[1])
    image = dataset[Chip((8, 6), 300, 200, 224, 224)]['image'].numpy()[:, 0]
    first = image[0, 4:-4, 4:-4].ravel()
    agreement = {
        (dx, dy): np.corrcoef(
            first, image[1, 4 + dy : 220 + dy, 4 + dx : 220 + dx].ravel()
        )[0, 1]
        for dx in (-3, 0, 3)
        for dy in (-3, 0, 3)
    }
    assert max(agreement, key=lambda shift: agreement[shift]) == (0, 0)


def test_landsat_years(real_data: Path) -> None:
    dataset = SceneDataset(real_data / 'scenes/landsat')
    assert [s.start.year for s in dataset.scenes] == list(range(1985, 2021, 5))
    assert str(dataset.scenes[0].stop.date()) == '1985-12-31'


def test_coast_is_one_scene_of_eight_bands(real_data: Path) -> None:
    dataset = SceneDataset(real_data / 'scenes/sentinel2_coast')
    assert len(dataset) == 1
    assert dataset.bands == tuple(f'B0{i}' for i in range(1, 9))
    image = dataset[Chip((0,), 700, 800, 224, 224)]['image']
    for i, path in enumerate(dataset.files):
        with rasterio.open(path) as file:
            band = file.read(1, window=((800, 1024), (700, 924)))
        assert (image[i].numpy() == band).all()


def test_empty_corners_are_not_drawn(real_data: Path) -> None:
    dataset = SceneDataset(real_data / 'scenes/sentinel2_pair', zero_is_nodata=True)
    for dates in (1, 2):
        for chip in RandomChips(dataset, 256, 60, dates=dates, seed=0):
            sample = dataset[chip]
            shares = sample['valid'].float().mean((-1, -2))
            assert shares.min() >= 0.75 - 0.02
            assert not sample['image'][..., 0, :, :][~sample['valid']].any()
    empty = [cover.valid_fraction for cover in RandomChips(dataset, 256, 1).coverage]
    np.testing.assert_allclose(empty, [0.897, 0.748], atol=0.005)


def test_range_of_sentinel2(real_data: Path) -> None:
    dataset = SceneDataset(real_data / 'scenes/sentinel2_pair', zero_is_nodata=True)
    stats = estimate_statistics(dataset)
    assert 100 < stats.low[0] < stats.high[0] < 20000
    assert 0.02 < stats.mean[0] < 0.9 and 0.02 < stats.std[0] < 0.5


def test_white_surroundings_are_not_drawn(real_data: Path) -> None:
    folder, white = real_data / 'scenes/sentinel2_coast', {}
    for nodata in (None, 255):
        dataset, plain = SceneDataset(folder, nodata=nodata), SceneDataset(folder)
        chips = list(RandomChips(dataset, 128, 200, seed=0))
        white[nodata] = sum(bool((plain[c]['image'] == 255).all()) for c in chips)
    assert white[None] > 20 and white[255] == 0
