# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Short fits of each task with its own data, for what must hold when a run stops and goes on."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from chips import SMALL
from cocofiles import write_coco
from dotafiles import write_dota
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from PIL import Image
from rasterfiles import noise, write
from torchgeo.datasets import OSCD

from cmid_geo import datamodules, tasks
from cmid_geo.tasks.checkpoint_files import find_checkpoint

Made = tuple[LightningModule, LightningDataModule]
LOADING: dict[str, Any] = {'batch_size': 2, 'length': 7, 'patch_size': 64}
SPARE: dict[str, Any] = {'backbone': 'resnet_test', 'weights': None, 'warmup_steps': 1}


def pretraining(folder: Path, workers: int) -> Made:
    data = datamodules.SceneDataModule(
        str(folder), **LOADING, num_workers=workers, val_length=2
    )
    if not folder.exists():
        write(folder / 'a.tif', noise(3, 100, 90))
        write(folder / 'b.tif', noise(3, 90, 100, seed=1))
    return tasks.CMID(**(SMALL | {'queue_size': 12, 'momentum': 0.5})), data


def segmentation(folder: Path, workers: int) -> Made:
    if not folder.exists():
        write(folder / 'images' / 'a.tif', noise(3, 128, 128))
        write(folder / 'masks' / 'a.tif', noise(1, 128, 128) // 100)
    places = str(folder / 'images'), str(folder / 'masks')
    data = datamodules.SegmentationDataModule(
        *places,
        val_images=places[0],
        val_masks=places[1],
        **LOADING,
        num_workers=workers,
    )
    # Its rate follows a metric: validation must not be lost
    options: dict[str, Any] = {
        'decoder_options': {'decoder_channels': 16},
        'num_classes': 2,
        'schedule': 'plateau',
        'patience': 0,
    }
    return tasks.SemanticSegmentation(model='upernet', **SPARE, **options), data


def change(folder: Path, workers: int) -> Made:
    title = 'Onera Satellite Change Detection dataset - '
    if not folder.exists():
        for city in ('a', 'b', 'c'):
            cm = folder / f'{title}Train Labels' / city / 'cm' / 'cm.png'
            cm.parent.mkdir(parents=True)
            Image.fromarray(noise(1, 80, 70)[0] // 100 * 255).save(cm)
            images = folder / f'{title}Images' / city
            for date, band in ((d, b) for d in (1, 2) for b in OSCD.all_bands):
                array = noise(1, 80, 70, seed=date).astype('uint16') * 10
                write(images / f'imgs_{date}_rect' / f'{band}.tif', array)
            (images / 'dates.txt').write_text('date_1: 20150101\ndate_2: 20180101\n')
    data = datamodules.OSCDDataModule(
        2, 64, 0.34, workers, length=7, root=str(folder), bands=('B04', 'B03', 'B02')
    )
    return tasks.ChangeDetection(**SPARE, in_channels=3), data


def classification(folder: Path, workers: int) -> Made:
    if not folder.exists():
        for number in range(16):
            path = folder / 'train' / 'ab'[number % 2] / f'{number}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.moveaxis(noise(3, 64, 64, number), 0, 2)).save(path)
    data = datamodules.ImageFolderDataModule(
        str(folder), 64, 2, workers, val_fraction=0.3
    )
    model = {'model': 'resnet_test', 'weights': None, 'warmup_steps': 1}
    return tasks.Classification(**model, num_classes=2), data


def detection(folder: Path, workers: int) -> Made:
    if not folder.exists():
        write_coco(folder, 'train', 10, 64, 64)
    data = datamodules.CocoDataModule(
        str(folder),
        size=64,
        batch_size=2,
        num_workers=workers,
        test=None,
        val_fraction=0.3,
    )
    small = {'fpn_channels': 64, 'detections_per_img': 5}
    return tasks.ObjectDetection(**SPARE, **small, num_classes=3), data


def oriented(folder: Path, workers: int) -> Made:
    root = folder if folder.exists() else write_dota(folder)
    data = datamodules.DOTADataModule(str(root), '1.0', 64, 16, 2, workers)
    small = {'proposals': 20, 'fpn_channels': 16, 'head_channels': 16}
    return tasks.OrientedDetection(**SPARE, **small, num_classes=16), data


RUNS: dict[str, Callable[[Path, int], Made]] = {
    made.__name__: made
    for made in (pretraining, segmentation, change, classification, detection, oriented)
}  # fmt: skip


def run(
    name: str,
    folder: Path,
    path: Path | None = None,
    callbacks: list[Callback] = [],  # noqa: B006
    workers: int = 0,
    **options: Any,
) -> dict[str, Any]:
    """Fit for two or three epochs, and return what the run ends with."""
    torch.manual_seed(1)
    task, data = RUNS[name](folder / 'data', workers)
    defaults: dict[str, Any] = {
        'max_epochs': 2, 'accelerator': 'cpu', 'logger': False, 'num_sanity_val_steps': 0,
        'enable_progress_bar': False, 'enable_model_summary': False,
        'default_root_dir': folder, 'enable_checkpointing': bool(callbacks),
    }  # fmt: skip
    trainer = Trainer(callbacks=callbacks, **(defaults | options))
    trainer.fit(task, data, ckpt_path=path)
    schedules = [each.scheduler.state_dict() for each in trainer.lr_scheduler_configs]
    optimizer = trainer.optimizers[0].state_dict()
    return {
        'weights': task.state_dict(), 'optimizer': optimizer['state'],
        'groups': optimizer['param_groups'], 'step': trainer.global_step,
        'schedules': [{k: v for k, v in s.items() if not callable(v)} for s in schedules],
    }  # fmt: skip


def differences(first: Any, second: Any, name: str = '') -> list[str]:
    """Names of what differs, with tolerance 0."""
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        pairs = [(f'{name}/{key}', first[key], second[key]) for key in first]
        return [d for key, *pair in pairs for d in differences(*pair, key)]
    if isinstance(first, list | tuple):
        pairs = enumerate(zip(first, second, strict=True))
        return [d for n, pair in pairs for d in differences(*pair, f'{name}/{n}')]
    same = torch.equal if isinstance(first, torch.Tensor) else type(first).__eq__
    return [] if same(first, second) else [name]


class Told(Callback):
    """Prints each batch, so that a test can stop a run after one."""

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.is_global_zero:
            print(trainer.fit_loop.epoch_loop.total_batch_idx + 1, flush=True)


def main() -> None:
    """Fit in this process, with a checkpoint each step, from the newest if there is one."""
    name, folder, kept, epochs, devices = sys.argv[1:]
    torch.set_num_threads(1)
    found = any(Path(kept).glob('*.ckpt'))
    path = find_checkpoint(kept) if found else None
    saving = ModelCheckpoint(kept, every_n_train_steps=1, save_last=True)
    options: dict[str, Any] = {'max_epochs': int(epochs), 'devices': int(devices)}
    workers = 2 if devices == '1' else 0
    # Three batches an epoch, of all processes together
    LOADING['length'] = max(7, 6 * int(devices))
    ended = run(name, Path(folder), path, [saving, Told()], workers, **options)
    if os.environ.get('LOCAL_RANK', '0') == '0':
        torch.save(ended, Path(kept) / 'ended.pt')


if __name__ == '__main__':
    main()
