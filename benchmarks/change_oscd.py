# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Change on cities that were not trained on, against a threshold on the difference.

    python benchmarks/change_oscd.py data/change --model unet --out runs/change --threads 1

Folders of two dates and ``change.tif`` each, such as Onera's. One city is held out for the test
and one for validation, which tells how training goes; the last epoch is tested, none is chosen.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from torch.utils.data import DataLoader

from cmid_geo import ChangeDataModule, ChangeDetection, ChangePairs
from cmid_geo.datasets.samplers import windows

matplotlib.use('Agg')

NAMES = ('F1Score', 'JaccardIndex', 'Precision', 'Recall')


def scores(predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """F1, IoU, precision and recall of change, as percentages."""
    hit = float((predicted & truth).sum())
    extra, missed = float((predicted & ~truth).sum()), float((~predicted & truth).sum())
    values = (
        2 * hit / max(2 * hit + extra + missed, 1), hit / max(hit + extra + missed, 1),
        hit / max(hit + extra, 1), hit / max(hit + missed, 1),
    )  # fmt: skip
    return {name: round(100 * value, 2) for name, value in zip(NAMES, values)}


def difference(sample: Any, data: ChangeDataModule, each_date: bool) -> np.ndarray:
    """Mean absolute difference of the standardised bands, by the training places or by each date."""
    image, low, high = (np.asarray(x, np.float32) for x in (
        sample['image'], data.statistics.low, data.statistics.high
    ))  # fmt: skip
    image = ((image - low[:, None, None]) / (high - low)[:, None, None]).clip(0, 1)
    mean, std = (np.asarray(x, np.float32)[None, :, None, None] for x in (
        data.statistics.mean, data.statistics.std
    ))  # fmt: skip
    if each_date:
        mean, std = image.mean((2, 3), keepdims=True), image.std((2, 3), keepdims=True)
    image = (image - mean) / std
    return np.abs(image[0] - image[1]).mean(0)


def baseline(data: ChangeDataModule) -> list[str]:
    """Choose the threshold by F1 on the training places, and say what it gives elsewhere."""
    lines = []
    for each_date in (False, True):
        values, truths = {}, {}
        for split in ('train', 'val', 'test'):
            pairs: Any = getattr(data, f'{split}_dataset')
            samples = [pairs[i] for i in range(len(pairs))]
            valid = [each['valid'].numpy() for each in samples]
            values[split] = np.concatenate(
                [
                    difference(each, data, each_date)[v]
                    for each, v in zip(samples, valid)
                ]
            )
            truths[split] = np.concatenate(
                [each['mask'].numpy()[v] == 1 for each, v in zip(samples, valid)]
            )
        tried = np.quantile(values['train'], np.linspace(0.5, 0.999, 200))
        best = max(
            tried, key=lambda t: scores(values['train'] > t, truths['train'])['F1Score']
        )
        name = 'each date' if each_date else 'training places'
        for split, value in values.items():
            found = scores(value > best, truths[split])
            share = 100 * truths[split].mean()
            lines.append(
                f'standardised by {name}, threshold {best:.3f}, {split} ({share:.2f} % change): {found}'
            )
    return lines


class Say(Callback):
    """Writes the metrics of each epoch down."""

    def __init__(self, file: Path) -> None:
        self.file, self.start, self.train_loss = file, time.time(), 0.0

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.sanity_checking:
            return
        logged = {key: float(value) for key, value in trainer.callback_metrics.items()}
        line = {
            'epoch': trainer.current_epoch + 1,
            'minutes': round((time.time() - self.start) / 60, 1),
        }
        line |= {'val_loss': round(logged['val_loss'], 4)}
        line |= {name: round(100 * logged[f'val_Overall{name}'], 2) for name in NAMES}
        text = json.dumps(line)
        print(text, flush=True)
        with self.file.open('a') as file:
            file.write(text + '\n')


@torch.no_grad()
def predict(task: Any, data: ChangeDataModule) -> tuple[Any, np.ndarray]:
    """Probability of change of the whole test place."""
    pairs: Any = data.test_dataset
    sample = pairs[0]
    rows, cols = sample['mask'].shape
    batch = {
        'image': torch.nn.functional.pad(
            sample['image'], (0, -cols % 32, 0, -rows % 32)
        )[None],
        'valid': torch.nn.functional.pad(
            sample['valid'], (0, -cols % 32, 0, -rows % 32)
        )[None],
    }
    task.eval()
    return sample, task.predict_step(data.scale(batch), 0)[0, 0, :rows, :cols].numpy()


@torch.no_grad()
def pixels(
    task: Any, data: ChangeDataModule, split: str
) -> tuple[np.ndarray, np.ndarray]:
    """Probability and truth of all valid pixels of a split, window by window."""
    pairs: Any = getattr(data, f'{split}_dataset')
    task.eval()
    found, true = [], []
    chips: Any = windows(pairs, data.chip_size)
    for batch in DataLoader(pairs, batch_size=8, sampler=chips):
        known = batch['valid']
        probability = task.predict_step(data.scale(batch), 0)[:, 0]
        found.append(probability[known].numpy())
        true.append(batch['mask'][known].numpy() == 1)
    return np.concatenate(found), np.concatenate(true)


def chosen_threshold(task: Any, data: ChangeDataModule) -> list[str]:
    """What the threshold gives that is best on the training places, as the baseline's is."""
    probability, truth = pixels(task, data, 'train')
    tried = np.linspace(0.02, 0.98, 49)
    best = max(tried, key=lambda t: scores(probability > t, truth)['F1Score'])
    lines = [f'threshold {best:.2f}, train: {scores(probability > best, truth)}']
    for split in ('val', 'test'):
        probability, truth = pixels(task, data, split)
        lines.append(
            f'threshold {best:.2f}, {split}: {scores(probability > best, truth)}'
        )
    return lines


def picture(sample: Any, probability: np.ndarray, file: Path, title: str) -> None:
    """Both dates, truth, and what was predicted: hits white, misses red, extra blue."""
    truth, found = sample['mask'].numpy() == 1, probability > 0.5
    rgb = sample['image'][:, [2, 1, 0]].numpy()
    low, high = (np.percentile(rgb, q, axis=(0, 2, 3))[:, None, None] for q in (1, 99))
    panels = [
        ((date - low) / (high - low)).clip(0, 1).transpose(1, 2, 0) for date in rgb
    ]
    errors = np.stack([truth, truth & found, found], -1).astype(float)
    panels += [truth, probability, errors]
    figure, axes = plt.subplots(
        5, 1, figsize=(9, 5 * 9 * truth.shape[0] / truth.shape[1] + 2)
    )
    names = (
        'first date',
        'second date',
        'truth',
        'probability',
        'hits white, missed red, extra blue',
    )
    for axis, panel, name in zip(axes, panels, names):
        axis.imshow(panel, cmap='gray', vmin=0, vmax=1, interpolation='none')
        axis.set_title(f'{title}: {name}')
        axis.axis('off')
    figure.tight_layout()
    figure.savefig(file, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('folder')
    parser.add_argument(
        '--model', default='unet', help="a decoder, 'bit', or 'baseline'"
    )
    parser.add_argument('--fusion', default='difference')
    parser.add_argument('--backbone', default='resnet18')
    parser.add_argument('--weights')
    parser.add_argument('--epochs', type=int, default=20)
    parser.add_argument('--length', type=int, default=240)
    parser.add_argument('--size', type=int, default=128)
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--lr', type=float, default=1e-3)
    parser.add_argument('--pos-weight', type=float)
    parser.add_argument('--val', default='pisa')
    parser.add_argument('--test', default='rennes')
    parser.add_argument(
        '--skip-test', action='store_true', help='look at validation only'
    )
    parser.add_argument('--val-every', type=int, default=1, help='epochs')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', type=Path, default=Path('runs/change'))
    parser.add_argument('--threads', type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    seed_everything(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    data = ChangeDataModule(
        args.folder, patch_size=args.size, length=args.length, batch_size=args.batch,
        val_places=[args.val], test_places=[args.test], seed=args.seed,
    )  # fmt: skip
    if args.model == 'baseline':
        data.setup('fit')
        print(*baseline(data), sep='\n')
        return
    bands = len(ChangePairs(args.folder).bands)
    task = ChangeDetection(
        args.model, args.backbone, args.weights, bands, loss='ce+dice', fusion=args.fusion,
        pos_weight=args.pos_weight, lr=args.lr, schedule='linear', warmup_epochs=1,
        mean=None if args.weights else [0.4] * bands, std=None if args.weights else [0.25] * bands,
    )  # fmt: skip
    name = f'{args.model}_{args.fusion}_seed{args.seed}'
    file = args.out / f'{name}.jsonl'
    file.unlink(missing_ok=True)
    trainer = Trainer(
        accelerator='cpu', devices=1, max_epochs=args.epochs, logger=False, callbacks=[Say(file)],
        enable_checkpointing=False, enable_progress_bar=False, num_sanity_val_steps=0,
        enable_model_summary=False, check_val_every_n_epoch=args.val_every,
    )  # fmt: skip
    trainer.fit(task, data)
    trainer.save_checkpoint(args.out / f'{name}.ckpt', weights_only=True)
    if args.skip_test:
        return
    found = trainer.test(task, data, verbose=False)[0]
    print(
        'threshold 0.50, test:',
        {name: round(100 * found[f'test_Overall{name}'], 2) for name in NAMES},
    )
    print(*chosen_threshold(task, data), sep='\n', flush=True)
    picture(*predict(task, data), args.out / f'{name}.png', f'{args.model} {args.test}')


if __name__ == '__main__':
    main()
