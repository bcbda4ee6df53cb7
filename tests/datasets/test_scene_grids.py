# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.warp
import torch
from rasterfiles import noise, write
from rasterio.vrt import WarpedVRT
from torchgeo.samplers import GriddedPatchSampler, RandomPatchSampler

from cmid_geo.datasets import Chip, SceneDataset
from cmid_geo.datasets.reader import SceneReader
from cmid_geo.datasets.resampling import shrink


def in_next_zone(x: float, y: float) -> tuple[float, float]:
    xs, ys = rasterio.warp.transform('EPSG:32633', 'EPSG:32632', [x], [y])
    return xs[0], ys[0]


class TestBands:
    def test_by_name_and_position(self, tmp_path: Path) -> None:
        array = noise(3, 64, 64)
        write(tmp_path / 'a.tif', array, descriptions=('red', 'green', 'nir'))
        assert SceneDataset(tmp_path).bands == ('red', 'green', 'nir')
        dataset = SceneDataset(tmp_path, bands=['nir', 1])
        assert dataset.bands == ('nir', 'red')
        assert (dataset[:, :]['image'].numpy() == array[[2, 0]]).all()
        with pytest.raises(ValueError, match=r"no band 'blue'.*'red', 'green', 'nir'"):
            SceneDataset(tmp_path, bands=['blue'])

    def test_follow_names_across_files(self, tmp_path: Path) -> None:
        array = noise(2, 64, 64)
        write(tmp_path / 'a' / '20200101.tif', array, descriptions=('red', 'nir'))
        write(tmp_path / 'b' / '20210101.tif', array[::-1], descriptions=('nir', 'red'))
        chips = SceneDataset(tmp_path)[Chip((0, 1), 0, 0, 64, 64)]['image']
        assert torch.equal(chips[0], chips[1])

    def test_one_file_a_band(self, tmp_path: Path) -> None:
        array = noise(2, 64, 64)
        write(tmp_path / '2020-05-06, L1C, B04.tif', array[:1])
        write(tmp_path / '2020-05-06, L1C, B8A.tif', array[1:])
        half = np.full((1, 32, 32), 7, np.uint16)
        write(tmp_path / '2020-05-06, L1C, B11.tif', half, res=20)
        dataset = SceneDataset(tmp_path)
        assert len(dataset) == 1 and dataset.bands == ('B04', 'B8A', 'B11')
        assert len(dataset.scenes[0].files) == 3 and dataset.scenes[0].dtype == 'uint16'
        assert str(dataset.scenes[0].start.date()) == '2020-05-06'
        image = dataset[:, :]['image'].numpy()
        assert (image[:2] == array).all() and (image[2] == 7).all()
        assert SceneDataset(tmp_path, bands=['B11', 'B04']).bands == ('B11', 'B04')

    def test_map_sheets_are_no_bands(self, tmp_path: Path) -> None:
        for i, sheet in enumerate(('B1', 'B2')):
            path = tmp_path / f'city_{sheet}.tif'
            write(path, noise(1, 64, 64), origin=(500000 + 640 * i, 5000000))
        assert len(SceneDataset(tmp_path)) == 2

    def test_different_counts(self, tmp_path: Path) -> None:
        write(tmp_path / 'a.tif', noise(4, 64, 64))
        write(tmp_path / 'b.tif', noise(3, 64, 64))
        with pytest.raises(
            ValueError, match=r"b.tif' has 3 .*a.tif' has 4.*bands=\[1, 2, 3\]"
        ):
            SceneDataset(tmp_path)
        assert len(SceneDataset(tmp_path, bands=[1, 2, 3])) == 2


