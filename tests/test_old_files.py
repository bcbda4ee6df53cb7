# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""What commit 80730a5 wrote, and what users wrote for it.

``helpers/write_old_files.py`` tells how the files in ``data/old`` came to be. What is meant to differ
since then:

* Bands without names are positions, 1 and 2, and no longer called 'B1' and 'B2'.
* Hyperparameters have got more; those that there were are as they were.
* A ResNet's features belong where it looks, so its maps and the cells that are matched lie elsewhere
  (``field_offset``): features of one image are the same.
* A ViT with CMID's weights pools its patch tokens. A classifier of before goes on by its class token.
"""

import importlib
import inspect
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import Trainer
from old_files import SIDE, Restored, look, make_image, map_scene, write_scenes
from torch import Tensor
from torchgeo.datamodules import BaseDataModule
from torchgeo.tasks import BaseTask

import cmid_geo
from cmid_geo import datamodules, tasks
from cmid_geo.__main__ import main

OLD = Path(__file__).parent / 'data' / 'old'
EXPECTED = json.loads((OLD / 'expected.json').read_text())
TASKS, BACKBONES = EXPECTED['tasks'], EXPECTED['backbones']
NAMES = json.loads((OLD / 'names.json').read_text())
CONFIGS = json.loads((OLD / 'configs.json').read_text())
VALUES = ('low', 'high', 'mean', 'std')
CLOSE = {'rtol': 1e-5, 'atol': 1e-5}
#: Boxes are in pixels.
BOXES = {'rtol': 1e-5, 'atol': 1e-3}


@pytest.fixture(autouse=True)
def plain_constructors(monkeypatch: pytest.MonkeyPatch) -> None:
    # The type checker of the tests hides from Lightning which arguments there are, and in files lists
    # stand for tuples
    for name in tasks.__all__:
        kind = getattr(tasks, name)
        monkeypatch.setattr(kind, '__init__', inspect.unwrap(kind.__init__))


def compare(found: Mapping[str, Tensor], expected: Mapping[str, Any]) -> None:
    """Compare numbers with those of before."""
    assert found.keys() == expected.keys()
    for name, each in expected.items():
        close = BOXES if name == 'boxes' else CLOSE
        torch.testing.assert_close(found[name], torch.tensor(each), **close, msg=lambda m, n=name: f'{n}: {m}')  # fmt: skip


def compare_values(task: Any, expected: Mapping[str, Any]) -> None:
    """Compare what raw values mean."""
    for name in VALUES:
        assert getattr(task, name).tolist() == expected[name], name


def contents(state: Mapping[str, Tensor]) -> Counter[tuple[Any, ...]]:
    """Tensors without their names, which may change."""
    return Counter(
        (tuple(t.shape), t.contiguous().double().sum().item()) for t in state.values()
    )


def features(weights: Any, family: str) -> Tensor:
    """What a backbone of these weights makes of the image."""
    network = cmid_geo.create_backbone(f'{family}_old', 2)
    report = cmid_geo.load_backbone(network, weights)
    assert len(report.loaded) == report.total
    with torch.no_grad():
        return network.eval()(make_image(1))


def family_of(name: str) -> str:
    """The network in a file."""
    return name.split('.')[0].split('_')[1]


def check_backbone(weights: Any, name: str) -> None:
    """Compare a backbone with that of an old file."""
    found = features(weights, family_of(name))
    torch.testing.assert_close(found, torch.tensor(BACKBONES[name]), **CLOSE)


# ------------------------------------------------------------------ checkpoints


@pytest.mark.parametrize('name', TASKS)
def test_checkpoints_load(name: str) -> None:
    expected, saved = TASKS[name], torch.load(OLD / name, weights_only=True)
    kind = getattr(tasks, expected['kind'])
    task = kind.load_from_checkpoint(OLD / name)
    assert type(task) is kind
    compare(look(task), expected['sees'])
    compare_values(task, expected['values'])
    # The constants of augmentations are those of the arguments, whatever a file holds
    state = {n: v for n, v in saved['state_dict'].items() if n.split('.')[0] != 'augmentations'}  # fmt: skip
    assert contents(state) <= contents(task.state_dict())
    hparams = json.loads(json.dumps({n: task.hparams[n] for n in expected['hparams']}))
    if name == 'cmid_convnext.ckpt':
        # Of files without names: a task may go on to call them as it did
        assert hparams['bands'] in ([1, 2], ['B1', 'B2'])
        hparams['bands'] = ['B1', 'B2']
    assert hparams == expected['hparams']


@pytest.mark.parametrize('name', TASKS)
def test_maps_open_checkpoints(name: str) -> None:
    expected = TASKS[name]
    if expected['kind'] == 'Classification':
        with pytest.raises(ValueError, match='Classification'):
            cmid_geo.SceneMapper(OLD / name)
        return
    task: Any = cmid_geo.SceneMapper(OLD / name).task
    assert type(task).__name__ == expected['kind']
    bands = expected['hparams']['bands']
    assert task.hparams['bands'] == ([1, 2] if bands == ['B1', 'B2'] else bands)
    compare(look(task), expected['sees'])
    compare_values(task, expected['values'])


def test_tasks_told_by_their_arguments_alone_are_opened(tmp_path: Path) -> None:
    for name, expected in TASKS.items():
        content = torch.load(OLD / name, weights_only=True)
        del content['cmid_geo_task']
        content['hyper_parameters'].pop('_class_path', None)
        torch.save(content, tmp_path / name)
        if expected['kind'] != 'Classification':
            task = cmid_geo.SceneMapper(tmp_path / name).task
            assert type(task).__name__ == expected['kind'], name


def test_arguments_that_went_are_passed_over(tmp_path: Path) -> None:
    content = torch.load(OLD / 'cmid_resnet.ckpt', weights_only=True)
    content['hyper_parameters']['batch_negatives'] = True
    torch.save(content, tmp_path / 'cmid.ckpt')
    task = cmid_geo.SceneMapper(tmp_path / 'cmid.ckpt').task
    assert isinstance(task, tasks.CMID)


def test_a_scene_is_mapped_as_before(tmp_path: Path) -> None:
    scene = write_scenes(tmp_path) / 'a.tif'
    found = map_scene(OLD / 'segmentation_command.ckpt', scene, tmp_path / 'map.tif')
    torch.testing.assert_close(torch.tensor(found), torch.tensor(EXPECTED['map']), **CLOSE)  # fmt: skip


#: How a run goes on.
RUN: dict[str, Any] = {
    'accelerator': 'cpu', 'devices': 1, 'max_steps': 3, 'limit_val_batches': 0, 'logger': False,
    'enable_progress_bar': False, 'enable_model_summary': False, 'enable_checkpointing': False,
}  # fmt: skip


def test_a_run_goes_on(tmp_path: Path) -> None:
    path, restored = OLD / 'cmid_resnet.ckpt', Restored()
    expected = TASKS[path.name]['resumed']
    scenes = write_scenes(tmp_path / 'scenes')
    trainer = Trainer(**RUN, default_root_dir=tmp_path, callbacks=[restored])
    task = tasks.CMID(**TASKS[path.name]['hparams'])
    datamodule = datamodules.SceneDataModule(str(scenes), SIDE, 4, 2)
    trainer.fit(task, datamodule, ckpt_path=path)
    assert trainer.global_step == 3
    assert restored.told['step'] == expected['step']
    assert restored.told['rate'] == pytest.approx(expected['rate'])
    # Each parameter beside what the optimizer knew of it
    tables = (restored.told['sums'], expected['sums'])
    found, wanted = (torch.tensor(rows, dtype=torch.float64) for rows in tables)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)


def test_a_run_goes_on_by_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path, scenes = OLD / 'cmid_vit_command.ckpt', write_scenes(tmp_path / 'scenes')
    data = {'paths': str(scenes), 'patch_size': SIDE, 'length': 4, 'batch_size': 2}
    config = {
        'trainer': RUN,
        'model': {'class_path': 'CMID', 'init_args': TASKS[path.name]['hparams']},
        'data': {'class_path': 'SceneDataModule', 'init_args': data},
    }
    (tmp_path / 'config.yaml').write_text(json.dumps(config))
    main(['fit', '--config=config.yaml', f'--ckpt_path={path}'])
    assert (tmp_path / 'backbone.ckpt').exists()


# ------------------------------------------------------------------ backbones


def pretraining_of(name: str) -> Any:
    """What is known of the checkpoint that a backbone is of."""
    return TASKS[f'cmid_{name.split(".")[0].partition("_")[2]}.ckpt']


@pytest.mark.parametrize('name', BACKBONES)
def test_backbones_load(name: str) -> None:
    check_backbone(OLD / name, name)
    mapped: Any = cmid_geo.SceneMapper(OLD / name).task
    compare_values(mapped, pretraining_of(name)['values'])
    unnamed = family_of(name) == 'convnext'
    assert mapped.hparams['bands'] == ([1, 2] if unnamed else ['red', 'nir'])


@pytest.mark.parametrize('name', BACKBONES)
def test_backbones_are_exported_again(name: str, tmp_path: Path) -> None:
    for ending in ('ckpt', 'safetensors'):
        out = cmid_geo.export_backbone(OLD / name, tmp_path / f'out.{ending}')
        check_backbone(out, name)


START = [
    *[(name, 'Classification', 'model') for name in BACKBONES],
    *[(f'backbone_{each}', kind, 'backbone') for kind in ('SemanticSegmentation', 'ChangeDetection', 'ObjectDetection', 'OrientedDetection')
      for each in ('resnet.ckpt', 'vit_command.pth')],
]  # fmt: skip


@pytest.mark.parametrize(('name', 'kind', 'argument'), START)
def test_tasks_start_from_backbones(name: str, kind: str, argument: str) -> None:
    family = family_of(name)
    options = {} if kind == 'ChangeDetection' else {'num_classes': 3}
    if kind.endswith('Detection') and options:
        options |= {'fpn_channels': 64}
    task = getattr(tasks, kind)(
        **{argument: f'{family}_old'}, weights=str(OLD / name), in_channels=2, **options
    )
    assert len(task.report.loaded) == task.report.total
    saved = pretraining_of(name)['values']
    for each in ('mean', 'std'):
        assert getattr(task, each).tolist() == pytest.approx(saved[each])
    check_backbone(task.state_dict(), name)


@pytest.mark.parametrize('name', [name for name in TASKS if name.startswith('cmid')])
def test_pretraining_starts_from_checkpoints(name: str) -> None:
    task = tasks.CMID(**TASKS[name]['hparams'], weights=str(OLD / name))
    for each in VALUES[:2]:
        getattr(task, each).copy_(torch.tensor(TASKS[name]['values'][each]))
    found, expected = look(task), TASKS[name]['sees']
    torch.testing.assert_close(found['losses'], torch.tensor(expected['losses']), **CLOSE)  # fmt: skip


# ------------------------------------------------------------------ names


@pytest.mark.parametrize('name', NAMES)
def test_names_are_found(name: str) -> None:
    module, _, last = name.rpartition('.')
    found = getattr(importlib.import_module(module), last)
    if NAMES[name]:
        assert set(NAMES[name]) <= set(inspect.signature(found).parameters)


@pytest.mark.parametrize('name', CONFIGS)
def test_configurations_are_understood(name: str) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(BaseTask, 'model')
    parser.add_subclass_arguments(BaseDataModule, 'data')
    given = parser.parse_object(CONFIGS[name])
    for part in ('model', 'data'):
        module, _, last = given[part].class_path.rpartition('.')
        assert module.split('.')[0] == 'cmid_geo'
        assert getattr(importlib.import_module(module), last) is getattr(cmid_geo, last)
