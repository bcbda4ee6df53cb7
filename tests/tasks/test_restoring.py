# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Checkpoints that would run a program, on each way in."""

import contextlib
import io
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import Evil, serve, write_module
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from cmid_geo.models import cmid_resnet50, export_backbone, load_backbone
from cmid_geo.predict import SceneMapper, predict_scene
from cmid_geo.tasks import CMID, ObjectDetection, SemanticSegmentation
from cmid_geo.tasks.restoring import check_hyperparameters
from cmid_geo.transforms import TwoViews

pytestmark = pytest.mark.allow_hosts(['127.0.0.1'])

Make = Callable[..., CMID]
Trainers = Callable[..., Trainer]


@pytest.fixture
def saved(
    make_task: Make, make_trainer: Trainers, tmp_path: Path
) -> Callable[..., Path]:
    """Saves a checkpoint of the small task, changed."""
    task, trainer = make_task(), make_trainer()
    trainer.strategy.connect(task)

    def save(name: str, hparams: Any = None, **others: Any) -> Path:
        trainer.save_checkpoint(tmp_path / name)
        content = torch.load(tmp_path / name, weights_only=True)
        content['hyper_parameters'] |= hparams or {}
        torch.save(content | others, tmp_path / name)
        return tmp_path / name

    return save


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    with serve(tmp_path) as url:
        yield url


@pytest.mark.parametrize('how', ['fit', 'validate', 'test', 'predict'])
@pytest.mark.parametrize('place', ['url', 'file'])
def test_a_trainer_restores_nothing_that_runs(
    how: str,
    place: str,
    saved: Callable[..., Path],
    url: str,
    make_task: Make,
    make_trainer: Trainers,
    loader: DataLoader,
    tmp_path: Path,
) -> None:
    done = tmp_path / 'done'
    path = saved('evil.ckpt', evil=Evil(done))
    where = f'{url}/evil.ckpt' if place == 'url' else str(path)
    match = 'read as a URL.*download it' if place == 'url' else 'evil.ckpt was refused'
    with pytest.raises(ValueError, match=match):
        getattr(make_trainer(max_epochs=1), how)(make_task(), loader, ckpt_path=where)
    assert not done.exists()


def test_whatever_takes_a_checkpoint_reads_it_from_a_file_and_runs_nothing(
    saved: Callable[..., Path], url: str, tmp_path: Path
) -> None:
    done = tmp_path / 'done'
    path = saved('evil.ckpt', evil=Evil(done))
    ways: list[Callable[[str], Any]] = [
        CMID.load_from_checkpoint,
        SemanticSegmentation.load_from_checkpoint,
        SceneMapper.load_from_checkpoint,
        SceneMapper,
        lambda where: predict_scene(where, 'scene.tif', tmp_path / 'map.tif'),
        lambda where: load_backbone(torch.nn.Linear(1, 1), where),
        lambda where: export_backbone(where, tmp_path / 'out.ckpt'),
        lambda where: CMID('resnet18', weights=where),
        lambda where: ObjectDetection(backbone='resnet18', weights=where),
    ]
    for way in ways:
        with pytest.raises(ValueError, match='evil.ckpt was refused'):
            way(str(path))
        with pytest.raises(ValueError, match='read as a URL.*download it'):
            way(f'{url}/evil.ckpt')
    with pytest.raises(ValueError, match='name of no weights'):
        cmid_resnet50(f'{url}/evil.ckpt')
    assert not done.exists()


