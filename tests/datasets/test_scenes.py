# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

import gc
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
import rasterio.warp
import torch
from rasterfiles import noise, write
from rasterio.enums import ColorInterp
from torch.utils.data import DataLoader
from torchgeo.datasets import RasterDataset, stack_samples
from torchgeo.samplers import RandomPatchSampler

from cmid_geo.datasets import Chip, RandomChips, SceneDataset, estimate_statistics


def raw(path: Path, col: int, row: int, width: int, height: int) -> torch.Tensor:
    with rasterio.open(path) as file:
        window = ((row, row + height), (col, col + width))
        return torch.from_numpy(file.read(window=window).astype(np.float32))


class TestReading:
    def test_chip_equals_file(self, tmp_path: Path) -> None:
        path = write(tmp_path / '20200101.tif', noise(3, 150, 200))
        sample = SceneDataset(tmp_path)[Chip((0,), 37, 41, 100, 90)]
        assert torch.equal(sample['image'], raw(path, 37, 41, 100, 90))
        assert sample['image'].dtype == torch.float32
        assert sample['valid'].all() and sample['valid'].shape == (90, 100)
        assert sample['window'].tolist() == [37, 41, 100, 90]
        assert sample['scene'].item() == 0

    def test_overhang_is_invalid(self, tmp_path: Path) -> None:
        path = write(tmp_path / 'a.tif', noise(1, 50, 60))
        sample = SceneDataset(tmp_path)[Chip((0,), -10, 20, 100, 100)]
        assert torch.equal(sample['image'][:, :30, 10:70], raw(path, 0, 20, 60, 30))
        assert sample['valid'].sum() == 30 * 60
        assert sample['image'][:, ~sample['valid']].eq(0).all()

    def test_slice_equals_torchgeo(self, tmp_path: Path) -> None:
        for i, name in enumerate(('20200101.tif', '20210101.tif')):
            write(tmp_path / name, noise(2, 200, 200, seed=i), nodata=0)

        class Dated(RasterDataset):
            filename_regex = r'(?P<date>\d{8})'

        ours, theirs = SceneDataset(tmp_path), Dated(tmp_path)
        assert ours.crs == theirs.crs and ours.res == theirs.res
        assert ours.bounds == theirs.bounds
        day = slice(pd.Timestamp(2021, 1, 1), pd.Timestamp(2021, 12, 31))
        for x, y in RandomPatchSampler(theirs, size=64, length=5, generator=0):
            for query in ((x, y), (x, y, day), (slice(x.start, x.stop, 10.0), y)):
                sample, expected = ours[query], theirs[query]
                for key in ('image', 'bounds', 'transform'):
                    assert torch.equal(sample[key], expected[key]), key

    def test_slice_elsewhere(self, tmp_path: Path) -> None:
        write(tmp_path / '20200101.tif', noise(1, 64, 64))
        dataset = SceneDataset(tmp_path)
        with pytest.raises(IndexError, match='not found in dataset with bounds'):
            dataset[0:100, 0:100]
        with pytest.raises(IndexError, match='not found'):
            dataset[:, :, pd.Timestamp(2021, 1, 1) : pd.Timestamp(2022, 1, 1)]
        with pytest.raises(ValueError, match='narrower than a pixel'):
            dataset[500000:500001]

    def test_mosaic_takes_first_valid(self, tmp_path: Path) -> None:
        first = noise(1, 64, 64, seed=1)
        first[:, :, 30:] = 0
        write(tmp_path / 'a.tif', first, nodata=0)
        second = write(tmp_path / 'b.tif', noise(1, 64, 64, seed=2), nodata=0)
        image = SceneDataset(tmp_path)[:, :]['image'].numpy()
        assert (image[:, :, :30] == first[:, :, :30]).all()
        assert (image[:, :, 30:] == raw(second, 30, 0, 34, 64).numpy()).all()

    def test_subpixel_is_bilinear(self, tmp_path: Path) -> None:
        ramp = np.tile(np.arange(64, dtype=np.float32), (1, 64, 1))
        write(tmp_path / 'a.tif', ramp)
        left, top = 500000, 5000000
        sample = SceneDataset(tmp_path)[left + 103 : left + 203, top - 200 : top - 100]
        expected = torch.arange(10.0).add(10.3).expand(10, 10)
        torch.testing.assert_close(sample['image'][0], expected)
        assert sample['valid'].all()

    def test_shift_of_a_hundredth_is_no_shift(self, tmp_path: Path) -> None:
        path = write(tmp_path / 'a.tif', noise(1, 64, 64))
        left, top = 500000.05, 5000000.05
        image = SceneDataset(tmp_path)[left + 100 : left + 300, top - 300 : top - 100][
            'image'
        ]
        assert torch.equal(image, raw(path, 10, 10, 20, 20))

    def test_dates_of_a_chip(self, tmp_path: Path) -> None:
        first = write(tmp_path / '20200101.tif', noise(2, 90, 90, seed=1))
        origin = (499980, 5000030)
        second = write(
            tmp_path / '20210101.tif', noise(2, 90, 90, seed=2), origin=origin
        )
        sample = SceneDataset(tmp_path)[Chip((0, 1), 5, 6, 64, 64)]
        assert torch.equal(sample['image'][0], raw(first, 5, 6, 64, 64))
        assert torch.equal(sample['image'][1], raw(second, 7, 9, 64, 64))
        assert sample['valid'].shape == (2, 64, 64) and sample['scene'].tolist() == [
            0,
            1,
        ]

    def test_transforms_and_cache(self, tmp_path: Path) -> None:
        write(tmp_path / 'a.tif', noise(1, 64, 64))
        chip = Chip((0,), 0, 0, 32, 32)
        plain = SceneDataset(tmp_path, cache=False)
        doubled = SceneDataset(
            tmp_path, transforms=lambda s: s | {'image': s['image'] * 2}
        )
        assert torch.equal(doubled[chip]['image'], plain[chip]['image'] * 2)
        assert not plain._reader._handles

    def test_pickle_and_workers(self, tmp_path: Path) -> None:
        write(tmp_path / 'a.tif', noise(1, 100, 100))
        dataset = SceneDataset(tmp_path)
        chips = list(RandomChips(dataset, 32, 8, seed=0))
        expected = torch.stack([dataset[chip]['image'] for chip in chips])
        copy = pickle.loads(pickle.dumps(dataset))
        assert not copy._reader._handles and dataset._reader._handles
        assert torch.equal(copy[chips[0]]['image'], expected[0])
        # Forked, so that the workers inherit handles they must not use
        loader = DataLoader(
            dataset,
            batch_size=4,
            sampler=chips,
            num_workers=2,
            collate_fn=stack_samples,
            multiprocessing_context='fork',
        )
        assert torch.equal(torch.cat([batch['image'] for batch in loader]), expected)


