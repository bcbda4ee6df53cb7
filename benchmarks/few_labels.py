# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""What users do: pretrain on their own unlabelled tiles, then learn from few labels.

    python benchmarks/few_labels.py pretrain segmentation --epochs 30 --out runs/few
    python benchmarks/few_labels.py finetune segmentation --weights runs/few/backbone.ckpt --out runs/few
    python benchmarks/few_labels.py finetune segmentation --out runs/few

Dubai's six tiles are pretrained on without their masks. Then UPerNet learns from a part of the labels
of five of them and is judged on the sixth, which is the last, after the last epoch; nothing is
chosen by it. The third line is the same network from random weights.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything

from cmid_geo import CMID, SceneDataModule, SegmentationDataModule, SemanticSegmentation
from cmid_geo.ops.host import fast_precision


def trainer(out: Path, epochs: int) -> Trainer:
    return Trainer(
        accelerator='cpu', devices=1, max_epochs=epochs, logger=False, default_root_dir=out,
        precision=fast_precision(on_cpu=True), enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip


def pretrain(args: argparse.Namespace, tiles: list[Path]) -> None:
    seed_everything(args.seed)
    scenes = [str(tile / 'image.tif') for tile in tiles]
    data = SceneDataModule(
        scenes, patch_size=96, length=args.length, batch_size=64, seed=args.seed
    )
    task = CMID.small_data(warmup_epochs=args.epochs / 20, teacher_temp_epochs=args.epochs / 4)  # fmt: skip
    started = time.process_time()
    run = trainer(args.out, args.epochs)
    run.fit(task, data)
    seconds = time.process_time() - started
    run.save_checkpoint(args.out / 'checkpoint.ckpt')
    print(f'{run.global_step} steps, {seconds:.0f} s of the processor')


def finetune(args: argparse.Namespace, tiles: list[Path]) -> None:
    *known, last = tiles
    for fraction in args.fractions:
        for seed in args.seeds:
            name = Path(args.weights).stem if args.weights else 'random'
            file = args.out / f'{name}_{fraction:g}_{seed}.json'
            if file.exists():
                continue
            seed_everything(seed, verbose=False)
            data = SegmentationDataModule(
                [str(t / 'image.tif') for t in known], [str(t / 'mask.tif') for t in known],
                str(last / 'image.tif'), str(last / 'mask.tif'),
                patch_size=192, length=args.length, batch_size=8, label_fraction=fraction, seed=seed,
            )  # fmt: skip
            task = SemanticSegmentation(
                'upernet', 'resnet18', args.weights, num_classes=5, ignore_index=255, lr=5e-4,
                warmup_steps=20, decoder_options={'decoder_channels': 128},
            )  # fmt: skip
            run: Any = trainer(args.out, args.epochs)
            # The tile that is held out is judged once, at the end
            run.check_val_every_n_epoch = args.epochs
            run.fit(task, data)
            found = float(run.callback_metrics['val_AverageJaccardIndex'])
            file.write_text(json.dumps({'mIoU': found}))
            print(f'{name}, {fraction:g} of the labels, seed {seed}: mIoU {100 * found:.1f}', flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('what', choices=['pretrain', 'finetune'])
    parser.add_argument('folder', type=Path)
    parser.add_argument('--weights')
    parser.add_argument('--epochs', type=int, default=10)
    parser.add_argument('--length', type=int, default=320, help='chips an epoch')
    parser.add_argument('--fractions', type=float, nargs='+', default=[0.01, 0.1])
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--out', type=Path, default=Path('runs/few'))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    tiles = sorted(args.folder.glob('tile_*'))
    {'pretrain': pretrain, 'finetune': finetune}[args.what](args, tiles)


if __name__ == '__main__':
    main()
