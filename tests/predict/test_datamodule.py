# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Maps by ``Trainer.predict``, over one process and two."""

import contextlib
import copy
import os
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import torch
from filelock import FileLock
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from processes import start
from rasterfiles import noise, tear, write
from torch import Tensor, nn

from cmid_geo import ObjectDetection
from cmid_geo.models import create_backbone
from cmid_geo.predict import MapWriter, SceneMapper, SceneWindows, cog, predict_scene
from cmid_geo.predict.reader import Windows, split

#: Side of windows.
SIZE = 64

#: Height and width of scenes: one is all of one process's, others lie between two.
SHAPES = {'a': (200, 150), 'b': (40, 50), 'c': (129, 300)}


class Boxes(nn.Module):
    """A detector of single bright pixels."""

    def forward(self, images: Tensor, targets: None = None) -> list[dict[str, Tensor]]:
        found = []
        for image in images:
            rows, cols = (image[0] > 0.99).nonzero().float().unbind(1)
            boxes = torch.stack([cols - 3, rows - 2, cols + 3, rows + 2], 1)
            scores = 0.9 - 0.001 * rows.abs() / 64
            labels = torch.ones(len(rows), dtype=torch.long)
            found.append({'boxes': boxes, 'scores': scores, 'labels': labels})
        return found


def mappers() -> dict[str, SceneMapper]:
    torch.manual_seed(0)
    detector = ObjectDetection(backbone='test_resnet', in_channels=2, num_classes=2)
    detector.model = Boxes()
    detector.high.fill_(255)
    return {
        'values': SceneMapper(nn.Conv2d(2, 3, 5, padding=2), tta='flips'),
        'whole': SceneMapper(nn.Conv2d(2, 1, 3, padding=1), dtype='int16'),
        'cells': SceneMapper(
            create_backbone('resnet18', 2), components=2, low=0, high=255
        ),
        'objects': SceneMapper(detector),
    }


def predict(folder: Path, world: int, num_workers: int = 0) -> None:
    """Map all scenes with each kind of task."""
    for name, mapper in mappers().items():
        windows = SceneWindows(
            [str(folder / 'scenes')], str(folder / f'{name}_{world}'),
            size=2 * SIZE if name == 'cells' else SIZE, overlap=32 if name == 'cells' else 20, batch_size=1, num_workers=num_workers,
        )  # fmt: skip
        strategy: Any = (
            DDPStrategy(process_group_backend='gloo') if world > 1 else 'auto'
        )
        given = {'accelerator': 'auto'} if world > 1 else {}
        trainer = make_trainer(
            folder, MapWriter(), devices=world, strategy=strategy, **given
        )
        trainer.predict(mapper, windows)
        bad = set(windows.tally.failed)
        assert {Path(path.strip("'")).name for path in bad} == {'text.tif', 'torn.tif'}
        assert len(windows.tally.made) == 3 and not windows.tally.skipped


def make_trainer(folder: Path, *callbacks: Any, **options: Any) -> Trainer:
    return Trainer(
        **({'accelerator': 'cpu', 'devices': 1} | options), logger=False, callbacks=list(callbacks),
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        default_root_dir=folder,
    )  # fmt: skip


def share(rank: int, world: int, folder: str, port: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        MASTER_ADDR='127.0.0.1', MASTER_PORT=port, LOCAL_RANK=str(rank), NODE_RANK='0',
        WORLD_SIZE=str(world), RANK=str(rank), GROUP_RANK='0', LOCAL_WORLD_SIZE=str(world),
        TORCHELASTIC_RUN_ID='test',
    )  # fmt: skip
    predict(Path(folder), world, num_workers=rank)
    # More processes than windows
    one = SceneWindows([f'{folder}/scenes/b.tif'], f'{folder}/one', 64)
    strategy = DDPStrategy(process_group_backend='gloo')
    trainer = make_trainer(
        Path(folder), MapWriter(), accelerator='auto', devices=world, strategy=strategy
    )
    trainer.predict(SceneMapper(nn.Identity()), one)
    assert len(one.tally.made) == 1 and not one.tally.failed


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, (name, shape) in enumerate(SHAPES.items()):
        data = noise(2, *shape, seed)
        rng = np.random.default_rng(seed)
        for row, col in rng.integers(0, shape, (30, 2)):
            data[0, row, col] = 255
        data[:, :20, 30:60] = 0
        write(tmp_path / f'scenes/{name}.tif', data, nodata=0)
    (tmp_path / 'scenes/text.tif').write_text('no raster')
    torn = write(tmp_path / 'scenes/torn.tif', noise(2, 300, 300))
    tear(torn)
    return tmp_path


def read(path: Path) -> Any:
    if path.suffix == '.gpkg':
        table = gpd.read_file(path)
        return [(g.wkt, s) for g, s in zip(table.geometry, table.score, strict=True)]
    with rasterio.open(path) as file:
        bands = np.concatenate([file.read(), file.dataset_mask()[None]])
        return bands, file.tags(), file.transform


