# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Pretrain each family of backbones for a few steps at 224 px on a folder of scenes.

    python benchmarks/families.py FOLDER --steps 6

The last run stacks the scenes' bands to twelve.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger

from cmid_geo import CMID, SceneDataModule

MODELS = (
    'resnet50',
    'swin_tiny_patch4_window7_224',
    'vit_small_patch16_224',
    'convnext_tiny',
)


def stack(folder: str, out: Path, bands: int) -> str:
    """Write a scene whose bands repeat the first scene's, each time a little brighter."""
    source = min(
        path for path in Path(folder).rglob('*') if path.suffix in ('.tif', '.tiff')
    )
    with rasterio.open(source) as file:
        data, profile = file.read(), file.profile
    repeated = np.concatenate(
        [np.clip(data * (1 + 0.1 * i), 0, 255) for i in range(bands)]
    )
    profile.update(count=bands, photometric='minisblack')
    with rasterio.open(out / 'stacked.tif', 'w', **profile) as file:
        file.write(repeated[:bands].astype(profile['dtype']))
    return str(out / 'stacked.tif')


def run(model: str, scenes: str, steps: int, batch: int) -> None:
    seed_everything(0)
    data = SceneDataModule(
        scenes, patch_size=256, length=steps * batch, batch_size=batch, seed=0
    )
    data.setup('fit')
    task = CMID(
        model, in_channels=len(data.bands or ()), queue_size=4 * batch, warmup_steps=1,
        teacher_temp_steps=steps,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator='cpu', max_epochs=1, logger=CSVLogger(folder), log_every_n_steps=1,
            enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
            enable_checkpointing=False,
        )  # fmt: skip
        start = time.perf_counter()
        trainer.fit(task, data)
        each = (time.perf_counter() - start) / steps
    logged = trainer.callback_metrics
    losses = {
        n: round(logged[f'train_{n}'].item(), 3)
        for n in ('reconstruction', 'global', 'local')
    }
    print(
        f'{model}: {len(data.bands or ())} bands, {steps} steps of {batch}, {each:.1f} s a step, {losses}'
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('scenes')
    parser.add_argument('--steps', type=int, default=6)
    parser.add_argument('--batch', type=int, default=4)
    parser.add_argument('--threads', type=int, default=2)
    given: Any = parser.parse_args()
    torch.set_num_threads(given.threads)
    for model in MODELS:
        run(model, given.scenes, given.steps, given.batch)
    with tempfile.TemporaryDirectory() as folder:
        run('resnet50', stack(given.scenes, Path(folder), 12), given.steps, given.batch)


if __name__ == '__main__':
    main()