@pytest.mark.parametrize(
    'named',
    [
        {'augmentations': {'class_path': 'MODULE.Thing'}},
        {'augmentations': 'MODULE.Thing'},
        {'_class_path': 'MODULE.Thing'},
        {'_instantiator': 'MODULE.Thing'},
    ],
)
def test_what_a_checkpoint_names_is_not_imported(
    named: dict[str, Any],
    saved: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = f'evil_{tmp_path.name}'
    monkeypatch.syspath_prepend(tmp_path)
    marker = write_module(tmp_path, module)
    as_lightning = {'_instantiator': 'lightning.pytorch.cli.instantiate_module'}
    text = str(as_lightning | named).replace('MODULE', module)
    path = saved('named.ckpt', eval(text))
    with pytest.raises(
        ValueError, match=rf'named.ckpt .*{module}.*could run|any program'
    ):
        CMID.load_from_checkpoint(path)
    assert not marker.exists()
    # A map takes names of tasks alone, and arguments as they are
    with contextlib.suppress(ValueError):
        SceneMapper(path)
    assert not marker.exists()


def test_arguments_given_by_keyword_win(saved: Callable[..., Path]) -> None:
    mine = TwoViews(64)
    named = {'_instantiator': 'lightning.pytorch.cli.instantiate_module'}
    path = saved('good.ckpt', named | {'augmentations': 'torch.nn.Identity'})
    task = CMID.load_from_checkpoint(path, augmentations=mine, lr=0.5)
    assert task.augmentations is mine and task.hparams['lr'] == 0.5
    with pytest.raises(TypeError, match='cannot be called on an instance'):
        task.load_from_checkpoint(path)


@pytest.mark.parametrize(
    'odd',
    [
        {'hyper_parameters': 5},
        {'hyper_parameters': {1: 2, '': 3, '_class_path': ['CMID']}},
        {'hyper_parameters': {'in_channels': 'many', 'model': 'resnet18'}},
        {'hyper_parameters': {'model': ['resnet18']}, 'cmid_geo_task': 'CMID'},
        {'hyper_parameters': {'model': 'hf-hub:a/b'}, 'cmid_geo_task': 'CMID'},
        {'state_dict': 7},
        {'cmid_geo_task': {'os': 'system'}, 'state_dict': {}},
    ],
)
def test_odd_checkpoints_end_in_a_sentence(
    odd: dict[str, Any], saved: Callable[..., Path]
) -> None:
    with pytest.raises(ValueError, match=r'.{40}'):
        SceneMapper(saved('odd.ckpt', **odd))


def test_a_damaged_checkpoint_ends_in_a_sentence(
    saved: Callable[..., Path],
    make_task: Make,
    make_trainer: Trainers,
    loader: DataLoader,
) -> None:
    path = saved('half.ckpt')
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match='half.ckpt is truncated, damaged'):
        make_trainer(max_epochs=1).fit(make_task(), loader, ckpt_path=path)
    with pytest.raises(ValueError, match='half.ckpt is truncated, damaged'):
        CMID.load_from_checkpoint(path)


@pytest.mark.parametrize('how', ['a bit', 'nan'])
def test_each_way_in_notices_damage_that_torch_does_not(
    how: str,
    saved: Callable[..., Path],
    make_task: Make,
    make_trainer: Trainers,
    loader: DataLoader,
) -> None:
    path = saved('bad.ckpt')
    if how == 'a bit':
        with zipfile.ZipFile(path) as archive:
            largest = max(archive.infolist(), key=lambda each: each.file_size)
        with open(path, 'r+b') as file:
            file.seek(largest.header_offset + largest.file_size // 2)
            byte = file.read(1)[0]
            file.seek(-1, 1)
            file.write(bytes([byte ^ 1]))
    else:
        content = torch.load(path, weights_only=True)
        content['state_dict']['student.backbone.mask_token'].fill_(torch.nan)
        torch.save(content, path)
    torch.load(path, weights_only=True)
    match = 'bad.ckpt is damaged: .*checksum' if how == 'a bit' else 'bad.ckpt holds .*not finite'  # fmt: skip
    trainer = make_trainer(max_epochs=1)
    ways: list[Callable[[], Any]] = [
        lambda: trainer.fit(make_task(), loader, ckpt_path=path),
        lambda: CMID.load_from_checkpoint(path),
        lambda: SceneMapper(path),
        lambda: predict_scene(path, 'scene.tif', path.with_name('map.tif')),
        lambda: export_backbone(path, path.with_name('out.ckpt')),
    ]
    if how == 'a bit':
        opened = io.BytesIO(path.read_bytes())
        opened.name = 'bad.ckpt'
        ways += [
            lambda: CMID.load_from_checkpoint(path, weights_only=False),
            lambda: CMID.load_from_checkpoint(opened),
        ]
    for way in ways:
        with pytest.raises(ValueError, match=match):
            way()


def test_what_the_user_gives_too_is_trusted() -> None:
    loss = {'class_path': 'torch.nn.L1Loss', 'init_args': {}}
    content = {'hyper_parameters': {'augmentations': loss, 'bands': ['a: b', '{x']}}
    check_hyperparameters(content, 'a.ckpt', CMID, {'augmentations': dict(loss)})
    for given in ({}, {'augmentations': {'class_path': 'torch.nn.MSELoss'}}):
        with pytest.raises(ValueError, match=r'a.ckpt holds augmentations=.*L1Loss'):
            check_hyperparameters(content, 'a.ckpt', CMID, given)
