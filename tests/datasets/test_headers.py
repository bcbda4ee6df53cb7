# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pyproj import CRS
from rasterfiles import noise, truncate, write

from cmid_geo.datasets import Chip, SceneDataset, header_cache, headers
from cmid_geo.datasets.filenames import find_rasters
from cmid_geo.datasets.headers import Headers, read_headers


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six files of several kinds."""
    scenes = tmp_path / 'scenes'
    for i in range(5):
        array = noise(3, 64, 64 + i, seed=i, dtype='uint16')
        place = scenes / f'scene{i}_201807{i + 10}.tif'
        write(place, array, origin=(500000 + 640 * i, 5000000), nodata=i or None)
    write(scenes / 'zone.tif', noise(3, 64, 64), crs='EPSG:32632')
    return scenes


@pytest.fixture
def bad(folder: Path) -> Path:
    """A damaged file beside these."""
    path = write(folder / 'bad.tif', noise(3, 256, 256))
    truncate(path)
    return path


@pytest.fixture
def odd(folder: Path) -> Path:
    """A file beside these that deserves a warning: its near infrared is declared alpha."""
    return write(folder / 'odd.tif', noise(4, 64, 64), photometric='rgb', alpha='yes')


@pytest.fixture
def several(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take two files for many, and have two cores."""
    monkeypatch.setattr(headers, 'MANY', 2)
    monkeypatch.setattr(headers, '_CHUNK', 2)
    monkeypatch.setattr(headers, '_processes', lambda files: 2)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Keep headers of two files and more; names of the files that were read, as they are."""
    names: list[str] = []

    def read(files: list[str], *how: object) -> Headers:
        names.extend(Path(file).name for file in files)
        return read_headers(files, *how)

    monkeypatch.setattr(header_cache, 'MANY', 2)
    monkeypatch.setattr(header_cache, 'read_headers', read)
    monkeypatch.setenv('CMID_GEO_CACHE', str(tmp_path / 'cache'))
    return names


def plain(found: Headers) -> Headers:
    """Headers with the EPSG codes of CRS, whose WKT GDAL words as it wrote files before."""
    rasters = {
        path: replace(
            raster, grid=replace(raster.grid, crs=str(CRS(raster.grid.crs).to_epsg()))
        )
        for path, raster in found.rasters.items()
    }
    return Headers(rasters, found.bad, found.remarks)


def test_processes_find_what_one_does(
    folder: Path, bad: Path, odd: Path, several: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = find_rasters(folder)
    here = headers._describe_all(files, False, None)
    assert {Path(path).name for path in here.bad} == {'bad.tif'}
    assert {Path(path).name for path in here.remarks} == {'odd.tif'}
    # Nothing is left for this process to do
    monkeypatch.setattr(headers, '_describe_all', None)
    there = read_headers(files)
    assert plain(there) == plain(here)
    assert [*there.rasters] == [*here.rasters]


def test_the_dataset_tells_the_same(folder: Path, bad: Path, several: None) -> None:
    with pytest.raises(
        ValueError, match=r'bad.tif.*must be a whole raster file.*skip_unreadable'
    ):
        SceneDataset(folder)
    with pytest.warns(UserWarning, match=r'skipped .*bad.tif'):
        assert len(SceneDataset(folder, skip_unreadable=True).scenes) == 6


def test_without_processes_this_one_reads(
    folder: Path, several: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = find_rasters(folder)
    expected = headers._describe_all(files, False, None)
    # One that ends at once, and one that is not there
    for program in ('/bin/true', '/nothing/python'):
        monkeypatch.setattr(sys, 'executable', program)
        assert read_headers(files) == expected


def test_only_many_files_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert headers._processes(headers.MANY - 1) == 1
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: range(64), raising=False)
    assert headers._processes(headers.MANY) == headers.MOST_PROCESSES


#: A script that opens scenes without asking whether it is the main module.
SCRIPT = """
from cmid_geo.datasets import headers, scene, SceneDataset
headers.MANY, headers._CHUNK = 2, 2
print('opening', flush=True)
print(len(SceneDataset({folder!r}).scenes))
"""


def test_a_script_without_a_main_guard(folder: Path) -> None:
    script = folder.parent / 'script.py'
    script.write_text(SCRIPT.format(folder=str(folder)))
    done = subprocess.run(
        [sys.executable, script],
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, 'opening\n6\n', '')


def test_an_interrupt_ends_the_processes(
    folder: Path, several: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    children: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def note(*arguments: object, **options: object) -> subprocess.Popen[bytes]:
        # Never answers
        child = start([sys.executable, '-c', 'import time; time.sleep(60)'], **options)
        children.append(child)
        return child

    monkeypatch.setattr(headers.subprocess, 'Popen', note)
    old = signal.signal(signal.SIGALRM, signal.default_int_handler)
    started = time.monotonic()
    signal.alarm(1)
    try:
        with pytest.raises(KeyboardInterrupt):
            read_headers(find_rasters(folder))
    finally:
        signal.signal(signal.SIGALRM, old)
    assert time.monotonic() - started < 30
    assert len(children) == 2
    assert all(child.wait(10) == -signal.SIGKILL for child in children)


def test_kept_headers_make_the_same_scenes(
    folder: Path, odd: Path, asked: list[str]
) -> None:
    with pytest.warns(UserWarning, match='is declared alpha but looks like'):
        first = SceneDataset(folder, bands=[1, 2, 3])
    assert len(asked) == 7
    # The warning is kept too
    with pytest.warns(UserWarning, match='is declared alpha but looks like'):
        second = SceneDataset(folder, bands=[1, 2, 3])
    assert len(asked) == 7
    assert second.scenes == first.scenes
    chip = Chip((1,), 3, 4, 32, 32)
    np.testing.assert_array_equal(second[chip]['image'], first[chip]['image'])
    # Values shared by files are one object
    assert len({id(scene.native.crs) for scene in second.scenes}) == 2


def touch(folder: Path) -> None:
    file = folder / 'scene1_20180711.tif'
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))


def put_another(folder: Path) -> None:
    # Of the same size and time, as archives make them
    old, new = folder / 'scene1_20180711.tif', folder / 'new'
    new.write_bytes(old.read_bytes())
    os.utime(new, ns=(0, old.stat().st_mtime_ns))
    new.rename(old)


def add_sidecar(ending: str) -> Callable[[Path], None]:
    def add(folder: Path) -> None:
        (folder / f'scene1_20180711{ending}').write_bytes(
            (folder / 'zone.tif').read_bytes()
        )

    return add


@pytest.mark.parametrize(
    'change',
    [touch, put_another, *map(add_sidecar, ('.tif.msk', '.tif.ovr', '.tif.msk.ovr', '.tfw', '_RPC.TXT'))],
)  # fmt: skip
def test_what_changed_is_read_anew(
    folder: Path, asked: list[str], change: Callable[[Path], None]
) -> None:
    SceneDataset(folder)
    asked.clear()
    change(folder)
    SceneDataset(folder)
    assert asked == ['scene1_20180711.tif']
    SceneDataset(folder)
    assert asked == ['scene1_20180711.tif']


def test_a_new_sidecar_says_more(folder: Path, asked: list[str]) -> None:
    assert not SceneDataset(folder).scenes[0].may_be_invalid
    (folder / 'scene0_20180710.tif.aux.xml').write_text(
        '<PAMDataset><PAMRasterBand band="1"><NoDataValue>7</NoDataValue></PAMRasterBand></PAMDataset>'
    )
    assert SceneDataset(folder).scenes[0].may_be_invalid


def test_files_added_and_removed(folder: Path, asked: list[str]) -> None:
    SceneDataset(folder)
    (folder / 'zone.tif').rename(folder / 'zone2.tif')
    asked.clear()
    dataset = SceneDataset(folder)
    assert asked == ['zone2.tif']
    assert Path(dataset.scenes[-1].files[0]).name == 'zone2.tif'
    # Some of the files leave the headers of the others alone
    SceneDataset(find_rasters(folder)[:3])
    SceneDataset(folder)
    assert asked == ['zone2.tif']


def test_bad_files_are_read_each_time(
    folder: Path, bad: Path, asked: list[str]
) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match='bad.tif'):
            SceneDataset(folder)
    assert asked.count('bad.tif') == 2
    assert asked.count('zone.tif') == 1
    # What was not read through is not known to be whole
    with pytest.warns(UserWarning, match='skipped'):
        SceneDataset(folder, skip_unreadable=True)
    assert asked.count('zone.tif') == 2


def test_a_file_that_was_damaged_is_not_known_any_more(
    folder: Path, asked: list[str]
) -> None:
    SceneDataset(folder)
    truncate(folder / 'zone.tif')
    # With another that is read anew, the headers are kept again
    write(folder / 'new.tif', noise(3, 64, 64))
    for _ in range(2):
        with pytest.raises(ValueError, match='zone.tif'):
            SceneDataset(folder)
    assert asked.count('zone.tif') == 3 and asked.count('new.tif') == 1


def test_a_crs_that_is_declared_is_part_of_it(tmp_path: Path, asked: list[str]) -> None:
    for i in range(2):
        write(tmp_path / 'x' / f'{i}.tif', noise(1, 64, 64), crs=None)
    for zone in (32632, 32633):
        assert (
            SceneDataset(tmp_path / 'x', file_crs=f'EPSG:{zone}').crs.to_epsg() == zone
        )


@pytest.mark.parametrize('damage', ['cut', 'changed', 'foreign', 'empty'])
def test_a_damaged_cache_is_ignored(
    folder: Path, asked: list[str], tmp_path: Path, damage: str
) -> None:
    expected = SceneDataset(folder).scenes
    (place,) = (tmp_path / 'cache' / 'headers').iterdir()
    content = place.read_bytes()
    place.write_bytes(
        {
            'cut': content[:-100],
            'changed': content.replace(b'uint16', b'uint32'),
            'foreign': f'{header_cache._digest(b"[]")}\n[]'.encode(),
            'empty': b'',
        }[damage]
    )
    assert SceneDataset(folder).scenes == expected
    assert len(asked) == 12
    assert place.read_bytes() == content


def test_where_nothing_can_be_kept(
    folder: Path, asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'home'))
    # A file where the folder should be, as root may write everywhere
    (tmp_path / 'file').touch()
    for place in (str(tmp_path / 'file'), '', '0'):
        monkeypatch.setenv('CMID_GEO_CACHE', place)
        assert len(SceneDataset(folder).scenes) == 6
    assert not (tmp_path / 'home').exists()
    monkeypatch.delenv('CMID_GEO_CACHE')
    SceneDataset(folder)
    assert len([*(tmp_path / 'home' / 'cmid_geo' / 'headers').iterdir()]) == 1


def test_old_headers_are_removed(
    folder: Path, asked: list[str], tmp_path: Path
) -> None:
    kept = tmp_path / 'cache' / 'headers'
    kept.mkdir(parents=True)
    for name, age in (('old.json', header_cache.LONGEST + 100), ('new.json', 100)):
        (kept / name).touch()
        os.utime(kept / name, (time.time() - age,) * 2)
    SceneDataset(folder)
    names = {path.name for path in kept.iterdir()}
    assert len(names) == 2
    assert 'new.json' in names


def test_small_data_keep_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('CMID_GEO_CACHE', str(tmp_path / 'cache'))
    SceneDataset(folder)
    assert not (tmp_path / 'cache').exists()


def test_the_collector_is_left_as_it_was(folder: Path, bad: Path) -> None:
    with pytest.raises(ValueError, match='bad.tif'):
        SceneDataset(folder)
    assert gc.isenabled()
    gc.disable()
    try:
        SceneDataset(folder / 'zone.tif')
        assert not gc.isenabled()
    finally:
        gc.enable()
