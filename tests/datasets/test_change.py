# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from rasterfiles import noise, write
from rasterio.warp import transform as warp_points
from torchgeo.datasets import DatasetNotFoundError

from cmid_geo.datasets import ChangePairs, Chip

DATES = ('20200101', '20210101')


def write_place(folder: Path, seed: int = 0, size: int = 40, **options: Any) -> None:
    for number, date in enumerate(DATES):
        write(folder / f'{date}.tif', noise(3, size, size, seed + number), **options)
    mask = (noise(1, size, size, seed + 2) > 150).astype('uint8')
    write(folder / 'change.tif', mask, **options)


def ramp(size: int, scale: float = 1.0) -> np.ndarray:
    """Pixels whose value is their column, in steps of *scale*, plus 100 times their row."""
    place = (np.arange(size) + 0.5) * scale
    return (place + 100 * place[:, None])[None].astype('float32')


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_place(tmp_path / 'a')
    write_place(tmp_path / 'b', seed=10, size=50, crs='EPSG:32619')
    return tmp_path


def test_a_folder_a_place(root: Path) -> None:
    pairs = ChangePairs(root)
    assert pairs.places == ('a', 'b') and len(pairs) == 2
    sample = pairs[1]
    first, second, mask = (
        rasterio.open(root / 'b' / f'{name}.tif').read() for name in (*DATES, 'change')
    )
    assert torch.equal(sample['image'], torch.tensor(np.stack([first, second])).float())
    assert torch.equal(sample['mask'], torch.tensor(mask[0]).long())
    assert sample['valid'].all() and sample['mask'].dtype == torch.int64
    window = pairs[Chip((1,), 7, 3, 16, 8)]
    for key in ('image', 'mask'):
        assert torch.equal(window[key], sample[key][..., 3:11, 7:23])


def test_bands_are_chosen(root: Path) -> None:
    image = ChangePairs(root)[0]['image']
    assert torch.equal(ChangePairs(root, bands=[3, 1])[0]['image'], image[:, [2, 0]])


def test_lists_are_matched_by_name_else_by_order(tmp_path: Path) -> None:
    made = {}
    for kind, seeds in (('A', (1, 2)), ('B', (3, 4)), ('label', (5, 6))):
        for name, seed in zip(('x', 'y'), seeds):
            made[kind, name] = noise(1, 8, 8, seed)
            write(tmp_path / kind / f'{name}.tif', made[kind, name])
    named = ChangePairs(
        before=str(tmp_path / 'A'),
        after=[str(tmp_path / 'B' / f'{name}.tif') for name in ('y', 'x')],
        masks=str(tmp_path / 'label' / '*.tif'),
    )
    assert named.places == ('x', 'y')
    for index, name in enumerate(named.places):
        sample = named[index]
        expected = np.stack([made['A', name], made['B', name]])
        assert torch.equal(sample['image'], torch.tensor(expected).float())
        assert torch.equal(sample['mask'], torch.tensor(made['label', name][0]).long())
    (tmp_path / 'B' / 'x.tif').rename(tmp_path / 'B' / 'z.tif')
    ordered = ChangePairs(
        before=str(tmp_path / 'A'),
        after=str(tmp_path / 'B'),
        masks=str(tmp_path / 'label'),
    )
    assert torch.equal(ordered[1]['image'][1], torch.tensor(made['B', 'x']).float())


def test_dates_are_laid_on_the_grid_of_the_mask(tmp_path: Path) -> None:
    # The mask begins 10 pixels of 10 m inside; the first date is shifted by half a pixel,
    # the second has pixels of 20 m
    write(tmp_path / 'p' / '2020-01-01.tif', ramp(40), origin=(500005, 5000000))
    write(tmp_path / 'p' / '2021-01-01.tif', ramp(20, 2.0), res=20.0)
    mask = noise(1, 20, 20)
    write(tmp_path / 'p' / 'change.tif', mask, origin=(500100, 4999900))
    sample = ChangePairs(tmp_path)[0]
    expected = torch.tensor(ramp(40)[0, 10:30, 10:30])
    assert sample['valid'].all()
    torch.testing.assert_close(sample['image'][0, 0], expected - 0.5)
    torch.testing.assert_close(sample['image'][1, 0], expected)
    assert torch.equal(sample['mask'], torch.tensor(mask[0]).long())


def test_a_date_of_another_crs_shows_the_same_ground(tmp_path: Path) -> None:
    write(tmp_path / 'p' / '2020-01-01.tif', ramp(60))
    write(tmp_path / 'p' / 'change.tif', noise(1, 20, 20), origin=(500200, 4999800))
    # Values of the second are the first's, looked up on the ground
    east, north = 15.0, 45.155
    res, size = 1e-4, 80
    lon = east + (np.arange(size) + 0.5) * res
    lat = north - (np.arange(size) + 0.5) * res
    grid = [axis.ravel().tolist() for axis in np.meshgrid(lon, lat)]
    x, y = warp_points('EPSG:4326', 'EPSG:32633', *grid)
    col = (np.array(x) - 500000) / 10
    row = (5000000 - np.array(y)) / 10
    second = (col + 100 * row).reshape(1, size, size).astype('float32')
    write(
        tmp_path / 'p' / '2021-01-01.tif', second, crs='EPSG:4326',
        origin=(east, north), res=res,
    )  # fmt: skip
    sample = ChangePairs(tmp_path)[0]
    assert sample['valid'].all()
    first, second = sample['image'][:, 0]
    assert (first - second).abs().max() < 0.5  # a two-hundredth of a pixel