class TestValidity:
    def test_nodata_of_any_band(self, tmp_path: Path) -> None:
        array = noise(2, 64, 64, dtype='float32')
        array[0, 3, 4] = -9999
        array[1, 5, 6] = np.nan
        array[0, 7, 8] = np.inf
        write(tmp_path / 'a.tif', array, nodata=-9999)
        sample = SceneDataset(tmp_path)[Chip((0,), 0, 0, 64, 64)]
        assert (~sample['valid']).nonzero().tolist() == [[3, 4], [5, 6], [7, 8]]
        assert sample['image'][:, ~sample['valid']].eq(0).all()
        # A band that is not selected does not matter
        assert SceneDataset(tmp_path, bands=[2])[Chip((0,), 0, 0, 5, 5)]['valid'].all()

    @pytest.mark.parametrize('declared', [True, False])
    def test_zero_is_nodata_where_all_are_zero(
        self, tmp_path: Path, declared: bool
    ) -> None:
        array = noise(2, 64, 64)
        array[:, 3, 4] = 0
        array[1, 5, 6] = 0  # dark water
        write(tmp_path / 'a.tif', array, nodata=0 if declared else None)
        valid = SceneDataset(tmp_path, zero_is_nodata=True)[:, :]['valid']
        assert (~valid).nonzero().tolist() == [[3, 4]]
        assert SceneDataset(tmp_path)[:, :]['valid'].all() == (not declared)

    def test_alpha_is_no_band(self, tmp_path: Path) -> None:
        array = noise(4, 64, 64)
        array[3] = 255
        array[3, :, 10:] = 0
        path = write(tmp_path / 'a.tif', array)
        with rasterio.open(path, 'r+') as file:
            rgba = ('red', 'green', 'blue', 'alpha')
            file.colorinterp = [ColorInterp[name] for name in rgba]
        dataset = SceneDataset(tmp_path)
        sample = dataset[:, :]
        assert dataset.bands == ('B1', 'B2', 'B3')
        assert sample['valid'][:, :10].all() and not sample['valid'][:, 10:].any()
        assert (sample['image'][:, :, :10].numpy() == array[:3, :, :10]).all()
        with pytest.raises(ValueError, match=r"no band 4.*'B1', 'B2', 'B3'"):
            SceneDataset(tmp_path, bands=[4])

    def test_near_infrared_declared_alpha(self, tmp_path: Path) -> None:
        array = noise(4, 64, 64)
        array[3, 5, 6] = 0  # dark water is not transparent
        write(tmp_path / 'a.tif', array, photometric='rgb', alpha='yes')
        with pytest.warns(
            UserWarning, match=r'band 4 .*a.tif.*-colorinterp_4 undefined'
        ):
            dataset = SceneDataset(tmp_path)
        assert (dataset[:, :]['image'].numpy() == array).all()
        assert dataset[:, :]['valid'].all()

    def test_mask(self, tmp_path: Path) -> None:
        mask = np.full((64, 64), 255, np.uint8)
        mask[:20] = 0
        write(tmp_path / 'a.tif', noise(3, 64, 64), mask=mask)
        valid = SceneDataset(tmp_path)[:, :]['valid']
        assert torch.equal(valid, torch.from_numpy(mask > 0))

    def test_nodata_does_not_bleed(self, tmp_path: Path) -> None:
        array = np.full((1, 64, 64), 100, np.float32)
        array[:, 20:30, 20:30] = -9999
        write(tmp_path / 'a.tif', array, nodata=-9999)
        left, top = 500003, 4999997
        sample = SceneDataset(tmp_path)[left : left + 600, top - 600 : top]
        assert set(sample['image'].unique().tolist()) == {0.0, 100.0}
        # A pixel is valid only if all pixels it comes from are: 10 become 11
        assert (~sample['valid']).sum() == 11 * 11

    def test_coarser_averages_valid_pixels(self, tmp_path: Path) -> None:
        array = noise(1, 64, 64, dtype='float32')
        write(tmp_path / 'a.tif', array)
        sample = SceneDataset(tmp_path, res=40.0)[Chip((0,), 0, 0, 16, 16)]
        expected = array.reshape(1, 16, 4, 16, 4).mean((2, 4))
        np.testing.assert_allclose(sample['image'].numpy(), expected, rtol=1e-5)


