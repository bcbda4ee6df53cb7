# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Oriented R-CNN learns drawn ships: a handful by heart, or many to find others.

Images of 192 px with rotated ships on water, among clutter that is no ship; ResNet-18 from random
weights. Tells mAP by the IoU of rotated boxes on the first 16 images that were learned, and on
fresh ones, and draws what was found.

    python benchmarks/oriented_ships.py --steps 400 --out ships.png
    python benchmarks/oriented_ships.py --images 300 --augment --steps 900 --out many.png
"""

import argparse
import math
import time
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use('Agg')

import matplotlib.pyplot as plt
import numpy as np
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from matplotlib.patches import Polygon
from PIL import Image, ImageDraw, ImageFilter
from torch.utils.data import DataLoader, Dataset

from cmid_geo.metrics.rotated_mean_average_precision import RotatedMAP
from cmid_geo.ops.rotated_boxes import corners
from cmid_geo.tasks.oriented import OrientedDetection
from cmid_geo.transforms.oriented import RandomTurns

#: Pixels drawn for each pixel of the image, so that edges are smooth.
FINE = 4


def water(rng: np.random.Generator, size: int) -> Image.Image:
    """Waves of several lengths and a tint."""
    y, x = np.mgrid[:size, :size]
    field = rng.normal(0, 4, (size, size))
    for _ in range(5):
        length, angle = rng.uniform(6, 60), rng.uniform(0, 2 * math.pi)
        wave = (x * math.cos(angle) + y * math.sin(angle)) / length * 2 * math.pi
        field += rng.uniform(1, 5) * np.sin(wave + rng.uniform(0, 6))
    tint = np.array([30, 60, 80]) + rng.uniform(-15, 15, 3)
    return Image.fromarray((tint + field[..., None]).clip(0, 255).astype(np.uint8))


def place(points: list[tuple[float, float]], x: float, y: float, angle: float) -> list:
    """Points of an object on the fine canvas."""
    cos, sin = math.cos(angle), math.sin(angle)
    return [
        ((x + u * cos - v * sin) * FINE, (y + u * sin + v * cos) * FINE)
        for u, v in points
    ]


def draw_ship(canvas: Any, rng: np.random.Generator, box: tuple) -> None:
    """A hull with a pointed bow, a deck and a bridge; it fills its box."""
    x, y, w, h, angle = box
    shade = int(rng.uniform(110, 230))
    hull = [
        (-w / 2, -h / 2),
        (w * 0.2, -h / 2),
        (w / 2, 0),
        (w * 0.2, h / 2),
        (-w / 2, h / 2),
    ]
    deck = [
        (-w * 0.42, -h * 0.3),
        (w * 0.15, -h * 0.3),
        (w * 0.32, 0),
        (w * 0.15, h * 0.3),
        (-w * 0.42, h * 0.3),
    ]
    bridge = [
        (-w * 0.35, -h * 0.35),
        (-w * 0.2, -h * 0.35),
        (-w * 0.2, h * 0.35),
        (-w * 0.35, h * 0.35),
    ]
    canvas.polygon(place(hull, x, y, angle), fill=(shade, shade, shade - 10))
    tint = tuple(int(c) for c in rng.uniform(60, 200, 3))
    canvas.polygon(place(deck, x, y, angle), fill=tint)
    canvas.polygon(place(bridge, x, y, angle), fill=(245, 245, 240))


def draw_clutter(canvas: Any, rng: np.random.Generator, size: int) -> None:
    """Foam, a buoy or a jetty: bright, but no ship."""
    x, y = rng.uniform(0, size, 2)
    kind = rng.integers(3)
    if kind == 0:
        r = rng.uniform(1, 3)
        canvas.ellipse(
            [(x - r) * FINE, (y - r) * FINE, (x + r) * FINE, (y + r) * FINE],
            fill=(230, 120, 40),
        )
    elif kind == 1:
        for _ in range(12):
            a, b = rng.normal(0, 6, 2)
            canvas.ellipse(
                [
                    (x + a - 1) * FINE,
                    (y + b - 1) * FINE,
                    (x + a + 1) * FINE,
                    (y + b + 1) * FINE,
                ],
                fill=(190, 205, 210),
            )
    else:
        w, h, angle = rng.uniform(50, 90), rng.uniform(2, 3), rng.uniform(0, math.pi)
        bar = [(-w / 2, -h / 2), (w / 2, -h / 2), (w / 2, h / 2), (-w / 2, h / 2)]
        canvas.polygon(place(bar, x, y, angle), fill=(120, 105, 85))


def harbour(seed: int, size: int = 192) -> dict[str, torch.Tensor]:
    """An image in [0, 1] with its ships (cx, cy, w, h, angle)."""
    rng = np.random.default_rng(seed)
    fine = water(rng, size).resize((size * FINE, size * FINE), Image.Resampling.BICUBIC)
    canvas, boxes = ImageDraw.Draw(fine), []
    for _ in range(rng.integers(2, 5)):
        draw_clutter(canvas, rng, size)
    wanted = rng.integers(3, 8)
    for _ in range(200):
        w = math.exp(rng.uniform(math.log(18), math.log(70)))
        box = (
            *rng.uniform(10, size - 10, 2),
            w,
            w * rng.uniform(0.22, 0.4),
            rng.uniform(-math.pi, math.pi),
        )
        # Ships lie close to each other but not on each other
        if all(
            math.hypot(box[0] - o[0], box[1] - o[1]) > (w + o[2]) * 0.42 for o in boxes
        ):
            boxes.append(box)
            draw_ship(canvas, rng, box)
        if len(boxes) == wanted:
            break
    image = fine.resize((size, size), Image.Resampling.BOX).filter(
        ImageFilter.GaussianBlur(0.5)
    )
    noise = rng.normal(0, 3, (size, size, 3))
    pixels = (np.asarray(image) + noise).clip(0, 255).astype(np.float32) / 255
    return {
        'image': torch.from_numpy(pixels.transpose(2, 0, 1).copy()),
        'bbox': torch.tensor(boxes, dtype=torch.float32).reshape(-1, 5),
        'label': torch.ones(len(boxes), dtype=torch.long),
    }  # fmt: skip


class Harbours(Dataset):
    """Images of seeds, drawn once, and gone through several times an epoch."""

    def __init__(self, seeds: range, repeat: int = 1) -> None:
        self.samples = [harbour(seed) for seed in seeds]
        self.repeat = repeat

    def __len__(self) -> int:
        return len(self.samples) * self.repeat

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.samples[index % len(self.samples)]


def collate(samples: list[dict[str, torch.Tensor]]) -> dict[str, Any]:
    return {
        'image': torch.stack([each['image'] for each in samples]),
        'bbox': [each['bbox'] for each in samples],
        'label': [each['label'] for each in samples],
    }


def detect(task: OrientedDetection, samples: list[dict]) -> list[dict]:
    task.eval()
    with torch.no_grad():
        return [task(each['image'][None])[0] for each in samples]


def measure(found: list[dict], samples: list[dict]) -> dict[str, float]:
    metric = RotatedMAP(2)
    metric.update(found, [{'boxes': s['bbox'], 'labels': s['label']} for s in samples])
    found = metric.compute()
    return {name: round(found[name].item(), 4) for name in ('map_50', 'map_75', 'map')}


def say(name: str, found: list[dict], samples: list[dict]) -> None:
    ships = sum(len(each['bbox']) for each in samples)
    sure = sum(int((each['scores'] >= 0.3).sum()) for each in found)
    print(
        f'{name}, {ships} ships, {sure} detections of score 0.3 or more:',
        measure(found, samples),
    )


class Say(Callback):
    """Prints losses, and now and then the measures."""

    def __init__(self, every: int, samples: list[dict]) -> None:
        self.every, self.samples, self.start = every, samples, time.time()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
        step = trainer.global_step
        if step % 25 == 0:
            losses = {
                k.removeprefix('train_'): round(v.item(), 4)
                for k, v in trainer.callback_metrics.items()
            }
            print(
                f'{time.time() - self.start:5.0f} s, step {step}: {losses}', flush=True
            )
        if step % self.every == 0:
            print(
                '    learned images:',
                measure(detect(pl_module, self.samples), self.samples),
                flush=True,
            )
            pl_module.train()


def picture(path: Path, found: list[dict], samples: list[dict], title: str) -> None:
    """Truth in white, what was found in red with its score."""
    cols = 4
    rows = -(-len(samples) // cols)
    figure, axes = plt.subplots(
        rows, cols, figsize=(4 * cols, 4 * rows + 0.4), squeeze=False
    )
    for axis in axes.flat:
        axis.axis('off')
    for axis, each, sample in zip(axes.flat, found, samples):
        axis.imshow(sample['image'].permute(1, 2, 0), extent=(0, 192, 192, 0))
        for box in corners(sample['bbox']):
            axis.add_patch(Polygon(box.numpy(), fill=False, color='white', lw=2.5))
        for box, score in zip(corners(each['boxes']), each['scores']):
            if score >= 0.3:
                axis.add_patch(Polygon(box.numpy(), fill=False, color='red', lw=1.2))
                axis.text(
                    *box[0].tolist(),
                    f'{score:.2f}',
                    color='yellow',
                    fontsize=7,
                    clip_on=True,
                )
        axis.set_xlim(0, 192)
        axis.set_ylim(192, 0)
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=70)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--steps', type=int, default=400)
    parser.add_argument('--images', type=int, default=8)
    parser.add_argument('--fresh', type=int, default=16)
    parser.add_argument('--batch', type=int, default=2)
    parser.add_argument('--lr', type=float, default=3e-4)
    parser.add_argument('--backbone', default='resnet18')
    parser.add_argument(
        '--augment', action='store_true', help='flips and quarter turns'
    )
    parser.add_argument('--every', type=int, default=100)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', type=Path, default=Path('oriented_ships.png'))
    args = parser.parse_args()
    torch.set_num_threads(1)
    seed_everything(args.seed)
    learned = Harbours(range(args.images), repeat=max(1, 64 // args.images))
    fresh = [harbour(seed) for seed in range(10_000, 10_000 + args.fresh)]
    task = OrientedDetection(
        backbone=args.backbone, num_classes=2, lr=args.lr, schedule='step', warmup_steps=20,
        mean=0.3, std=0.2, anchor_sizes=(16, 32, 64, 128, 256), proposals=300,
        fpn_channels=64, head_channels=256, detections_per_img=100,
    )  # fmt: skip
    turns = RandomTurns()
    loader = DataLoader(
        learned, args.batch, shuffle=True, drop_last=True,
        collate_fn=lambda samples: turns(collate(samples)) if args.augment else collate(samples),
    )  # fmt: skip
    samples = learned.samples[:16]
    start = time.time()
    trainer = Trainer(
        max_steps=args.steps, accelerator='cpu', logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=35,
        callbacks=[Say(args.every, samples)],
    )  # fmt: skip
    trainer.fit(task, loader)
    print(f'{args.steps} steps of {args.batch} images in {time.time() - start:.0f} s')
    found, others = detect(task, samples), detect(task, fresh)
    say(f'the first {len(samples)} of {args.images} learned images', found, samples)
    say(f'{len(fresh)} fresh images', others, fresh)
    picture(
        args.out,
        found,
        samples,
        'learned images: truth white, found red (score 0.3 or more)',
    )
    other = args.out.with_name(f'{args.out.stem}_fresh{args.out.suffix}')
    picture(
        other,
        others[:8],
        fresh[:8],
        'fresh images: truth white, found red (score 0.3 or more)',
    )


if __name__ == '__main__':
    main()
