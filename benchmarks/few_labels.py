# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""What users do: pretrain on their own unlabelled tiles, then learn from few labels.

    python benchmarks/few_labels.py pretrain segmentation --epochs 30 --out runs/few
    python benchmarks/few_labels.py finetune segmentation --weights runs/few/backbone.ckpt --out runs/few
    python benchmarks/few_labels.py finetune segmentation --out runs/few
    python benchmarks/few_labels.py finetune segmentation --weights runs/quality/cmid-0.pth --frozen --fractions 1 --out runs/few

Dubai's six tiles are pretrained on without their masks. Then UPerNet learns from a part of the labels
of five of them and is judged on the sixth, the last or `--tile`, after the last epoch; nothing is
chosen by it. The third line is the same network from random weights; the last trains the decoder
alone on a backbone of quality.py.
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


def exported(path: str, out: Path) -> str:
    """A backbone of quality.py as a file that tasks load; other files as they are."""
    held: Any = torch.load(path, weights_only=True) if path.endswith('.pth') else {}
    if 'options' not in held:
        return path
    mean, std = (
        torch.as_tensor(held[name]).flatten().expand(3).tolist()
        for name in ('mean', 'std')
    )
    values = {'low': [0.0] * 3, 'high': [255.0] * 3, 'mean': mean, 'std': std}
    known = {
        'model': held['model'],
        'in_channels': 3,
        'bands': ['R', 'G', 'B'],
        **values,
    }
    state = {f'model.{name}': value for name, value in held['state_dict'].items()}
    file = out / f'{Path(path).stem}.ckpt'
    torch.save({'hyper_parameters': known, 'state_dict': state}, file)
    return str(file)


def finetune(args: argparse.Namespace, tiles: list[Path]) -> None:
    last = tiles[args.tile - 1]
    known = [tile for tile in tiles if tile != last]
    weights = exported(args.weights, args.out) if args.weights else None
    for fraction in args.fractions:
        for seed in args.seeds:
            name = Path(weights).stem if weights else 'random'
            kind = 'frozen_' if args.frozen else ''
            file = args.out / f'{kind}{name}_{fraction:g}_{seed}_tile_{args.tile}.json'
            if file.exists():
                continue
            seed_everything(seed, verbose=False)
            data = SegmentationDataModule(
                [str(t / 'image.tif') for t in known], [str(t / 'mask.tif') for t in known],
                str(last / 'image.tif'), str(last / 'mask.tif'),
                patch_size=args.patch, length=args.length, batch_size=8, label_fraction=fraction, seed=seed,
            )  # fmt: skip
            # Random weights get normalized images too, as weights from a file do
            data.setup('fit')
            found: Any = data.value_range
            values = {} if weights else {'mean': found.mean, 'std': found.std}
            task = SemanticSegmentation(
                'upernet', 'resnet18', weights, num_classes=5, ignore_index=255, lr=5e-4,
                warmup_steps=20, decoder_options={'decoder_channels': args.channels},
                freeze_backbone=args.frozen, **values,
            )  # fmt: skip
            run: Any = trainer(args.out, args.epochs)
            # The tile that is held out is judged once, at the end
            run.check_val_every_n_epoch = args.epochs
            started = time.process_time()
            run.fit(task, data)
            score = float(run.callback_metrics['val_AverageJaccardIndex'])
            seconds = time.process_time() - started
            file.write_text(json.dumps({'mIoU': score, 'seconds': seconds}))
            print(f'{kind}{name}, {fraction:g} of the labels, seed {seed}: mIoU {100 * score:.1f}', flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('what', choices=['pretrain', 'finetune'])
    parser.add_argument('folder', type=Path)
    parser.add_argument('--weights')
    parser.add_argument('--frozen', action='store_true')
    parser.add_argument('--epochs', type=int, default=10)
    parser.add_argument('--length', type=int, default=320, help='chips an epoch')
    parser.add_argument('--fractions', type=float, nargs='+', default=[0.01, 0.1])
    parser.add_argument('--tile', type=int, default=6, help='to judge on')
    parser.add_argument('--patch', type=int, default=192, help='pixels of a chip')
    parser.add_argument('--channels', type=int, default=128, help='of the decoder')
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
