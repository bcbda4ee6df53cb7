# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Whether training learns as well from chips that share blocks of a file.

Trains a small CMID twice or more, alike but for ``chips_per_region`` and the seed, one process and one thread:

    python benchmarks/neighbour_chips.py <scenes> <out.json> --per-region 1 8 --seeds 0 1 --steps 300

``key_rank`` counts keys of the queue, in which chips of one region lie together; ``fresh`` does not: it is
the fraction of the other images of the same batch whose keys beat the true one. After training both are
measured once more on chips drawn each by itself, the same for all runs of a seed: ``held`` is that fraction
among all of them.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from torch import Tensor

from cmid_geo.datamodules import SceneDataModule
from cmid_geo.tasks import CMID
from cmid_geo.tasks.pretraining import Comparison

BATCH, CHIP, VIEW, QUEUE, HELD = 32, 96, 64, 2048, 512
WATCHED = (
    'train_reconstruction', 'train_global', 'train_local', 'key_rank', 'fresh', 'embedding_std',
    'embedding_cosine', 'assignment_entropy', 'teacher_entropy',
)  # fmt: skip


def beaten(query: Tensor, key: Tensor) -> Tensor:
    """Fraction of other images' keys that are nearer to a query than its own: 0 is best, 0.5 chance."""
    similarity = query.float() @ key.float().mT
    better = similarity > similarity.diagonal()[:, None]
    return better.sum() / (len(query) * (len(query) - 1))


class Watched(CMID):
    """CMID that also tells its rank among the keys of the batch."""

    def diagnose(self, compared: Comparison) -> dict[str, Tensor]:
        """Add what does not depend on the queue."""
        fresh = beaten(compared.embedding, compared.keys[1])
        return super().diagnose(compared) | {'fresh': fresh}


class Curves(Callback):
    """Keeps what each step logs, and how varied each batch is."""

    def __init__(self, starts: list[Any]) -> None:
        self.starts = starts
        self.steps: list[dict[str, float]] = []
        self.variety: list[tuple[int, int]] = []

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note a step."""
        found = trainer.callback_metrics
        self.steps.append({name: found[name].item() for name in WATCHED})
        scenes = batch['scene'].flatten().tolist()
        self.variety.append((len(set(scenes)), len({self.starts[i] for i in scenes})))


@torch.no_grad()
def held_out(task: CMID, data: SceneDataModule) -> float:
    """Rank on the chips of validation, each drawn by itself, in views that are the same for a seed."""
    torch.manual_seed(0)
    queries, keys = [], []
    for batch in data.val_dataloader():
        image = data.on_after_batch_transfer(batch, 0)
        first, second = task.augmentations(image['image'], image['valid'])
        queries.append(task.see(first).embedding)
        keys.append(task.teacher(second.image).embedding)
    return beaten(torch.cat(queries), torch.cat(keys)).item()


def one(
    scenes: str, folder: Path, per_region: int, seed: int, steps: int
) -> dict[str, Any]:
    """Train once."""
    seed_everything(seed)
    data = SceneDataModule(
        scenes, CHIP, steps * BATCH, BATCH, val_length=HELD, chips_per_region=per_region,
        zero_is_nodata=True, seed=seed,
    )  # fmt: skip
    data.setup('fit')
    task = Watched(
        'resnet18', in_channels=len(data.bands or ()), size=VIEW, queue_size=QUEUE, hidden_dim=512,
        output_dim=128, num_prototypes=256, momentum=0.99, teacher_temp=0.04, lr=4e-3,
        warmup_steps=steps // 10, teacher_temp_steps=0,
    )  # fmt: skip
    task = task.to(memory_format=torch.channels_last)
    curves = Curves([scene.start for scene in data.dataset.scenes])
    trainer = Trainer(
        accelerator='cpu', devices=1, precision='bf16-mixed', max_epochs=1, max_steps=steps,
        callbacks=[curves], logger=False, enable_checkpointing=False, log_every_n_steps=1,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
        default_root_dir=folder,
    )  # fmt: skip
    begin = time.perf_counter()
    trainer.fit(task, data)
    seconds = time.perf_counter() - begin
    return {
        'per_region': per_region, 'seed': seed, 'steps': curves.steps, 'seconds': seconds,
        'held': held_out(task, data),
        'least scenes and dates of a batch': [min(each) for each in zip(*curves.variety)],
    }  # fmt: skip


def tell(runs: list[dict[str, Any]], parts: int = 6) -> None:
    """Print the means of equal parts of each run."""
    for run in runs:
        size = len(run['steps']) // parts
        print(
            f'per region {run["per_region"]}, seed {run["seed"]}: {run["seconds"]:.0f} s, held '
            f'{run["held"]:.4f}, scenes and dates {run["least scenes and dates of a batch"]}'
        )
        for name in WATCHED:
            means = [
                statistics.mean(s[name] for s in run['steps'][i * size :][:size])
                for i in range(parts)
            ]
            print(f'  {name:22}', *(f'{mean:9.4f}' for mean in means), flush=True)


def main() -> None:
    """Train, and write down all curves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('scenes')
    parser.add_argument('out', type=Path)
    parser.add_argument('--per-region', type=int, nargs='+', default=[1, 8])
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1])
    parser.add_argument('--steps', type=int, default=300)
    args = parser.parse_args()
    torch.set_num_threads(1)
    runs = json.loads(args.out.read_text()) if args.out.exists() else []
    for seed in args.seeds:
        for per_region in args.per_region:
            runs.append(one(args.scenes, args.out.parent, per_region, seed, args.steps))
            args.out.write_text(json.dumps(runs))
            tell(runs[-1:])


if __name__ == '__main__':
    main()