def same(one: Path, other: Path) -> bool:
    first, second = read(one), read(other)
    if isinstance(first, list):
        return first == second and len(first) > 0
    return (
        np.array_equal(first[0], second[0], equal_nan=True) and first[1:] == second[1:]
    )


@pytest.mark.slow
def test_two_processes_give_the_maps_of_one(folder: Path, unused_port: int) -> None:
    predict(folder, 1)
    start(share, (2, str(folder), str(unused_port)), nprocs=2)
    for name, mapper in mappers().items():
        ending = '.gpkg' if name == 'objects' else '.tif'
        size, overlap = (2 * SIZE, 32) if name == 'cells' else (SIZE, 20)
        for scene in SHAPES:
            one, two = (folder / f'{name}_{n}/{scene}{ending}' for n in (1, 2))
            assert same(one, two), (name, scene)
            # And of no Trainer at all
            options = {
                'values': {'tta': 'flips'},
                'whole': {'dtype': 'int16'},
                'cells': {'components': 2, 'low': 0, 'high': 255},
                'objects': {},
            }[name]
            alone = predict_scene(
                mapper.task, folder / f'scenes/{scene}.tif', folder / f'alone{ending}',
                size=size, overlap=overlap, batch_size=1, **options,
            )  # fmt: skip
            assert same(one, alone), (name, scene)
        assert [path.name for path in (folder / 'one').iterdir()] == ['b.tif']
        for world in (1, 2):
            left = [p.name for p in (folder / f'{name}_{world}').iterdir()]
            assert sorted(left) == [f'{scene}{ending}' for scene in SHAPES]


def test_shares_are_without_duplicate_and_gap() -> None:
    windows = Windows([])
    windows.starts = [0, 5, 6, 18]
    assert [windows.locate(i) for i in (0, 4, 5, 6, 17)] == [
        (0, 0), (0, 4), (1, 0), (2, 0), (2, 11),
    ]  # fmt: skip
    for world in (1, 2, 5, 18, 25):
        windows.parts = split(18, world)
        assert [index for each in windows.parts for index in each] == list(range(18))
        counts = [len(each) for each in windows.parts]
        assert len(counts) == world and max(counts) - min(counts) <= 1
        for number, count in enumerate((5, 1, 12)):
            spans = [windows.span(number, rank) for rank in range(world)]
            assert [w for span in spans for w in span] == list(range(count))


def test_finished_maps_are_skipped(tmp_path: Path) -> None:
    write(tmp_path / 'scenes/a.tif', noise(1, 50, 50))
    made = []
    writer = MapWriter()
    for _ in range(2):
        windows = SceneWindows([str(tmp_path / 'scenes')], str(tmp_path / 'maps'), 64)
        trainer = make_trainer(tmp_path, writer)
        trainer.predict(SceneMapper(nn.Identity()), windows)
        made.append((len(windows.tally.made), len(windows.tally.skipped)))
        # No file or thread stays with it
        copy.deepcopy(writer)
    assert made == [(1, 0), (0, 1)]


def test_a_module_of_its_own_names(tmp_path: Path) -> None:
    """Limits are two numbers: one part of a network that is called so is none."""
    scene = write(tmp_path / 'a.tif', noise(1, 50, 50))
    network = nn.Sequential()
    network.add_module('high', nn.Identity())
    out = predict_scene(network, scene, tmp_path / 'map.tif', size=32)
    assert np.array_equal(read(out)[0][0], read(scene)[0][0])


def test_what_files_do_not_say(tmp_path: Path) -> None:
    data = noise(1, 50, 50)
    data[:, :10] = 250
    write(tmp_path / 'scenes/a.tif', data, crs=None)
    windows = SceneWindows(
        [str(tmp_path / 'scenes')],
        str(tmp_path / 'maps'),
        64,
        nodata=250,
        file_crs='EPSG:32633',
    )
    trainer = make_trainer(tmp_path, MapWriter())
    trainer.predict(SceneMapper(nn.Identity()), windows)
    (path,) = windows.tally.made
    with rasterio.open(path) as file:
        assert file.crs == 'EPSG:32633'
        found = file.read(1)
    assert np.isnan(found[:10]).all() and (found[10:] == data[0, 10:]).all()


def test_what_does_not_fit_together(tmp_path: Path) -> None:
    write(tmp_path / 'scenes/a.tif', noise(1, 50, 50))
    windows = SceneWindows([str(tmp_path / 'scenes')], str(tmp_path / 'maps'), 64)

    task = ObjectDetection(backbone='test_resnet', in_channels=1, num_classes=2)
    with pytest.raises(ValueError, match=r'made by Trainer.predict\(SceneMapper'):
        make_trainer(tmp_path, MapWriter()).predict(task, windows)
    with pytest.raises(ValueError, match='callbacks=.MapWriter'):
        make_trainer(tmp_path).predict(SceneMapper(nn.Identity()), windows)
    assert not list((tmp_path / 'maps').glob('.*'))


