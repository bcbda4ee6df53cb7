# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Write the smallest files of all kinds that an older version wrote, and what it made of them.

The files in ``tests/data/old`` are those of commit 80730a5, and are not to be written anew with a
later one: that they can still be read is the point of ``tests/test_old_files.py``.

.. code-block:: sh

    git worktree add ../old 80730a5
    PYTHONPATH=../old python tests/helpers/write_old_files.py tests/data/old

Networks are tiny ones of this folder's :mod:`old_files`, and what is large in a checkpoint is made
of few numbers: row i + 1 of a tensor is row i moved on by one number. torch stores these once.
Optimizers are left out but for one checkpoint, from which a run can go on. Programs (ONNX,
TorchScript) are left out: they run without this package.
"""

import inspect
import json
import sys
import tempfile
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from lightning.pytorch import Trainer, seed_everything
from old_files import (
    SIDE,
    Restored,
    look,
    make_image,
    map_scene,
    write_raster,
    write_scenes,
)
from torch import Tensor

import cmid_geo
from cmid_geo import datamodules, tasks
from cmid_geo.__main__ import main as run_command

#: Numbers from which on a tensor counts as large.
LARGE = 400

#: Parts of the package with public names.
PARTS = tuple(
    f'cmid_geo.{part}'
    for part in [
        'losses',
        'transforms',
        'models',
        'datasets',
        'datamodules',
        'tasks',
        'predict',
    ]
)

#: Ends of the names of buffers, which stay as they are.
KEPT = ('low', 'high', 'mean', 'std', 'running_var', 'keys', 'center')

CMID = {'in_channels': 2, 'size': SIDE, 'queue_size': 8, 'hidden_dim': 8, 'output_dim': 4, 'num_prototypes': 6,
        'warmup_steps': 1, 'teacher_temp_steps': 2}  # fmt: skip
TRAINER = {'accelerator': 'cpu', 'devices': 1, 'max_steps': 2, 'limit_val_batches': 0,
           'enable_progress_bar': False, 'enable_model_summary': False}  # fmt: skip
DETECTOR = {'backbone': 'resnet_old', 'in_channels': 2, 'num_classes': 3, 'detections_per_img': 5}  # fmt: skip


def write_labelled(folder: Path) -> None:
    """Write images of two bands with labels of all kinds.

    Args:
        folder: Gets a folder a kind.
    """
    rng = np.random.default_rng(0)

    def picture() -> np.ndarray:
        return rng.integers(1, 200, (2, SIDE, SIDE)).astype(np.uint8)

    for number in range(4):
        write_raster(
            folder / f'classes/train/{"ab"[number % 2]}/{number}.tif', picture()
        )
        write_raster(folder / f'coco/train/{number}.tif', picture())
        write_raster(folder / f'dota/images/{number}.tif', picture())
        label = folder / f'dota/labelTxt/{number}.txt'
        label.parent.mkdir(exist_ok=True)
        label.write_text('10 10 40 14 38 30 8 26 ship 0\n')
    boxes = [{'id': n, 'image_id': n, 'category_id': 1 + n % 2, 'bbox': [9, 9, 30, 20], 'area': 600,
              'iscrowd': 0} for n in range(4)]  # fmt: skip
    images = [{'id': n, 'file_name': f'{n}.tif', 'height': SIDE, 'width': SIDE} for n in range(4)]  # fmt: skip
    kinds = [{'id': 1, 'name': 'car'}, {'id': 2, 'name': 'ship'}]
    listed = {'images': images, 'annotations': boxes, 'categories': kinds}
    (folder / 'coco/train.json').write_text(json.dumps(listed))
    mask = (np.indices((128, 128)).sum(0)[None] // 50 % 3).astype(np.uint8)
    write_raster(folder / 'masks/a.tif', mask)
    for date in ('2020', '2021'):
        write_scenes(folder / f'change/{date}')
    write_raster(folder / 'change/masks/a.tif', mask % 2)
    write_scenes(folder / 'scenes')
    write_scenes(folder / 'unnamed', names=())


def stir(state: dict[str, Tensor]) -> None:
    """Let no parameter stay 0 or 1, as many are at first: one that is not read would not show.

    Args:
        state: Tensors by name, which are changed in place.
    """
    generator = torch.Generator().manual_seed(1)
    for name, tensor in state.items():
        if tensor.is_floating_point() and not name.endswith(KEPT):
            noise = torch.randn(tensor.shape, generator=generator)
            inputs = tensor[0].numel() if tensor.ndim > 1 else 25
            state[name] = tensor + 0.5 / inputs**0.5 * noise


def thin(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Make tensors of few numbers, all kept in one place.

    Args:
        state: Tensors by name.

    Returns:
        Tensors of the same shapes and types. Of the large ones each row is the one before, moved
        by one number; all others are as they were.
    """
    few, strides = {}, {}
    for name, tensor in state.items():
        numbers = tensor.contiguous().flatten()
        strides[name] = tensor.contiguous().stride()
        if len(numbers) > LARGE and tensor.ndim > 1:
            rows = numbers.view(len(tensor), -1)
            numbers = torch.cat([rows[0], rows[1:, -1]])
            strides[name] = (1, *strides[name][1:])
        few[name] = numbers
    thinned = {}
    for kind in {numbers.dtype for numbers in few.values()}:
        own = {name: each for name, each in few.items() if each.dtype == kind}
        place, all_numbers = 0, torch.cat([*own.values()])
        for name, numbers in own.items():
            shape = state[name].shape
            thinned[name] = all_numbers.as_strided(shape, strides[name], place)
            place += len(numbers)
    return {name: thinned[name] for name in state}


