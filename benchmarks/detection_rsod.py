# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Detect aircraft, oil tanks, overpasses and playgrounds in RSOD at 320 px.

    python benchmarks/detection_rsod.py FOLDER overfit --out runs/rsod --threads 1
    python benchmarks/detection_rsod.py FOLDER train --out runs/rsod --minutes 45

The first learns 20 training images by heart. The second trains on the training images and tests
after each epoch, by which nothing is chosen: the last epoch counts.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from torch.utils.data import DataLoader, Subset
from torchgeo.datamodules.utils import collate_fn_detection

from cmid_geo.datamodules import CocoDataModule
from cmid_geo.datasets.label_fraction import draw_fraction
from cmid_geo.plots.boxes import boxes_figure
from cmid_geo.tasks import ObjectDetection


class Curve(Callback):
    """Tests after some epochs and writes down what came of it."""

    def __init__(self, loader: Any, every: int, out: Path, enough: float) -> None:
        self.loader, self.every, self.out, self.enough = loader, every, out, enough
        self.start, self.rows = time.time(), []

    @torch.no_grad()
    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        epoch = trainer.current_epoch + 1
        last = epoch == trainer.max_epochs or trainer.should_stop
        if epoch % self.every and not last:
            return
        pl_module.eval()
        for batch in self.loader:
            pl_module.shared_step(trainer.datamodule.scale(batch), 0, 'test')
        values = pl_module.test_metrics.compute()
        pl_module.test_metrics.reset()
        pl_module.train()
        row = {'epoch': epoch, 'minutes': round((time.time() - self.start) / 60, 1)}
        row['loss'] = round(float(trainer.callback_metrics['train_loss']), 3)
        row |= {name: round(float(values[name]), 3) for name in ('map', 'map_50')}
        each = zip(values['classes'].tolist(), values['map_per_class'].tolist())
        row |= {pl_module.hparams['labels'][k]: round(v, 3) for k, v in each}
        self.rows.append(row)
        print(row, flush=True)
        self.out.write_text(json.dumps(self.rows))
        trainer.should_stop |= row['map_50'] >= self.enough


def show(task: Any, data: Any, dataset: Any, places: list[int], path: Path) -> None:
    """Draw truth and what is found."""
    batch = data.scale(collate_fn_detection([dataset[place] for place in places]))
    with torch.no_grad():
        found = task.eval()(batch['image'])
    figure = boxes_figure(
        batch['image'],
        list(zip(batch['bbox_xyxy'], batch['label'])),
        [(each['boxes'], each['labels'], each['scores']) for each in found],
        data.classes,
    )
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('folder')
    parser.add_argument('run', choices=('overfit', 'train'))
    parser.add_argument('--out', type=Path, default=Path('runs/rsod'))
    parser.add_argument('--model', default='faster-rcnn')
    parser.add_argument('--backbone', default='resnet18')
    parser.add_argument('--weights')
    parser.add_argument('--trainable-layers', type=int, default=5)
    parser.add_argument('--channels', type=int, default=128)
    parser.add_argument('--size', type=int, default=320)
    parser.add_argument('--batch', type=int, default=4)
    parser.add_argument('--epochs', type=int, default=60)
    parser.add_argument('--minutes', type=float, default=45)
    parser.add_argument('--lr', type=float, default=5e-4)
    parser.add_argument('--every', type=int, default=5)
    parser.add_argument('--label-fraction', type=float, default=1.0)
    parser.add_argument('--threads', type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    seed_everything(0)
    args.out.mkdir(parents=True, exist_ok=True)
    overfit = args.run == 'overfit'
    # Learning by heart wants each image to look the same
    still = {'flips': False, 'turns': False, 'contrast': 0.0, 'brightness': 0.0}
    data = CocoDataModule(
        args.folder, args.size, args.batch, val='test', seed=0,
        label_fraction=args.label_fraction, **(still if overfit else {}),
    )  # fmt: skip
    data.setup('fit')
    if overfit:
        whole: Any = data._whole
        places = draw_fraction(whole.labels, 20 / len(whole), 0)
        data.train_dataset = Subset(whole, places)
        tested: Any = data.train_dataset
    else:
        tested = data.val_dataset
    print(f'{len(data.train_dataset)} images to train on, {len(tested)} to test on')  # ty: ignore
    # Half the sizes of torchvision's, and at 320 px half of these again
    task = ObjectDetection(
        args.model, args.backbone, args.weights, num_classes=5, labels=list(data.classes or ()),
        trainable_layers=args.trainable_layers, fpn_channels=args.channels, lr=args.lr, schedule='cosine', warmup_steps=20,
        anchor_sizes=(8, 16, 32, 64, 128) if args.model == 'faster-rcnn' else None,
    )  # fmt: skip
    if args.model == 'faster-rcnn':
        # 512 boxes of each image are many where images are small
        task.model.roi_heads.fg_bg_sampler.batch_size_per_image = 128
    loader = DataLoader(tested, 8, collate_fn=collate_fn_detection)
    name = f'{args.run}_{args.model}'
    curve = Curve(
        loader, args.every, args.out / f'{name}.json', 0.95 if overfit else 2.0
    )
    trainer = Trainer(
        accelerator='cpu', devices=1, max_epochs=args.epochs, logger=False,
        max_time={'minutes': args.minutes}, limit_val_batches=0, gradient_clip_val=35,
        enable_checkpointing=False, enable_progress_bar=False, callbacks=[curve],
    )  # fmt: skip
    trainer.fit(task, data)
    trainer.save_checkpoint(args.out / f'{name}.ckpt', weights_only=True)
    step = max(1, len(tested) // 4)
    show(task, data, tested, [0, step, 2 * step, 3 * step], args.out / f'{name}.png')


if __name__ == '__main__':
    main()
