# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Pretrain a small backbone on AID's training images, and keep it at some steps.

    python benchmarks/aid_pretrain.py aid/train --out runs/aid --threads 1

The labels are not used. Checkpoints are written at the start, after one epoch, at half
and at the end of the run; ``benchmarks/aid_probe.py`` compares what they know.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from student_or_teacher import Images
from torch.utils.data import DataLoader

from cmid_geo import CMID


class Keep(Callback):
    """Writes checkpoints at some steps, and says how the run is doing."""

    def __init__(self, steps: list[int], out: Path) -> None:
        self.steps, self.out, self.start = steps, out, time.time()

    def keep(self, trainer: Any, step: int) -> None:
        trainer.save_checkpoint(self.out / f'step_{step:05d}.ckpt')

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.keep(trainer, 0)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        step = trainer.global_step
        if step in self.steps:
            self.keep(trainer, step)
        if step % 50 == 0:
            logged = {
                name: round(float(value), 3)
                for name, value in trainer.callback_metrics.items()
                if name.startswith('train_') or name in ('key_rank', 'embedding_std')
            }
            minutes = (time.time() - self.start) / 60
            print(f'{step} steps, {minutes:.1f} minutes: {logged}', flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('folder')
    parser.add_argument('--out', type=Path, default=Path('runs/aid'))
    parser.add_argument('--model', default='resnet18')
    parser.add_argument('--epochs', type=int, default=5)
    parser.add_argument('--batch', type=int, default=32)
    parser.add_argument('--size', type=int, default=96)
    parser.add_argument('--threads', type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    seed_everything(0)
    data = Images(args.folder)
    loader = DataLoader(data, batch_size=args.batch, shuffle=True, drop_last=True)
    epoch, total = len(loader), args.epochs * len(loader)
    # The paper's, made smaller with the network, the batch and the length of the run
    task = CMID(
        args.model, size=args.size, queue_size=2048, hidden_dim=512, output_dim=128,
        num_prototypes=512, momentum=0.99, lr=4e-3, teacher_temp=0.04,
        warmup_steps=total // 10, teacher_temp_steps=0,
    )  # fmt: skip
    trainer = Trainer(
        accelerator='cpu', devices=1, max_steps=total, logger=False,
        enable_checkpointing=False, enable_progress_bar=False,
        callbacks=[Keep([epoch, total // 2, total], args.out)],
    )  # fmt: skip
    trainer.fit(task, loader)


if __name__ == '__main__':
    main()
