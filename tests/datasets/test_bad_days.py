# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Scenes that go away while a run reads them, and files that are none."""

import errno
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
from rasterfiles import noise, write

from cmid_geo.datamodules import SceneDataModule
from cmid_geo.datasets import Chip, SceneDataset, reader
from cmid_geo.predict.api import Tally

CHIP = Chip((0,), 0, 0, 32, 32)


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, 'WAITS', (0.0, 0.0))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate('ab'):
        write(tmp_path / f'{name}.tif', noise(3, 64, 64, number))
    return tmp_path


def test_a_file_that_comes_back_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenes = SceneDataset(folder)
    expected, failing, opening = scenes[CHIP]['image'], [1, 2], reader.open_raster
    scenes.close()

    def flaky(path: str) -> Any:
        if failing:
            failing.pop()
            raise OSError(errno.EIO, 'Input/output error')
        return opening(path)

    monkeypatch.setattr(reader, 'open_raster', flaky)
    assert scenes[CHIP]['image'].equal(expected) and not failing


def test_a_scene_that_vanished_is_skipped_and_counted(folder: Path) -> None:
    scenes = SceneDataset(folder, skip_unreadable=True, cache=False)
    strict = SceneDataset(folder, cache=False)
    (folder / 'a.tif').unlink()
    with pytest.raises(ValueError, match='cannot read .*a.tif.*went away; replace it'):
        strict[CHIP]
    for count in (1, 2, 3, 4):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter('always')
            sample = scenes[CHIP]
        assert sample['image'].shape == (3, 32, 32)
        assert not sample['image'].any() and not sample['valid'].any()
        assert scenes._reader.skipped == count
        assert len(told) == (count != 3), 'told at 1, 2, 4, 8 ...'
    assert scenes[Chip((1,), 0, 0, 32, 32)]['valid'].all()


def test_too_many_open_files_are_called_that(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenes = SceneDataset(folder)

    def full(path: str) -> Any:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(reader, 'open_raster', full)
    with pytest.raises(ValueError, match='Too many open files.*ulimit -n'):
        scenes[CHIP]


def test_a_pipe_among_scenes_does_not_hang(folder: Path) -> None:
    os.mkfifo(folder / 'c.tif')
    with pytest.raises(ValueError, match=r'c\.tif is a pipe, socket or device'):
        SceneDataset(folder)
    with pytest.warns(UserWarning, match='pipe'):
        assert len(SceneDataset(folder, skip_unreadable=True)) == 2


def test_workers_inherit_no_open_files(folder: Path) -> None:
    data = SceneDataModule(str(folder), 32, 8, 2, num_workers=2)
    data.setup('fit')
    scenes: Any = data.train_dataset
    scenes[CHIP]
    assert scenes._reader._handles[os.getpid()]
    data.train_dataloader()
    assert not scenes._reader._handles[os.getpid()]


def test_a_full_disk_stops_all_maps() -> None:
    tally = Tally()
    with tally.trying('a'):
        raise ValueError('another fault')
    with (
        pytest.raises(OSError, match=r'(?s)b: .*The disk is full: free space'),
        tally.trying('b'),
    ):
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise ValueError('cannot be written') from error
    assert set(tally.failed) == {'a', 'b'}