def fit(task: Any, datamodule: Any, path: Path, optimizer: bool = False) -> None:
    """Train for two steps, and keep the checkpoint.

    Args:
        task: To train.
        datamodule: Its data.
        path: File to write.
        optimizer: Whether to keep the optimizer, too.
    """
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(default_root_dir=folder, logger=False, **TRAINER)
        trainer.fit(task, datamodule)
        trainer.save_checkpoint(Path(folder, 'all.ckpt'))
        keep(Path(folder, 'all.ckpt'), path, optimizer)


def command(words: list[str], path: Path) -> None:
    """Train by the command, whose checkpoints name classes, and keep the checkpoint.

    Args:
        words: Of the command.
        path: File to write.
    """
    options = [f'--trainer.{k}={str(v).lower()}' for k, v in TRAINER.items()]
    with tempfile.TemporaryDirectory() as folder:
        run_command(['fit', *words, *options, '--trainer.logger=false',
                     f'--trainer.default_root_dir={folder}'])  # fmt: skip
        keep(next(Path(folder).rglob('epoch*.ckpt')), path)


def keep(found: Path, path: Path, optimizer: bool = False) -> None:
    """Make a checkpoint small.

    Args:
        found: What the Trainer saved.
        path: File to write.
        optimizer: Whether to keep the optimizer, too.
    """
    content = torch.load(found, weights_only=True)
    stir(content['state_dict'])
    content['state_dict'] = thin(content['state_dict'])
    if not optimizer:
        content['optimizer_states'] = []
    for each in content['optimizer_states']:
        each['state'] = _thin_moments(each['state'])
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)