def test_one_bad_scene_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in 'abc':
        write(tmp_path / f'scenes/{name}.tif', noise(1, 150, 50))
    whole = cog.RasterFile.write

    def fail(self: Any, *arguments: Any) -> None:
        if self.path.name == 'b.tif':
            raise OSError('the disk is full')
        whole(self, *arguments)

    monkeypatch.setattr(cog.RasterFile, 'write', fail)
    windows = SceneWindows([str(tmp_path / 'scenes')], str(tmp_path / 'maps'), 64)
    trainer = make_trainer(tmp_path, MapWriter(progress=True))
    trainer.predict(SceneMapper(nn.Identity()), windows)
    assert [path.name for path in windows.tally.made] == ['a.tif', 'c.tif']
    assert list(windows.tally.failed.values()) == ['the disk is full']
    left = {path.name for path in (tmp_path / 'maps').iterdir()}
    assert left == {'a.tif', 'c.tif'}


def test_windows_that_never_came(tmp_path: Path) -> None:
    write(tmp_path / 'scenes/a.tif', noise(1, 64, 64))
    write(tmp_path / 'scenes/b.tif', noise(1, 64, 640))
    windows = SceneWindows(
        [str(tmp_path / 'scenes')], str(tmp_path / 'maps'), 64, 0, batch_size=2
    )
    trainer = make_trainer(tmp_path, MapWriter(), limit_predict_batches=2)
    trainer.predict(SceneMapper(nn.Identity()), windows)
    assert [path.name for path in windows.tally.made] == ['a.tif']
    (why,) = windows.tally.failed.values()
    assert why == 'not all of its windows were predicted'
    assert [path.name for path in (tmp_path / 'maps').iterdir()] == ['a.tif']


def test_many_scenes_do_not_stay_open(tmp_path: Path) -> None:
    for number in range(12):
        write(tmp_path / f'scenes/{number}.tif', noise(1, 20, 20))
    most = []

    class Watch(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            files = []
            for number in os.listdir('/proc/self/fd'):
                # Threads close theirs meanwhile
                with contextlib.suppress(FileNotFoundError):
                    files.append(os.path.realpath(f'/proc/self/fd/{number}'))
            most.append(sum(file.startswith(f'{tmp_path}/scenes/') for file in files))
            return image

    windows = SceneWindows(
        [str(tmp_path / 'scenes')], str(tmp_path / 'maps'), 32, batch_size=1
    )
    make_trainer(tmp_path, MapWriter()).predict(SceneMapper(Watch()), windows)
    assert len(windows.tally.made) == 12 and max(most) <= 3


def test_two_runs_on_one_folder(tmp_path: Path) -> None:
    write(tmp_path / 'scenes/a.tif', noise(1, 20, 20))
    (tmp_path / 'maps').mkdir()
    windows = SceneWindows([str(tmp_path / 'scenes')], str(tmp_path / 'maps'), 32)
    with (
        FileLock(tmp_path / 'maps/.cmid_geo.lock'),
        pytest.raises(ValueError, match='is being written by another program'),
    ):
        make_trainer(tmp_path, MapWriter()).predict(SceneMapper(nn.Identity()), windows)


def test_one_process_leaves_the_working_files_of_a_shared_run(tmp_path: Path) -> None:
    scene = write(tmp_path / 'scenes/a.tif', noise(1, 200, 150))
    out, refused = tmp_path / 'maps/a.tif', []

    class Meddler(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            if list(out.parent.glob('.a.tif.part/raw_a.tif')) and not refused:
                with pytest.raises(ValueError, match='written by another') as why:
                    predict_scene(nn.Identity(), scene, out, size=64)
                refused.append(str(why.value))
            return image

    windows = SceneWindows([str(scene)], str(out.parent), 64, batch_size=1)
    make_trainer(tmp_path, MapWriter()).predict(SceneMapper(Meddler()), windows)
    assert len(refused) == 1 and str(out) in refused[0]
    assert windows.tally.made == [out] and not windows.tally.failed
    assert (read(out)[0][0] == noise(1, 200, 150)[0]).all()


def test_one_process_in_a_locked_folder(tmp_path: Path) -> None:
    scene, out = write(tmp_path / 'a.tif', noise(1, 20, 20)), tmp_path / 'maps/a.tif'
    working = out.parent / '.a.tif.part/rank_1.bin'
    working.parent.mkdir(parents=True)
    working.write_bytes(b'left')
    lock = FileLock(out.parent / '.cmid_geo.lock')
    with lock:
        with pytest.raises(ValueError, match='is being written by another program'):
            predict_scene(nn.Identity(), scene, out, size=32)
        assert working.read_bytes() == b'left' and not out.exists()
        # A new scene would be mapped beside the other run's, and its folder left behind
        with pytest.raises(ValueError, match='is being written by another program'):
            predict_scene(nn.Identity(), scene, out.with_name('b.tif'), size=32)
        assert not list(out.parent.glob('.b*'))
    # A lock that a killed run left is nobody's
    Path(lock.lock_file).touch()
    predict_scene(nn.Identity(), scene, out, size=32)
    assert out.exists() and not working.exists()