class TestGrids:
    def test_mixed_crs(self, tmp_path: Path) -> None:
        rows, cols = np.mgrid[0:200, 0:200]
        smooth = (100 + 50 * np.sin(rows / 20) + 40 * np.cos(cols / 15))[None]
        write(tmp_path / 'a.tif', smooth.astype(np.float32))
        # About the same ground in the zone next to the west
        other = write(
            tmp_path / 'b.tif',
            smooth.astype(np.float32),
            crs='EPSG:32632',
            origin=in_next_zone(500000, 5000000),
        )
        dataset = SceneDataset(tmp_path)
        near, far = dataset.scenes
        assert not near.needs_warp and far.needs_warp
        offset = (far.transform.c - near.transform.c) / 10
        assert abs(offset - round(offset)) < 1e-6
        sample = dataset[Chip((1,), 0, 0, far.width, far.height)]
        with rasterio.open(other) as file, WarpedVRT(
            file, crs='EPSG:32633', transform=far.transform, width=far.width,
            height=far.height, resampling=rasterio.enums.Resampling.bilinear, nodata=-1,
        ) as vrt:  # fmt: skip
            expected = torch.from_numpy(vrt.read())
        both = sample['valid'] & (expected[0] >= 0)
        assert (
            both.float().mean() > 0.85
        )  # the rest are the corners: the zones are turned
        error = (sample['image'][0] - expected[0]).abs()[both]
        assert error.max() < 0.5  # GDAL's own approximation is an eighth of a pixel
        cells = torch.from_numpy(dataset.validity(1))
        mean = torch.nn.functional.adaptive_avg_pool2d(
            sample['valid'][None].float(), cells.shape
        )
        assert (mean[0] - cells.float()).abs().mean() < 0.02

    def test_mixed_resolution_and_fixed_grid(self, tmp_path: Path) -> None:
        array = noise(1, 64, 64)
        write(tmp_path / 'a.tif', array)
        write(tmp_path / 'b.tif', np.full((1, 32, 32), 9, np.uint8), res=20)
        dataset = SceneDataset(tmp_path)
        assert [s.needs_warp for s in dataset.scenes] == [False, True]
        assert (dataset.scenes[1].width, dataset.scenes[1].height) == (64, 64)
        sample = dataset[Chip((1,), 0, 0, 64, 64)]
        assert sample['image'].eq(9).all() and sample['valid'].all()
        with pytest.raises(ValueError, match='units of the CRS above 0'):
            SceneDataset(tmp_path, res=0.0)

    def test_compose(self, tmp_path: Path) -> None:
        array = noise(3, 100, 100)
        write(tmp_path / 'a' / '20200101.tif', array[:2])
        masked = array[2:].copy()
        masked[:, :50] = 0
        write(tmp_path / 'b' / '20200101.tif', masked, nodata=0)
        first, second = SceneDataset(tmp_path / 'a'), SceneDataset(tmp_path / 'b')
        both = first & second
        for query in GriddedPatchSampler(both, size=50):
            sample = both[query]
            assert sample['image'].shape == (3, 50, 50)
            assert sample['valid'].shape == (50, 50)
        assert not both[:, 4999500:5000000]['valid'].any()
        either = SceneDataset(tmp_path / 'a', bands=[1]) | second
        assert either[:, :]['image'].shape == (1, 100, 100)
        assert either[:, :]['valid'].all()

    def test_compose_across_crs(self, tmp_path: Path) -> None:
        write(tmp_path / 'a' / 'x.tif', noise(1, 100, 100))
        origin = in_next_zone(499000, 5001000)
        write(
            tmp_path / 'b' / 'x.tif',
            noise(1, 999, 999),
            crs='EPSG:32632',
            origin=origin,
            res=5,
        )
        first, second = SceneDataset(tmp_path / 'a'), SceneDataset(tmp_path / 'b')
        both = first & second
        assert second.crs == first.crs and second.res == first.res == (10, 10)
        query = next(iter(RandomPatchSampler(both, size=32, length=1, generator=0)))
        sample = both[query]
        assert sample['image'].shape == (2, 32, 32) and sample['valid'].all()


@pytest.mark.parametrize('res', [4.0, 14.0, 30.0])
def test_coarser_pixels_do_not_depend_on_the_window(tmp_path: Path, res: float) -> None:
    write(tmp_path / 'fine.tif', noise(1, 400, 400), res=res / 3.3)
    (scene,) = SceneDataset(tmp_path, res=res).scenes
    assert scene.needs_warp
    reader = SceneReader()
    whole, valid = reader.read(scene, scene.grid)
    for row, col in ((0, 0), (13, 29), (14, 30), (31, 2)):
        part, known = reader.read(scene, scene.grid.window(col, row, 40, 30))
        assert (known == valid[row : row + 30, col : col + 40]).all()
        here = whole[:, row : row + 30, col : col + 40]
        np.testing.assert_allclose(part, here, atol=1e-3)


def test_large_blocks_keep_their_digits() -> None:
    data = np.full((1, 4100, 4100), 3000.5, 'float32')
    valid = np.ones((4100, 4100), bool)
    means, whole = shrink(data, valid, 4100)
    # Summed in one go float32 gives up at 2**24 of them
    assert whole.item() and means.item() == pytest.approx(3000.5, rel=1e-3)