def _thin_moments(state: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Thin what an optimizer knows; loading makes its own type of the type of half the size."""
    found = {(number, name): value.bfloat16() for number, own in state.items()
             for name, value in own.items() if torch.as_tensor(value).ndim}  # fmt: skip
    for (number, name), value in thin(found).items():
        state[number][name] = value
    return state


def write_pretraining(data: Path, out: Path) -> None:
    """Write checkpoints of CMID, and what is exported of them.

    Args:
        data: Of :func:`write_labelled`.
        out: Folder to write into.
    """
    loading = {'patch_size': SIDE, 'length': 4, 'batch_size': 2}
    for family in ('resnet', 'swin', 'convnext'):
        # Of bands without names the old version wrote B1 and B2
        scenes = str(data / ('unnamed' if family == 'convnext' else 'scenes'))
        datamodule = datamodules.SceneDataModule(scenes, **loading)
        task = tasks.CMID(f'{family}_old', **CMID)
        fit(task, datamodule, out / f'cmid_{family}.ckpt', family == 'resnet')
    words = {**{f'model.{name}': value for name, value in CMID.items()}, 'model.model': 'vit_old',
             'model.export_source': 'teacher', 'data.paths': data / 'scenes',
             **{f'data.{name}': value for name, value in loading.items()}}  # fmt: skip
    listed = [f'--{name}={value}' for name, value in words.items()]
    command(
        ['--model=CMID', '--data=SceneDataModule', *listed],
        out / 'cmid_vit_command.ckpt',
    )
    for family, ending, side in (
        ('resnet', 'ckpt', None),
        ('vit_command', 'pth', None),
        ('convnext', 'safetensors', 'teacher'),
    ):
        path = out / f'backbone_{family}.{ending}'
        cmid_geo.export_backbone(out / f'cmid_{family}.ckpt', path, side)
        if ending != 'safetensors':
            content = torch.load(path, weights_only=True)
            content['state_dict'] = thin(content['state_dict'])
            torch.save(content, path)


def write_downstream(data: Path, out: Path) -> None:
    """Write a checkpoint of each task on labelled images.

    Args:
        data: Of :func:`write_labelled`.
        out: Folder to write into.
    """
    for family in ('resnet', 'vit'):
        task = tasks.Classification(f'{family}_old', in_channels=2, num_classes=2, labels=['a', 'b'])  # fmt: skip
        datamodule = datamodules.ImageFolderDataModule(
            str(data / 'classes'), SIDE, batch_size=2
        )
        fit(task, datamodule, out / f'classification_{family}.ckpt')
    for model in ('faster-rcnn', 'fcos', 'retinanet'):
        task = tasks.ObjectDetection(
            model, fpn_channels=64, bands=['red', 'nir'], score_thresh=0.01, **DETECTOR
        )
        datamodule = datamodules.CocoDataModule(
            str(data / 'coco'), SIDE, test=None, val_fraction=0.25
        )
        fit(task, datamodule, out / f'detection_{model}.ckpt')
    start = [f'--model.weights={out / "backbone_resnet.ckpt"}', '--model.in_channels=2', '--model.backbone=resnet_old',
             f'--data.patch_size={SIDE}', '--data.batch_size=2']  # fmt: skip
    command(
        ['--model=cmid_geo.tasks.SemanticSegmentation', '--data=SegmentationDataModule', *start, '--model.num_classes=3',
         f'--data.images={data / "scenes"}', f'--data.masks={data / "masks"}', '--data.length=4',
         '--model.decoder_options={decoder_channels: 16}', '--model.auxiliary_channels=16',
         '--model.bands=[red, nir]'],
        out / 'segmentation_command.ckpt',
    )  # fmt: skip
    for model in ('unet', 'bit'):
        command(
            ['--model=cmid_geo.ChangeDetection', '--data=ChangeDataModule', *start, f'--model.model={model}',
             f'--data.before={data / "change/2020"}', f'--data.after={data / "change/2021"}',
             f'--data.masks={data / "change/masks"}', '--data.length=4'],
            out / f'change_{model}_command.ckpt',
        )  # fmt: skip
    command(
        ['--model=OrientedDetection', '--data=OrientedDataModule', *start, '--model.num_classes=2',
         f'--data.train={data / "dota"}', f'--data.val={data / "dota"}', '--data.classes=[ship]', '--data.bands=[1, 2]', '--data.overlap=16',
         '--model.fpn_channels=16', '--model.head_channels=16', '--model.proposals=20',
         '--model.detections_per_img=5', '--model.mean=[0.4, 0.5]', '--model.score_thresh=0.01'],
        out / 'oriented_command.ckpt',
    )  # fmt: skip


def describe(path: Path, data: Path) -> dict[str, Any]:
    """Tell what a file is to the version that wrote it.

    Args:
        path: Of a checkpoint.
        data: Of :func:`write_labelled`.

    Returns:
        Numbers, lists and names.
    """
    content = torch.load(path, weights_only=True)
    kind: Any = getattr(tasks, content['cmid_geo_task'])
    task = kind.load_from_checkpoint(path, weights=None)
    hparams = {k: v for k, v in task.hparams.items() if k[0] != '_' and k != 'weights'}
    values = {name: getattr(task, name) for name in ('low', 'high', 'mean', 'std')}
    told = {
        'kind': kind.__name__,
        'hparams': hparams,
        'values': values,
        'sees': look(task),
    }
    if content['optimizer_states']:
        restored = Restored()
        trainer = Trainer(**TRAINER | {'max_steps': 3}, logger=False, callbacks=[restored],
                          enable_checkpointing=False, default_root_dir=data / 'resumed')  # fmt: skip
        datamodule = datamodules.SceneDataModule(str(data / 'scenes'), SIDE, 4, 2)
        trainer.fit(kind(**hparams), datamodule, ckpt_path=path)
        told['resumed'] = restored.told
    return told


def describe_backbone(path: Path) -> list[Any]:
    """Compute the features of a backbone.

    Args:
        path: Of a file that holds one.

    Returns:
        What it makes of a fixed image.
    """
    network = cmid_geo.create_backbone(f'{path.stem.split("_")[1]}_old', 2)
    cmid_geo.load_backbone(network, path)
    with torch.no_grad():
        return network.eval()(make_image(1))


def write_names(out: Path) -> None:
    """Write what users may have written down: public names with parameters, and configurations.

    Args:
        out: Folder for ``names.json`` and ``configs.json``.
    """
    names = {}
    for module in (cmid_geo, *map(import_module, PARTS)):
        for name in module.__all__:
            found = getattr(module, name)
            own = inspect.isclass(found) or inspect.isfunction(found)
            is_enum = inspect.isclass(found) and issubclass(found, Enum)
            given = inspect.signature(found).parameters if own and not is_enum else {}
            names[f'{module.__name__}.{name}'] = [*given]
    configs = {}
    for path in sorted(Path(cmid_geo.__file__).parents[1].glob('configs/*.yaml')):
        content = yaml.safe_load(path.read_text())
        configs[path.name] = {part: content[part] for part in ('model', 'data')}
    for name, each in (('names', names), ('configs', configs)):
        lines = [f'{json.dumps(key)}: {json.dumps(value)}' for key, value in each.items()]  # fmt: skip
        (out / f'{name}.json').write_text('{\n' + ',\n'.join(lines) + '\n}\n')


def main(out: Path) -> None:
    """Write all files, then ``expected.json``.

    Args:
        out: Folder to write into.
    """
    seed_everything(0)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        write_labelled(data)
        write_pretraining(data, out)
        write_downstream(data, out)
        write_names(out)
        paths = sorted(out.glob('*_*.*'))
        told: dict[str, Any] = {
            'tasks': {p.name: describe(p, data) for p in paths if 'backbone' not in p.name},
            'backbones': {
                p.name: describe_backbone(p) for p in paths
                if p.name.startswith(('cmid', 'backbone'))
            },
        }  # fmt: skip
        path = out / 'segmentation_command.ckpt'
        told['map'] = map_scene(path, data / 'scenes/a.tif', data / 'map.tif')
    text = json.dumps(told, default=lambda tensor: tensor.tolist())
    (out / 'expected.json').write_text(text + '\n')


if __name__ == '__main__':
    if Path(cmid_geo.__file__).is_relative_to(Path(__file__).parents[2]):
        sys.exit(
            'this is the package as it is now: see the top of this file for how to take the old one'
        )
    main(Path(sys.argv[1]))
