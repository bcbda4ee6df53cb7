# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Many scenes: the command, what it skips, and what it survives."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import torch
from lightning.pytorch import Trainer
from rasterfiles import noise, tear, truncate, write

from cmid_geo import SemanticSegmentation
from cmid_geo.__main__ import main
from cmid_geo.datasets.scene import Declared
from cmid_geo.predict import SceneMapper, map_scenes, predict_scene
from cmid_geo.predict.api import Tally
from cmid_geo.predict.job import Job, plan_map
from cmid_geo.predict.listing import list_scenes
from cmid_geo.predict.writer import write_job


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    task = SemanticSegmentation(
        'unet', 'test_resnet', in_channels=2, num_classes=3, auxiliary_weight=0
    )
    task.high.fill_(255)
    path = tmp_path_factory.mktemp('task') / 'task.ckpt'
    trainer = Trainer(accelerator='cpu', logger=False, enable_checkpointing=False)
    trainer.strategy.connect(task)
    trainer.save_checkpoint(path, weights_only=True)
    return str(path)


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    for seed, name in enumerate(('one', 'two', 'three')):
        write(tmp_path / f'scenes/{name}.tif', noise(2, 90 + seed, 120, seed))
    return tmp_path / 'scenes'


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_command(
    tmp_path: Path, scenes: Path, checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / 'deep/maps'
    words = ['map', checkpoint, str(scenes), '--out', str(out), '--size', '64']
    main(words)
    printed = capsys.readouterr()
    assert '3 maps made, 0 were there already, 0 scenes failed' in printed.out
    assert '[2/3] three.tif: 100%' in printed.err and 'px/s' in printed.err
    assert {name for name in names(out) if name.endswith('.tif')} == {
        'one.tif', 'two.tif', 'three.tif',
    }  # fmt: skip
    before = {path: path.stat().st_mtime_ns for path in out.glob('*.tif')}
    (out / 'two.tif').unlink()
    main(words)
    assert '1 maps made, 2 were there already' in capsys.readouterr().out
    for path, time in before.items():
        assert (path.stat().st_mtime_ns == time) == (path.name != 'two.tif')


def test_bad_scenes_do_not_stop_the_others(
    tmp_path: Path, scenes: Path, checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (scenes / 'text.tif').write_text('no raster')
    write(scenes / 'bands.tif', noise(3, 50, 50))
    # Its first and last blocks are whole: it fails half way
    big = write(scenes / 'big.tif', noise(2, 500, 500), compress='deflate')
    tear(big)
    with pytest.raises(SystemExit) as stop:
        main(
            [
                'map',
                checkpoint,
                str(scenes),
                '--out',
                str(tmp_path / 'maps'),
                '--size=64',
            ]
        )
    assert stop.value.code == 1
    printed = capsys.readouterr().out
    assert '3 maps made, 0 were there already, 3 scenes failed:' in printed
    for name, why in (
        ('text.tif', 'cannot be read'),
        ('bands.tif', 'has 3 bands'),
        ('big.tif', 'cannot read'),
    ):
        assert any(name in line and why in line for line in printed.splitlines())
    made = {name for name in names(tmp_path / 'maps') if name.endswith('.tif')}
    assert made == {'one.tif', 'two.tif', 'three.tif'}


def test_a_map_that_was_made_otherwise_is_kept(
    tmp_path: Path, scenes: Path, checkpoint: str
) -> None:
    scene, out = [str(scenes / 'one.tif')], str(tmp_path / 'maps')
    map_scenes(checkpoint, scene, out, size=64)
    first = read(tmp_path / 'maps/one.tif')
    tally = map_scenes(checkpoint, scene, out, size=96)
    (why,) = tally.failed.values()
    assert 'was made otherwise (overlap, size differ)' in why and 'overwrite' in why
    assert (read(tmp_path / 'maps/one.tif') == first).all()
    # Other pixels under the same name
    write(scenes / 'one.tif', noise(2, 90, 121, 5))
    assert 'scene differ' in str(map_scenes(checkpoint, scene, out, size=64))
    tally = map_scenes(checkpoint, scene, out, size=64, overwrite=True)
    assert len(tally.made) == 1 and read(tmp_path / 'maps/one.tif').shape[2] == 121
    (tmp_path / 'maps/one.tif').write_text('something else')
    tally = map_scenes(checkpoint, scene, out, size=64)
    assert 'was made otherwise (it is damaged, or not ours)' in str(tally)
    truncate(write(scenes / 'one.tif', noise(2, 90, 120)))
    assert 'cannot be read' in str(map_scenes(checkpoint, scene, out, size=64))


@pytest.mark.parametrize('name', ['one.tif', 'one_probabilities.tif'])
def test_both_files_of_a_map_count(
    tmp_path: Path, scenes: Path, checkpoint: str, name: str
) -> None:
    scene, out = [str(scenes / 'one.tif')], tmp_path / 'maps'
    foreign = write(out / name, noise(1, 9, 9))
    before = foreign.read_bytes()
    tally = map_scenes(checkpoint, scene, str(out), size=64, output='both')
    assert foreign.read_bytes() == before and names(out) == {name}
    (why,) = tally.failed.values()
    assert name in why and '--overwrite true' in why
    run(checkpoint, scenes / 'one.tif', out, overwrite=True)
    whole = read(foreign)
    # One of the two alone is no finished map
    foreign.unlink()
    assert len(run(checkpoint, scenes / 'one.tif', out).made) == 1
    assert same(read(foreign), whole)
    assert len(run(checkpoint, scenes / 'one.tif', out).skipped) == 1
    truncate(foreign)
    assert len(run(checkpoint, scenes / 'one.tif', out).made) == 1
    assert same(read(foreign), whole)


def test_probabilities_do_not_replace_the_scene(
    tmp_path: Path, scenes: Path, checkpoint: str
) -> None:
    scene = write(tmp_path / 'map_probabilities.tif', noise(2, 90, 90))
    before = scene.read_bytes()
    with pytest.raises(ValueError, match=r"probabilities.tif' is the scene itself"):
        predict_scene(checkpoint, scene, tmp_path / 'map.tif', size=64, output='both')
    assert scene.read_bytes() == before


@pytest.mark.parametrize('shape', [(64, 64), (1100, 600)])
@pytest.mark.parametrize('dtype', ['uint8', 'float32', 'float16'])
def test_a_map_that_lost_its_end_is_not_finished(
    tmp_path: Path, shape: tuple[int, int], dtype: str
) -> None:
    data = noise(2, *shape)
    data[:, :5] = 0
    scene = write(tmp_path / 'scene.tif', data, nodata=0)
    mapper, options = SceneMapper(torch.nn.Identity(), dtype=dtype), {'size': 256}
    job = plan_map(mapper, scene, tmp_path / 'map.tif', **options)
    assert not job.is_finished
    write_job(mapper, job, 4, 1)
    assert job.is_finished
    whole = job.out.read_bytes()
    # Behind each block are four bytes that no reader needs
    for kept in (len(whole) * 2 // 3, len(whole) - 5):
        job.out.write_bytes(whole[:kept])
        assert not job.is_finished, kept


def test_masks_beside_scenes_and_other_meanings_count(
    tmp_path: Path, scenes: Path, checkpoint: str
) -> None:
    data = noise(2, 90, 90)
    data[:, :10] = 0
    mask = np.full((90, 90), 255, 'uint8')
    mask[:, 50:] = 0
    write(scenes / 'one.tif', data)
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False),
        rasterio.open(scenes / 'one.tif', 'r+') as file,
    ):
        file.write_mask(mask)
    assert (scenes / 'one.tif.msk').exists()
    words = ['map', checkpoint, str(scenes / 'one.tif'), '--size=64']
    main([*words, f'--out={tmp_path / "maps"}'])
    found = read(tmp_path / 'maps/one.tif')[0]
    assert (found[:, 50:] == 255).all() and (found[:, :50] != 255).all()
    for more in (['--zero_is_nodata', 'true'], ['--colors', '[red,green,blue]']):
        with pytest.raises(SystemExit):
            main([*words, *more, f'--out={tmp_path / "maps"}'])
    main([*words, '--zero_is_nodata', 'true', f'--out={tmp_path / "other"}'])
    assert (read(tmp_path / 'other/one.tif')[0, :10] == 255).all()


def test_what_a_killed_run_left_is_swept(
    tmp_path: Path, scenes: Path, checkpoint: str
) -> None:
    map_scenes(checkpoint, [str(scenes)], str(tmp_path / 'maps'), size=64)
    before = names(tmp_path / 'maps')
    part = tmp_path / 'maps/.one.tif.part'
    part.mkdir()
    (part / 'rank_0.bin').write_bytes(b'left')
    map_scenes(checkpoint, [str(scenes)], str(tmp_path / 'maps'), size=64)
    assert names(tmp_path / 'maps') == before


def run(checkpoint: str, scenes: Path, out: Path, **options: Any) -> Tally:
    return map_scenes(
        checkpoint, [str(scenes)], str(out), size=64, output='both', **options
    )


#: A place, a function there, and its how manyth call; below 0 for right after it.
MOMENTS = (
    'file write 1', 'file write 60', 'copy copy 1', 'copy copy -2', 'names _write_names 2',
    'os replace 1', 'os replace -1', 'os replace -2', 'os replace 5', 'os replace -4',
)  # fmt: skip


def test_killed_at_any_moment(tmp_path: Path, scenes: Path, checkpoint: str) -> None:
    whole, out = tmp_path / 'whole', tmp_path / 'maps'
    run(checkpoint, scenes, whole)
    expected = {path.name: read(path) for path in whole.glob('*.tif')}
    assert len(expected) == 6
    program = [
        sys.executable,
        '-W',
        'ignore',
        str(Path(__file__).parents[1] / 'helpers' / 'killing.py'),
    ]
    words = [*program, checkpoint, str(scenes), str(out)]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as killed:
        assert killed.stdin is not None and killed.stdout is not None
        for number, moment in enumerate(MOMENTS):
            print(moment, file=killed.stdin, flush=True)
            assert killed.stdout.readline() == 'True\n', moment
            # Whatever has its name is whole
            for path in out.glob('*.tif'):
                assert same(read(path), expected[path.name]), (moment, path)
            # Every other time the next one goes on from here
            if number % 2:
                run(checkpoint, scenes, out)
                assert names(out) == names(whole)
                for path in out.glob('*.tif'):
                    assert same(read(path), expected[path.name]), (moment, path)
                    path.unlink()
        killed.stdin.close()


def same(one: np.ndarray, other: np.ndarray) -> bool:
    return np.array_equal(one, other, equal_nan=True)


def test_two_programs_at_once(tmp_path: Path, scenes: Path, checkpoint: str) -> None:
    from filelock import FileLock

    part = tmp_path / 'maps/.one.tif.part'
    part.mkdir(parents=True)
    with FileLock(part / 'lock'):
        tally = map_scenes(checkpoint, [str(scenes)], str(tmp_path / 'maps'), size=64)
    (why,) = tally.failed.values()
    assert 'is being written by another program' in why and len(tally.made) == 2


def test_names_of_maps(tmp_path: Path) -> None:
    for place in 'ab':
        for date in (2019, 2020):
            write(tmp_path / f'{place}/{date}.tif', noise(1, 9, 9))
        for band in ('B02', 'B03'):
            write(tmp_path / f'{place}/x_{place}_{band}.tif', noise(1, 9, 9))

    def listed(*scenes: str, dates: int = 1) -> list[str]:
        paths = [str(tmp_path / scene) for scene in scenes]
        return [task.out.name for task in list_scenes(paths, 'm', dates, '.tif')]

    assert listed('a') == ['2019.tif', '2020.tif', 'x_a.tif']
    assert listed('a/2019.tif', 'b/2019.tif') == ['a_2019.tif', 'b_2019.tif']
    assert listed('a/2019.tif', 'a/2020.tif', dates=2) == ['2019_2020.tif']
    assert listed('a/*.tif', 'b/*.tif', dates=2)[:2] == ['2019.tif', '2020.tif']
    assert listed('a/2019.tif', 'a/2019.tif') == ['2019.tif']
    write(tmp_path / 'c/a/2019.tif', noise(1, 9, 9))
    with pytest.raises(ValueError, match="two scenes would be mapped to 'a_2019'"):
        listed('a/2019.tif', 'c/a/2019.tif')
    with pytest.raises(ValueError, match='among the scenes of .* another folder'):
        list_scenes([str(tmp_path / 'a')], tmp_path / 'a/maps', 1, '.tif')
    with pytest.raises(ValueError, match='1 paths for a task that compares 2 dates'):
        listed('a', dates=2)
    with pytest.raises(ValueError, match='3 scenes before and its partner 1 after'):
        listed('a', 'b/2019.tif', dates=2)
    with pytest.raises(ValueError, match='no file matches'):
        listed('d')


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['none.ckpt', 'x', '--out', 'm'], 'none.ckpt is no file'),
        (['CKPT', 'x', '--out', 'm'], 'no file matches'),
        (['CKPT', 'x', '--out', 'm', '--tta', 'some'], 'tta'),
        (['CKPT'], 'scenes'),
        (['CKPT', 'x', '--out', 'm', '--overlap', '300'], 'overlap=300'),
        (['CKPT', 'x', '--out', 'm', '--devices', '0'], 'devices=0: give at least'),
    ],
)
def test_bad_words(
    checkpoint: str, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(['map', *(checkpoint if word == 'CKPT' else word for word in words)])
    assert stop.value.code not in (0, None)
    assert message in f'{stop.value} {capsys.readouterr().err}'


def test_what_files_do_not_say(tmp_path: Path, scenes: Path, checkpoint: str) -> None:
    data = noise(2, 90, 90)
    data[:, :10] = 250
    write(scenes / 'one.tif', data, crs=None)
    words = [
        'map',
        checkpoint,
        str(scenes / 'one.tif'),
        '--size=64',
        f'--out={tmp_path / "maps"}',
    ]
    with pytest.raises(SystemExit):
        main(words)
    main([*words, '--file_crs=EPSG:32633', '--nodata=250'])
    found = read(tmp_path / 'maps/one.tif')[0]
    assert (found[:10] == 255).all() and (found[10:] != 255).all()
    with rasterio.open(tmp_path / 'maps/one.tif') as file:
        assert file.crs == 'EPSG:32633'
    # Once more it is there; with other settings it is another map
    scene, out = [str(scenes / 'one.tif')], str(tmp_path / 'maps')
    tally = map_scenes(checkpoint, scene, out, 64, file_crs='EPSG:32633', nodata=250)
    assert len(tally.skipped) == 1
    tally = map_scenes(checkpoint, scene, out, 64, file_crs='EPSG:32632')
    assert '(file_crs, nodata differ)' in str(tally)
    with pytest.raises(ValueError, match="file_crs='nowhere' is no"):
        map_scenes(checkpoint, scene, out, 64, file_crs='nowhere')


def test_bands_of_a_scene_without_crs_are_one_scene(tmp_path: Path) -> None:
    for band in ('B02', 'B03'):
        write(tmp_path / f'in/x_{band}.tif', noise(1, 50, 50), crs=None)
    tasks = list_scenes(
        [str(tmp_path / 'in')], tmp_path / 'out', 1, '.tif', Declared(crs='EPSG:32633')
    )
    assert [len(task.dates[0].files) for task in tasks] == [2]


def test_polygons_lie_beside_each_map_of_classes(
    tmp_path: Path, scenes: Path, checkpoint: str
) -> None:
    out = tmp_path / 'maps'
    words = checkpoint, [str(scenes)], str(out), 64
    tally = map_scenes(*words)
    assert not list(out.glob('*.gpkg'))
    # Maps that are there are not made again to get them
    tally = map_scenes(*words, vector=True)
    assert (len(tally.made), len(tally.skipped), tally.failed) == (0, 3, {})
    for path in tally.skipped:
        found = gpd.read_file(path.with_suffix('.gpkg'))
        classes = read(path)[0]
        for label, part in found.groupby('label'):
            assert part.geometry.area.sum() == pytest.approx(100 * (classes == label).sum())  # fmt: skip
    before = (out / 'one.gpkg').stat().st_mtime_ns
    map_scenes(*words, vector=True)
    assert (out / 'one.gpkg').stat().st_mtime_ns == before
    # Those that were made with other numbers are made again
    one = checkpoint, [str(scenes / 'one.tif')], str(out), 64
    plan = map_scenes(*one, vector=True, min_area=250.0, dry_run=True)
    assert str(plan).startswith('[1/1] one.tif is there, its polygons would be written')
    for options, changes in (
        ({'min_area': 250.0}, True),
        ({'min_area': 250.0}, False),
        ({'min_area': 250.0, 'tolerance': 15.0}, True),
    ):
        before = (out / 'one.gpkg').stat().st_mtime_ns
        map_scenes(*one, vector=True, **options)
        assert ((out / 'one.gpkg').stat().st_mtime_ns != before) == changes
        assert gpd.read_file(out / 'one.gpkg')['area'].min() >= 250
    # Those of an earlier map are not left beside a new one, but a file of the user's own is
    found.to_file(out / 'two.gpkg', layer='mine')
    (out / 'two.gpkg').unlink()
    found.to_file(out / 'two.gpkg', layer='mine')
    map_scenes(*words, overwrite=True)
    assert {path.name for path in out.glob('*.gpkg')} == {'two.gpkg'}
    tally = map_scenes(*words, vector=True)
    assert 'move it away' in tally.failed['two.tif']
    assert {path.name for path in out.glob('*.gpkg')} == {f'{n}.gpkg' for n in ('one', 'two', 'three')}  # fmt: skip


def test_polygons_that_are_open_stop_the_map_before_it_is_made(
    tmp_path: Path, scenes: Path, checkpoint: str
) -> None:
    (scenes / 'three.tif').unlink()
    out = tmp_path / 'maps'
    words = checkpoint, [str(scenes)], str(out), 64
    map_scenes(*words, vector=True)
    first = read(out / 'one.tif')
    (out / 'one.gpkg-wal').touch()
    for dry in (True, False):
        tally = map_scenes(*words, overwrite=True, output='both', dry_run=dry)
        (why,) = tally.failed.values()
        assert 'one.gpkg is open in another program' in why
    assert (read(out / 'one.tif') == first).all() and (out / 'one.gpkg').exists()
    assert not (out / 'one_probabilities.tif').exists()
    # It stops no map that is there
    assert len(map_scenes(*words[:1], [str(scenes / 'two.tif')], *words[2:], output='both').skipped) == 1  # fmt: skip


def test_polygons_that_are_opened_meanwhile_cost_no_map(
    tmp_path: Path, scenes: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / 'maps'
    words = checkpoint, [str(scenes / 'one.tif')], str(out), 64
    map_scenes(*words, vector=True)
    publish = Job.publish

    def opened(job: Job, files: Any) -> None:
        (out / 'one.gpkg-wal').touch()
        publish(job, files)

    monkeypatch.setattr(Job, 'publish', opened)
    with pytest.warns(UserWarning, match='polygons of the map before stay: .*one.gpkg is open'):  # fmt: skip
        tally = map_scenes(*words, overwrite=True, output='both')
    assert [path.name for path in tally.made] == ['one.tif']
    assert (out / 'one_probabilities.tif').exists() and (out / 'one.gpkg').exists()
    assert not list(out.glob('.*part*'))


def test_maps_without_classes_have_no_polygons(
    tmp_path: Path, scenes: Path, checkpoint: str
) -> None:
    words = checkpoint, [str(scenes)], str(tmp_path / 'maps'), 64
    with pytest.raises(ValueError, match='leave --vector out'):
        map_scenes(*words, vector=True, output='probabilities')
    with pytest.raises(ValueError, match='min_area=-1: give 0 or more'):
        map_scenes(*words, vector=True, min_area=-1)
    assert not (tmp_path / 'maps').exists()