def test_beyond_the_mask_nothing_is_valid(root: Path) -> None:
    sample = ChangePairs(root)[Chip((0,), 32, -8, 16, 16)]
    assert sample['valid'][8:, :8].all() and sample['valid'].sum() == 64
    assert (sample['image'] * ~sample['valid'] == 0).all()
    assert (sample['mask'][~sample['valid']] == 0).all()


def test_what_a_date_lacks_is_not_valid(tmp_path: Path) -> None:
    write_place(tmp_path / 'p')
    second = noise(3, 40, 40, 1)
    second[:, :5] = 0
    write(tmp_path / 'p' / f'{DATES[1]}.tif', second, nodata=0)
    pairs = ChangePairs(tmp_path)
    sample = pairs[0]
    assert not sample['valid'][:5].any() and sample['valid'][5:].all()
    assert (sample['image'][:, :, :5] == 0).all()
    cells = pairs.validity(0, 8)
    assert cells is not None and not cells[0].any() and cells[1:].all()
    write_place(tmp_path / 'p')
    assert ChangePairs(tmp_path).validity(0) is None


def test_labels_that_are_not_known(tmp_path: Path) -> None:
    write_place(tmp_path / 'p')
    mask = np.zeros((1, 40, 40), 'uint8')
    mask[:, 0], mask[:, 1] = 9, 1
    write(tmp_path / 'p' / 'change.tif', mask, nodata=9)
    found = ChangePairs(tmp_path, ignore_index=254)[0]
    assert (found['mask'][0] == 254).all() and found['valid'].all()
    assert (found['mask'][1] == 1).all() and (found['mask'][2:] == 0).all()
    # Masks that declare 0 do so to be seen through: no change is a label
    write(tmp_path / 'p' / 'change.tif', mask, nodata=0)
    found = ChangePairs(tmp_path)[0]
    assert torch.equal(found['mask'], torch.tensor(mask[0]).long())


def test_any_value_may_be_change(tmp_path: Path) -> None:
    write_place(tmp_path / 'p')
    mask = np.zeros((1, 40, 40), 'uint8')
    mask[:, 3] = 255
    write(tmp_path / 'p' / 'change.tif', mask)
    assert set(ChangePairs(tmp_path)[0]['mask'].unique().tolist()) == {0, 255}
    found = ChangePairs(tmp_path, binary=True)[0]['mask']
    assert torch.equal(found, torch.tensor(mask[0] > 0).long())


def test_some_places(root: Path) -> None:
    pairs = ChangePairs(root)
    some = pairs.select(['b'])
    assert some.places == ('b',) and len(pairs) == 2
    assert torch.equal(some[0]['mask'], pairs[1]['mask'])
    assert [Path(file).parent.name for file in some.files] == ['b', 'b']


def test_transforms_are_applied(root: Path) -> None:
    pairs = ChangePairs(root, transforms=lambda sample: {'mask': sample['mask'] + 1})
    assert pairs[0]['mask'].min() == 1


def test_places_that_are_not_whole(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='0 masks .* by mask_name='):
        ChangePairs(root, mask_name='truth')
    write(root / 'a' / '20220101.tif', noise(3, 40, 40))
    with pytest.raises(ValueError, match='3 images of 3 dates: a place needs two'):
        ChangePairs(root)


def test_bad_arguments(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='give root alone, or the three'):
        ChangePairs(root, masks=str(root))
    with pytest.raises(ValueError, match='give root alone, or the three'):
        ChangePairs(before=str(root), after=str(root))
    (tmp_path / 'empty').mkdir()
    with pytest.raises(DatasetNotFoundError):
        ChangePairs(tmp_path / 'empty')
    files = sorted(str(path) for path in root.rglob('*.tif'))
    with pytest.raises(ValueError, match='hold 1, 2 and 1 scenes'):
        ChangePairs(before=files[0], after=[files[1], files[4]], masks=files[2])
    with pytest.raises(ValueError, match='share no ground'):
        ChangePairs(before=files[0], after=files[4], masks=files[2])


def test_dates_with_other_bands(tmp_path: Path) -> None:
    write(tmp_path / 'A' / 'x.tif', noise(3, 8, 8))
    write(tmp_path / 'B' / 'x.tif', noise(4, 8, 8))
    write(tmp_path / 'M' / 'x.tif', noise(1, 8, 8))
    paths: Any = {
        name: str(tmp_path / folder)
        for name, folder in (('before', 'A'), ('after', 'B'), ('masks', 'M'))
    }
    with pytest.raises(ValueError, match=r'bands=\[1, 2, 3\]'):
        ChangePairs(**paths)
    assert ChangePairs(bands=[1, 2, 3], **paths)[0]['image'].shape == (2, 3, 8, 8)