def test_files_are_closed_when_the_dataset_goes(tmp_path: Path) -> None:
    path = write(tmp_path / 'a.tif', noise(2, 80, 80))
    dataset = SceneDataset(str(path))
    dataset[Chip((0,), 0, 0, 32, 32)]
    (handles,) = dataset._reader._handles.values()
    (handle,) = handles.values()
    assert not handle.closed
    # As at the end of the interpreter, where GDAL would complain of it
    del dataset
    gc.collect()
    assert handle.closed


class TestDeclaredNodata:
    """A fill value that files do not declare."""

    def white_around(
        self, folder: Path, dtype: str = 'uint8', fill: int = 255
    ) -> np.ndarray:
        data = noise(3, 120, 140).astype(dtype)
        data[:, :50] = fill
        data[0, 60:] = fill  # bright in one band is no fill
        write(folder / 'a.tif', data)
        return (data != fill).any(0)

    @pytest.mark.parametrize(
        ('dtype', 'fill'), [('uint8', 255), ('int16', -9999), ('float32', 1e6)]
    )
    def test_all_bands_have_it(self, tmp_path: Path, dtype: str, fill: int) -> None:
        valid = self.white_around(tmp_path, dtype, fill)
        dataset = SceneDataset(tmp_path, nodata=fill)
        sample = dataset[Chip((0,), 0, 0, 140, 120)]
        assert (sample['valid'].numpy() == valid).all() and not valid[:50].any()
        assert not sample['image'][:, ~sample['valid']].any()
        assert (sample['image'][0, 60:] == fill).all()
        coarse = dataset.validity(0, 12)
        assert coarse is not None and not coarse[:5].any() and coarse[5:].all()
        # Nothing is drawn or counted there
        drawn = list(RandomChips(dataset, 32, 50, seed=0))
        assert min(chip.row for chip in drawn) >= 50 - 0.25 * 32 - 4
        assert estimate_statistics(dataset, patch_size=32).mean[1] > 0
        # Values that no pixel can have, and 0 beside it
        assert (
            SceneDataset(tmp_path, nodata=0.5).scenes[0].fill is None
            or dtype == 'float32'
        )
        both = SceneDataset(tmp_path, nodata=fill, zero_is_nodata=True)
        assert both.scenes[0].fills == (0, fill)

    def test_files_that_declare_one_keep_theirs(self, tmp_path: Path) -> None:
        data = noise(1, 64, 64)
        data[:, :10], data[:, 50:] = 255, 7
        write(tmp_path / 'a.tif', data, nodata=7)
        valid = SceneDataset(tmp_path, nodata=255)[Chip((0,), 0, 0, 64, 64)]['valid']
        assert (valid.numpy() == (data[0] != 7)).all() and valid[:10].all()

    def test_warped_and_coarser_bands(self, tmp_path: Path) -> None:
        fine, coarse = noise(1, 128, 128), noise(1, 64, 64, seed=1)
        fine[:, :64] = coarse[:, :32] = 255
        write(tmp_path / 'x_B02.tif', fine)
        write(tmp_path / 'x_B05.tif', coarse, res=20.0)
        dataset = SceneDataset(tmp_path, nodata=255)
        sample = dataset[Chip((0,), 0, 0, 128, 128)]
        assert dataset.bands == ('B02', 'B05') and len(dataset) == 1
        # Half a coarse pixel next to the edge is bright on one side only
        assert not sample['valid'][:62].any() and sample['valid'][66:].all()
        assert sample['image'][1, 66:].max() < 200
        warped = SceneDataset(tmp_path, nodata=255, res=15.0)
        grid = warped.scenes[0].grid
        sample = warped[Chip((0,), 0, 0, grid.width, grid.height)]
        assert not sample['valid'][:41].any() and sample['valid'][46:-1, 1:-1].all()


