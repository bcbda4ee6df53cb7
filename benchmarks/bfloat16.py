# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Loss curves and speed of pretraining on a CPU, in float32 and in bfloat16.

python benchmarks/bfloat16.py SCENES [--steps 200] [--size 64] [--cell 16] [--batch 32]
"""

import argparse
import statistics
import tempfile
import time
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything

from cmid_geo.datamodules import SceneDataModule
from cmid_geo.ops.host import has_bfloat16
from cmid_geo.tasks import CMID
from cmid_geo.tasks.pretraining import LOSSES


class Curves(Callback):
    """Losses and CPU seconds of each step: on a shared machine the clock tells of others, too."""

    def __init__(self) -> None:
        """Initialize a new Curves instance."""
        self.losses: list[list[float]] = []
        self.seconds: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        """Start the clock."""
        self.began = time.process_time()

    def on_train_batch_end(
        self, trainer: Any, task: Any, outputs: Any, *_: Any
    ) -> None:
        """Stop it."""
        self.seconds.append(time.process_time() - self.began)
        self.losses.append(outputs['losses'].tolist())


def train(given: argparse.Namespace, precision: Any, seed: int) -> Curves:
    """Train from one seed.

    Args:
        given: Of the command line.
        precision: Lightning's.
        seed: Of weights, chips and views.

    Returns:
        What happened at each step.
    """
    seed_everything(seed)
    data = SceneDataModule(
        given.scenes, patch_size=given.size, length=given.steps * given.batch,
        batch_size=given.batch, zero_is_nodata=True, seed=seed,
    )  # fmt: skip
    data.setup('fit')
    task = CMID(
        'resnet18', in_channels=len(data.bands or ()), size=given.size, cell=given.cell,
        queue_size=1024, hidden_dim=512, output_dim=128, num_prototypes=256, momentum=0.99,
        teacher_temp=0.04, lr=4e-3, warmup_steps=given.steps // 10, teacher_temp_steps=0,
    )  # fmt: skip
    curves = Curves()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator='cpu', devices=1, max_steps=given.steps, precision=precision, logger=False,
            callbacks=[curves], enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=folder,
        )  # fmt: skip
        trainer.fit(task, data)
    return curves


def main() -> None:
    """Train in both precisions and print a line of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('scenes')
    for name, default in (('steps', 200), ('size', 64), ('cell', 16), ('batch', 32)):
        parser.add_argument(f'--{name}', type=int, default=default)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0])
    parser.add_argument('--precisions', nargs='+', default=['32-true', 'bf16-mixed'])
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(f'{given}, bfloat16 in the processor: {has_bfloat16()}', flush=True)
    for seed in given.seeds:
        for precision in given.precisions:
            curves = train(given, precision, seed)
            last = curves.losses[-(given.steps // 4) :]
            means = [statistics.mean(column) for column in zip(*last)]
            rate = given.batch / statistics.median(curves.seconds)
            told = ', '.join(f'{n} {m:.4f}' for n, m in zip(LOSSES, means))
            print(
                f'seed {seed}, {precision}: {told}; {rate:.1f} chips a CPU second',
                flush=True,
            )


if __name__ == '__main__':
    main()
