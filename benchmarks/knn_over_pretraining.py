# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Nearest neighbours of labelled images found by a backbone while CMID trains it.

    python benchmarks/knn_over_pretraining.py fit aid --epochs 50 --out runs/knn
    python benchmarks/knn_over_pretraining.py plot runs/knn --csv benchmarks/results/knn_over_pretraining.csv --figure docs/knn_over_pretraining.png

Of AID only the training images are used: 15 % of each class are held out, from pretraining too, and asked for after each
epoch. Epoch 0 is the same network with random weights.
"""

import argparse
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cmid_geo import CMID, ImageFolderDataModule
from cmid_geo.callbacks import OnlineKNN, OnlineLinearProbe
from cmid_geo.ops.host import fast_precision

LABELS = {
    'knn_student': 'kNN-5, student',
    'knn_teacher': 'kNN-5, teacher',
    'linear_student': 'linear probe, student',
}


class AtTheStart(OnlineKNN):
    """Looks before the first step too."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        known, asked = self._look(trainer, pl_module)
        given = known.features['student'], known.labels, asked.features['student']
        right = (self.classify(*given) == asked.labels).float().mean()
        trainer.logger.log_metrics({'knn_student': float(right), 'epoch': -1}, 0)


def fit(options: argparse.Namespace) -> None:
    """Pretrain on unlabelled images, and look at their classes after each epoch."""
    seed_everything(options.seed, workers=True)
    images = ImageFolderDataModule(
        str(options.data),
        size=96,
        batch_size=64,
        num_workers=options.workers,
        val_fraction=0.15,
        augment=False,
    )
    task = CMID.small_data(model='resnet18', queue_size=options.queue)
    trainer = Trainer(
        max_epochs=options.epochs,
        max_steps=options.steps,
        accelerator='auto',
        devices=1,
        precision=fast_precision(),
        logger=CSVLogger(options.out, '', f'seed_{options.seed}'),
        callbacks=[
            AtTheStart(images, options.every),
            OnlineLinearProbe(images, options.every),
        ],
        log_every_n_steps=10,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(task, images)


def plot(options: argparse.Namespace) -> None:
    """Join the runs' metrics, and draw them."""
    runs = []
    for path in sorted(options.runs.glob('seed_*/metrics.csv')):
        metrics = pd.read_csv(path)
        found = metrics[['epoch', *LABELS]].dropna(subset=['knn_student'])
        runs.append(found.assign(epoch=found.epoch + 1, seed=path.parent.name[5:]))
    joined = pd.concat(runs).round(4)
    if options.csv:
        joined.to_csv(options.csv, index=False)
    figure = Figure(figsize=(7, 4), layout='constrained')
    axes = figure.subplots()
    for name, label in LABELS.items():
        by_epoch = 100 * joined.groupby('epoch')[name].agg(['mean', 'min', 'max'])
        by_epoch = by_epoch.dropna()
        drawn = axes.plot(by_epoch.index, by_epoch['mean'], label=label)
        axes.fill_between(
            by_epoch.index,
            by_epoch['min'],
            by_epoch['max'],
            alpha=0.2,
            color=drawn[0].get_color(),
        )
    axes.set(xlabel='epochs of pretraining (0: random weights)', ylabel='accuracy, %')
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(loc='lower right')
    figure.savefig(options.figure, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest='command', required=True)
    fitting, plotting = commands.add_parser('fit'), commands.add_parser('plot')
    fitting.add_argument('data', type=Path, help='folder of train/<class>/')
    fitting.add_argument('--epochs', type=int, default=50)
    fitting.add_argument('--steps', type=int, default=-1)
    fitting.add_argument('--queue', type=int, default=4096)
    fitting.add_argument('--every', type=int, default=1, help='epochs between looks')
    fitting.add_argument('--seed', type=int, default=0)
    fitting.add_argument('--workers', type=int, default=2)
    fitting.add_argument('--threads', type=int, default=1)
    fitting.add_argument('--out', type=Path, default=Path('runs/knn'))
    plotting.add_argument('runs', type=Path)
    plotting.add_argument('--csv', type=Path)
    plotting.add_argument('--figure', type=Path, required=True)
    options = parser.parse_args()
    if options.command == 'plot':
        plot(options)
        return
    torch.set_num_threads(options.threads)
    fit(options)


if __name__ == '__main__':
    main()
