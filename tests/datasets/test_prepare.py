# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterfiles import noise, tear, truncate, write
from rasterio.enums import ColorInterp

from cmid_geo.__main__ import main
from cmid_geo.datasets import Chip, SceneDataset, prepare_scenes


def test_copies_are_alike_but_for_their_tiles(tmp_path: Path) -> None:
    scenes, out = tmp_path / 'in', tmp_path / 'out'
    names = ('red', 'green', 'blue', 'nir')
    write(
        scenes / 'x' / '20200101.tif',
        noise(4, 300, 200),
        descriptions=names,
        nodata=7,
        tiled=False,
    )
    mask = np.full((300, 200), 255, np.uint8)
    mask[:50] = 0
    write(
        scenes / 'y' / '20200101.tif', noise(3, 300, 200), mask=mask, photometric='rgb'
    )
    done = prepare_scenes(scenes, out, 'none', 64)
    assert not done.bad and not done.kept and len(done.written) == 2
    for place in 'xy':
        paths = (folder / place / '20200101.tif' for folder in (scenes, out))
        one, two = (rasterio.open(path) for path in paths)
        assert (two.block_shapes[0], two.compression) == ((64, 64), None)
        for name in (
            'crs',
            'transform',
            'nodata',
            'descriptions',
            'colorinterp',
            'dtypes',
        ):
            assert getattr(one, name) == getattr(two, name), name
        assert (one.read() == two.read()).all()
        assert (one.read_masks() == two.read_masks()).all()
    assert one.colorinterp[0] == ColorInterp.red and not one.read_masks()[0, 0, 0]
    assert not list(out.rglob('.*'))


def test_files_of_a_band_each_become_one(tmp_path: Path) -> None:
    scenes, out = tmp_path / 'in', tmp_path / 'out'
    for number in (8, 2, 11):
        array = noise(1, 96, 96, seed=number, dtype='uint16')
        write(scenes / f'S2_20200101_B{number:02}.tif', array)
    # Coarser ones stay by themselves
    write(scenes / 'L_20210101_B2.tif', noise(1, 96, 96))
    write(scenes / 'L_20210101_B3.tif', noise(1, 48, 48), res=20)
    done = prepare_scenes(scenes, out)
    names = ['L_20210101_B2.tif', 'L_20210101_B3.tif', 'S2_20200101.tif']
    assert sorted(path.name for path in out.iterdir()) == names and not done.bad
    before = SceneDataset(str(scenes / 'S2*'))
    after = SceneDataset(out / 'S2_20200101.tif')
    assert after.bands == before.bands == ('B02', 'B08', 'B11')
    assert after.scenes[0].start == before.scenes[0].start
    chip = Chip((0,), 0, 0, 96, 96)
    assert (after[chip]['image'] == before[chip]['image']).all()


def test_what_is_there_is_kept_and_what_is_bad_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenes, out = tmp_path / 'in', tmp_path / 'out'
    for name in 'abc':
        write(scenes / f'{name}.tif', noise(1, 200, 200))
    truncate(scenes / 'b.tif')
    command = ['prepare', str(scenes), str(out), '--blocksize', '64']
    with pytest.raises(SystemExit) as error:
        main(command)
    assert error.value.code == 1
    said = capsys.readouterr().out
    assert '2 written, 0 kept, 1 not prepared' in said and 'b.tif' in said
    # Nothing is left of one that fails half way
    write(scenes / 'b.tif', noise(1, 200, 200))
    tear(scenes / 'b.tif')
    assert str(scenes / 'b.tif') in prepare_scenes(scenes, out, blocksize=64).bad
    assert sorted(path.name for path in out.iterdir()) == ['a.tif', 'c.tif']

    (scenes / 'b.tif').unlink()
    whole = (out / 'a.tif').read_bytes()
    stamp = (out / 'a.tif').stat().st_mtime_ns
    truncate(out / 'c.tif')
    done = prepare_scenes(scenes, out, blocksize=64)
    assert done.kept == [str(out / 'a.tif')] and done.written == [str(out / 'c.tif')]
    assert (out / 'a.tif').stat().st_mtime_ns == stamp
    assert (out / 'c.tif').read_bytes() == whole

    # Another scene of the name is neither taken for the copy nor overwritten
    write(scenes / 'a.tif', noise(1, 100, 100))
    done = prepare_scenes(scenes, out, blocksize=64)
    assert 'another scene' in done.bad[str(scenes / 'a.tif')]
    assert (out / 'a.tif').read_bytes() == whole


def test_scenes_are_not_overwritten(tmp_path: Path) -> None:
    path = write(tmp_path / 'a.tif', noise(1, 100, 100))
    content = path.read_bytes()
    with pytest.raises(ValueError, match='another to write to'):
        prepare_scenes(tmp_path, tmp_path)
    with pytest.raises(ValueError, match='multiple of 16'):
        prepare_scenes(tmp_path, tmp_path / 'out', blocksize=100)
    assert path.read_bytes() == content
