# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Dry runs: they tell what a run does, and leave the disk as it is."""

import re
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import rasterio
import torch
from lightning.pytorch import Trainer
from rasterfiles import noise, truncate, write

from cmid_geo import SemanticSegmentation
from cmid_geo.__main__ import main
from cmid_geo.datasets import header_cache
from cmid_geo.models import create_backbone
from cmid_geo.predict import SceneMapper, SceneWindows, map_scenes
from cmid_geo.predict.api import Tally
from cmid_geo.predict.dry_run import Plan, plan_scenes, raster_bytes


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which everything lies that a run may write to."""
    torch.manual_seed(0)
    task = SemanticSegmentation(
        'unet', 'test_resnet', in_channels=2, num_classes=3, auxiliary_weight=0
    )
    task.high.fill_(255)
    trainer = Trainer(accelerator='cpu', logger=False, enable_checkpointing=False)
    trainer.strategy.connect(task)
    trainer.save_checkpoint(tmp_path / 'task.ckpt', weights_only=True)
    for seed, name in enumerate(('one', 'three', 'two')):
        write(tmp_path / f'scenes/{name}.tif', noise(2, 90 + seed, 120, seed))
    monkeypatch.setenv('CMID_GEO_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / 'tmp'))
    monkeypatch.setattr(header_cache, 'MANY', 1)
    (tmp_path / 'tmp').mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tree(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Inode, size and time of everything."""
    found = {str(path): path.stat() for path in (folder, *folder.rglob('*'))}
    return {name: (s.st_ino, s.st_size, s.st_mtime_ns) for name, s in found.items()}


def planned(home: Path, **options: object) -> Plan:
    before = tree(home)
    plan = map_scenes(
        'task.ckpt', ['scenes'], 'deep/maps', size=64, dry_run=True, **options
    )
    assert tree(home) == before
    assert isinstance(plan, Plan)
    return plan


def run(**options: object) -> Tally:
    return map_scenes('task.ckpt', ['scenes'], 'deep/maps', size=64, **options)


def test_it_tells_what_a_run_then_makes(home: Path) -> None:
    plan = planned(home, output='both')
    assert not plan.made and not plan.failed and not plan.skipped
    assert plan.lines[0].startswith(
        '[1/3] one.tif from 120 x 90 pixels, EPSG:32633 (WGS 84 / UTM zone 33N), resolution 10 x 10: '
        f'{len(plan.jobs[0].tiling)} windows of 64 to one.tif (1 x uint8), one_probabilities.tif (3 x float32), 140 kB'
    )
    assert f'3 maps would be made, 0 are there already, 0 scenes fail; {plan.windows} windows' in str(plan)  # fmt: skip
    tally = run(output='both')
    assert tally.made == [job.out for job in plan.jobs]
    for job in plan.jobs:
        size = 0
        for path in job.files:
            with rasterio.open(path) as file:
                size += file.read().nbytes
        assert size == raster_bytes(job)


@pytest.mark.parametrize('components', [None, 2])
def test_sizes_of_features(home: Path, components: int | None) -> None:
    mapper = SceneMapper(create_backbone('resnet18', 2), components=components, low=0, high=255)  # fmt: skip
    windows = SceneWindows(['scenes/one.tif'], 'maps', 128, 32)
    (job,) = plan_scenes(mapper, windows, '32-true').jobs
    # 90 x 120 pixels are 3 x 4 vectors
    assert raster_bytes(job) == 12 * (512 * 2 if components is None else 2 * 4)


def test_maps_that_are_there(home: Path) -> None:
    run()
    (home / 'deep/maps/two.tif').unlink()
    truncate(home / 'deep/maps/three.tif')
    left = home / 'deep/maps/.one.tif.part'
    left.mkdir()
    plan = planned(home)
    assert left.exists()
    assert [path.name for path in plan.skipped] == ['one.tif']
    assert [job.out.name for job in plan.jobs] == ['three.tif', 'two.tif']
    assert plan.lines[0] == '[1/3] one.tif is there'
    assert ['replaces what is there' in line for line in plan.lines] == [False, True, False]  # fmt: skip
    again = planned(home, overwrite=True)
    assert len(again.jobs) == 3 and 'another run makes it, or was killed' in again.lines[0]  # fmt: skip


def test_it_fails_as_a_run_does(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(home / 'scenes/bands.tif', noise(3, 50, 50))
    (home / 'scenes/text.tif').write_text('no raster')
    write(home / 'deep/maps/three.tif', noise(1, 9, 9))
    write(home / 'deep/maps/one.gpkg', noise(1, 9, 9))
    plan = planned(home, vector=True)
    # The name of the map stands for its polygons: that is what fails of it
    expected = {Path(name).name: why for name, why in run(vector=True).failed.items()}
    assert {Path(name).name: why for name, why in plan.failed.items()} == expected
    assert len(expected) == 4
    before = tree(home)
    words = ['map', 'task.ckpt', 'scenes', '--out=deep/maps', '--size=64', '--dry-run']
    for more in ([], ['false'], ['true']):
        if more != ['false']:
            with pytest.raises(SystemExit) as stop:
                main([*words, *more])
            assert stop.value.code == 1 and tree(home) == before
    printed = capsys.readouterr().out
    assert re.search(r'\[1/5\] bands.tif failed: .* has 3 bands', printed)
    # What is wrong with all scenes is said at once
    for wrong, why in ((['--overlap=40'], 'overlap=40'), (['--precision=1'], 'precision')):  # fmt: skip
        with pytest.raises(SystemExit) as stop:
            main([*words, *wrong])
        assert why in f'{stop.value} {capsys.readouterr().err}' and stop.value.code
    with pytest.raises(SystemExit) as stop:
        main(['map', 'task.ckpt', 'nowhere', '--out=m', '--dry_run'])
    assert 'no file matches' in str(stop.value) and tree(home) == before


def test_the_flag_may_have_a_value(home: Path, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    words = ['map', 'task.ckpt', 'scenes/one.tif', '--out=maps', '--size=64']
    for flag in (['--dry_run', 'true'], ['--dry-run=true']):
        main([*words, *flag])
        assert '1 maps would be made' in capsys.readouterr().out
    assert not (home / 'maps').exists()
    main([*words, '--dry-run', 'false'])
    assert '1 maps made' in capsys.readouterr().out


def test_a_folder_that_is_none_and_a_full_disk(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / 'deep').write_text('a file')
    plan = planned(home)
    told = run()
    assert len(plan.failed) == 3 and 'cannot be written (Not a directory)' in str(plan)
    assert plan.failed == told.failed
    (home / 'deep').unlink()
    monkeypatch.setattr('shutil.disk_usage', lambda path: SimpleNamespace(free=9))  # fmt: skip
    assert '32.8 kB uncompressed, 9 bytes are free: they may not fit' in planned(home).total  # fmt: skip
