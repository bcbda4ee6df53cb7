# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Folders of checkpoints: one run at a time, and a last checkpoint that is the last."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from filelock import FileLock
from lightning.pytorch.callbacks import ModelCheckpoint
from runs import run

from cmid_geo.callbacks import run_folder
from cmid_geo.callbacks.run_folder import LOCK

CONFIGS = sorted((Path(__file__).parents[2] / 'configs').glob('*.yaml'))


def recipe(path: Path) -> list[dict[str, Any]]:
    """Arguments of the checkpoints that a configuration has saved."""
    callbacks = yaml.safe_load(path.read_text())['trainer']['callbacks']
    return [
        each['init_args']
        for each in callbacks
        if each['class_path'].endswith('ModelCheckpoint')
    ]


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_recipes_keep_a_last_checkpoint(path: Path) -> None:
    found = recipe(path)
    assert any(each.get('save_last') is True for each in found)
    assert {each['dirpath'] for each in found} == {f'runs/{path.stem}'}


def test_there_are_fourteen_recipes() -> None:
    assert len(CONFIGS) == 14


@pytest.mark.parametrize('steps', [1, 5])
def test_a_fit_that_steps_end_leaves_its_last_step(steps: int, tmp_path: Path) -> None:
    """Within the first epoch, and in a later one, of the recipe for detection."""
    config = next(path for path in CONFIGS if path.stem == 'detection_resnet50')
    given = recipe(config)[0] | {'dirpath': tmp_path / 'kept'}
    run('detection', tmp_path, None, [ModelCheckpoint(**given)], max_steps=steps)
    last = torch.load(tmp_path / 'kept' / 'last.ckpt', weights_only=True)
    assert last['global_step'] == steps


def test_an_epoch_that_is_not_the_best_is_kept_as_the_last(tmp_path: Path) -> None:
    # The step only grows: of its least value the first epoch is the best
    best = ModelCheckpoint(
        tmp_path / 'kept', monitor='step', mode='min', save_last=True
    )
    whole = run('segmentation', tmp_path, None, [best])
    last = torch.load(tmp_path / 'kept' / 'last.ckpt', weights_only=True)
    kept = torch.load(best.best_model_path, weights_only=True)
    assert last['global_step'] == whole['step'] == 2 * kept['global_step']


def test_a_second_run_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, 'WAIT', 0.1)
    folder = tmp_path / 'kept'
    folder.mkdir()
    with (
        FileLock(folder / LOCK),
        pytest.raises(ValueError, match='another run saves its checkpoints to .*kept'),
    ):
        run('segmentation', tmp_path, None, [ModelCheckpoint(folder)], max_steps=1)
    assert [path.name for path in folder.iterdir()] == [LOCK]
    # The lock went with its holder, and goes with each run
    for _ in range(2):
        ended = run(
            'segmentation', tmp_path, None, [ModelCheckpoint(folder)], max_steps=1
        )
        assert ended['step'] == 1


@pytest.mark.parametrize('error', [NotImplementedError, OSError])
def test_file_systems_without_locks_are_written(
    error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def acquire(*args: Any, **kwargs: Any) -> None:
        raise error('no locks here')

    monkeypatch.setattr(FileLock, 'acquire', acquire)
    run(
        'segmentation',
        tmp_path,
        None,
        [ModelCheckpoint(tmp_path / 'kept')],
        max_steps=1,
    )
    assert list((tmp_path / 'kept').glob('*.ckpt'))


def test_a_folder_that_cannot_be_made_is_told_before_training(tmp_path: Path) -> None:
    (tmp_path / 'kept').write_text('a file')
    match = r'kept cannot be written \(.*exists\).*ModelCheckpoint\(dirpath=...\)'
    with pytest.raises(ValueError, match=match):
        run('segmentation', tmp_path, None, [ModelCheckpoint(tmp_path / 'kept')])
