# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Segment Dubai from the air: train on five tiles, watch the sixth.

    python benchmarks/segmentation_dubai.py segmentation --model upernet --out runs/dubai

The tile that is held out is the last; nothing is chosen by it. Its mIoU is printed after each
epoch beside that of calling all of it the commonest class of the training tiles, and a picture
of image, truth and prediction is left.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from torchmetrics.classification import MulticlassJaccardIndex

from cmid_geo.datamodules import SegmentationDataModule
from cmid_geo.plots.predictions import prediction_figure
from cmid_geo.tasks import SemanticSegmentation

NAMES = ['building', 'land', 'road', 'vegetation', 'water']


class Curve(Callback):
    """Prints what the held-out tile says after each epoch."""

    def __init__(self) -> None:
        self.start = time.time()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        got = {k: round(float(v), 4) for k, v in trainer.callback_metrics.items()}
        wanted = ('AverageJaccardIndex', 'AverageF1Score', 'OverallAccuracy')
        line = ' '.join(f'{name} {got[f"val_{name}"]:.4f}' for name in wanted)
        classes = ' '.join(
            f'{n} {got[f"val_ClasswiseJaccardIndex_{n}"]:.3f}' for n in NAMES
        )
        minutes = (time.time() - self.start) / 60
        print(
            f'epoch {trainer.current_epoch} ({minutes:.1f} min): {line} | IoU {classes}',
            flush=True,
        )


def commonest(datamodule: SegmentationDataModule) -> None:
    """Print the mIoU of always the commonest class, of the training tiles and of the held-out one."""
    datamodule.setup('fit')
    train, held = datamodule.train_dataset.masks, datamodule.val_dataset.masks
    counts = sum(
        torch.bincount(train.read(i, s.grid).flatten(), minlength=256)[:5]
        for i, s in enumerate(train.scenes)
    )
    metric = MulticlassJaccardIndex(5, ignore_index=255)
    for i, scene in enumerate(held.scenes):
        truth = held.read(i, scene.grid)
        metric.update(torch.full_like(truth, int(counts.argmax())), truth)
    shares = ', '.join(f'{n} {c / counts.sum():.3f}' for n, c in zip(NAMES, counts))
    print(
        f'training pixels: {shares}; always {NAMES[int(counts.argmax())]}: mIoU {metric.compute():.4f}'
    )


@torch.no_grad()
def picture(task: Any, datamodule: Any, out: Path) -> None:
    """Show two chips of the held-out tile."""
    task.eval()
    for number, index in enumerate((20, 60)):
        chip = datamodule.val_sampler[index]
        batch = {k: v[None] for k, v in datamodule.val_dataset[chip].items()}
        batch = datamodule.scale(batch)
        predicted = task.decide(task(batch['image']))[0]
        figure = prediction_figure(
            batch['image'][0], batch['mask'][0], predicted, NAMES, 255
        )
        figure.savefig(out / f'prediction_{number}.png', dpi=80)
        plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('folder', type=Path)
    parser.add_argument('--model', default='upernet')
    parser.add_argument('--backbone', default='resnet18')
    parser.add_argument('--weights')
    parser.add_argument('--epochs', type=int, default=12)
    parser.add_argument('--length', type=int, default=320)
    parser.add_argument('--size', type=int, default=192)
    parser.add_argument('--fraction', type=float, default=1.0)
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--out', type=Path, default=Path('runs/dubai'))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    seed_everything(0)
    *tiles, last = sorted(args.folder.glob('tile_*'))
    datamodule = SegmentationDataModule(
        [str(t / 'image.tif') for t in tiles], [str(t / 'mask.tif') for t in tiles],
        str(last / 'image.tif'), str(last / 'mask.tif'),
        patch_size=args.size, length=args.length, batch_size=8, label_fraction=args.fraction,
    )  # fmt: skip
    commonest(datamodule)
    options = {'decoder_channels': 128} if args.model == 'upernet' else None
    task = SemanticSegmentation(
        args.model, args.backbone, args.weights, num_classes=5, ignore_index=255, labels=NAMES,
        lr=5e-4, warmup_steps=20, decoder_options=options,
    )  # fmt: skip
    trainer = Trainer(
        accelerator='cpu', devices=1, max_epochs=args.epochs, logger=False, callbacks=[Curve()],
        enable_checkpointing=False, enable_progress_bar=False, num_sanity_val_steps=0,
        check_val_every_n_epoch=2,
    )  # fmt: skip
    trainer.fit(task, datamodule)
    args.out.mkdir(parents=True, exist_ok=True)
    trainer.save_checkpoint(args.out / f'{args.model}.ckpt', weights_only=True)
    picture(task, datamodule, args.out)


if __name__ == '__main__':
    main()