@pytest.mark.parametrize('dtype', ['uint8', 'uint16', 'int16'])
def test_chips_keep_their_type(tmp_path: Path, dtype: str) -> None:
    array = noise(2, 96, 96, dtype=dtype)
    array[:, :20, :20] = 0
    write(tmp_path / 'a.tif', array, nodata=0)
    # Half a pixel beside the first: interpolated
    write(tmp_path / 'b.tif', array, nodata=0, origin=(500005, 5000000), res=20)
    plain, kept = (SceneDataset(tmp_path, keep_dtype=keep) for keep in (False, True))
    assert plain.dtype == torch.float32 and kept.dtype == getattr(torch, dtype)
    for chip in (Chip((0,), 3, 5, 64, 64), Chip((1,), 7, 0, 64, 64)):
        expected, found = plain[chip], kept[chip]
        assert found['image'].dtype == kept.dtype
        assert torch.equal(found['image'].float(), expected['image'].round())
        assert torch.equal(found['valid'], expected['valid'])
    assert expected['image'].frac().any()
    x, y, t = kept.bounds
    assert kept[x, y, t]['image'].dtype == torch.float32


def test_chips_of_several_types_are_float(tmp_path: Path) -> None:
    write(tmp_path / 'a.tif', noise(2, 64, 64))
    write(tmp_path / 'b.tif', noise(2, 64, 64, dtype='uint16'))
    dataset = SceneDataset(tmp_path, keep_dtype=True)
    types = {dataset[Chip((i,), 0, 0, 32, 32)]['image'].dtype for i in (0, 1)}
    assert types == {torch.float32} == {dataset.dtype}
