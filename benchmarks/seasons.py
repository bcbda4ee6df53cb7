# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Whether two dates of a place as the two views teach more than two crops of one date.

    python benchmarks/seasons.py scenes/naip --out runs/seasons --seeds 0 1 2

Trains the small preset twice for each seed, alike but for ``dates``, then compares places between
the first and the last date: of the other places of the last date, how many have a vector nearer to
that of a place of the first date than the same place has? 50 % is chance. Random weights and the
mean and standard deviation of the bands are compared alike.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor
from torch.nn.functional import avg_pool2d, normalize

from cmid_geo import CMID, SceneDataModule
from cmid_geo.ops.host import fast_precision
from cmid_geo.predict.cells import colours_of
from cmid_geo.predict.pca import embed_scene

#: Images a step, and cells of 32 pixels along a window whose vectors are averaged.
BATCH, WINDOW = 16, 5


def pretrain(
    folder: str, dates: int, steps: int, seed: int, out: Path
) -> tuple[CMID, SceneDataModule]:
    """The small preset, trained on chips of one date or of two."""
    seed_everything(seed, verbose=False)
    chips = SceneDataModule(
        folder, dates=dates, patch_size=96, length=steps * BATCH, batch_size=BATCH,
        chips_per_region=1, zero_is_nodata=True, seed=seed,
    )  # fmt: skip
    task = CMID.small_data(
        in_channels=4, queue_size=128, hidden_dim=512, output_dim=128, num_prototypes=256,
        local_views=0, lr_batch_size=BATCH, warmup_steps=steps // 10, teacher_temp=0.04,
        teacher_temp_steps=0,
    )  # fmt: skip
    trainer = Trainer(
        max_steps=steps, accelerator='cpu', devices=1, precision=fast_precision(on_cpu=True),
        logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=0,
        default_root_dir=out / f'{dates}_{seed}',
    )  # fmt: skip
    trainer.fit(task, chips)
    return task.eval(), chips


def more_alike(first: Tensor, second: Tensor) -> float:
    """Fraction of the other places whose vectors are nearer than the same place's."""
    cells = min(first.shape[1], second.shape[1]), min(first.shape[2], second.shape[2])
    unit = []
    for each in (first, second):
        kept = each[:, : cells[0], : cells[1]]
        vectors = avg_pool2d(kept[None], WINDOW, 1)[0].flatten(1).T
        vectors = (vectors - vectors.mean(0)) / (vectors.std(0) + 1e-6)
        unit.append(normalize(vectors, dim=1))
    cosine = unit[0] @ unit[1].T
    return (cosine > cosine.diagonal()[:, None]).float().mean().item()


def measured(folder: str, steps: int, seed: int, out: Path) -> dict[str, Any]:
    """All kinds of vectors, of one seed."""
    found, times = {}, {}
    for dates in (2, 1):
        start = time.process_time()
        task, chips = pretrain(folder, dates, steps, seed, out)
        times[dates] = time.process_time() - start
        scenes: Any = chips.dataset
        last = len(scenes.scenes) - 1
        ends = [embed_scene(task, scenes, n, stride=32)[0] for n in (0, last)]
        found[f'{dates} dates' if dates > 1 else 'one date'] = more_alike(*ends)
    torch.manual_seed(seed)
    untrained = CMID.small_data(in_channels=4)
    untrained.learn_values(task.value_range)
    untrained.eval()
    ends = [embed_scene(untrained, scenes, n, stride=32)[0] for n in (0, last)]
    found['random weights'] = more_alike(*ends)
    found['bands'] = more_alike(*(colours_of(scenes, n) for n in (0, last)))
    return {'seed': seed, 'more alike': found, 'seconds': times}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('folder', help='dates of the same ground, with four bands')
    parser.add_argument('--steps', type=int, default=120)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--out', type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    results = []
    for seed in args.seeds:
        results.append(measured(args.folder, args.steps, seed, args.out))
        print(results[-1], flush=True)
    (args.out / 'seasons.json').write_text(json.dumps(results, indent=1))


if __name__ == '__main__':
    main()
