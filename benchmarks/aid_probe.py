# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""What backbones know of AID's 30 classes: linear probe and nearest neighbours.

    python benchmarks/aid_probe.py aid --checkpoints runs/aid/*.ckpt

Each backbone is loaded into a Classification task with a frozen backbone; its pooled features of
all images are computed once. The linear classifier is a logistic regression on standardised
features whose decay is chosen on a fifth of the training images; neighbours are five by cosine.
Nothing is chosen by the test images. Image statistics (mean, standard deviation and five
percentiles of each band) are probed alike.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import seed_everything
from student_or_teacher import Images
from torch import Tensor

from cmid_geo.metrics.probes import linear_probe, nearest_neighbours
from cmid_geo.tasks import Classification


@torch.no_grad()
def features(task: Any, images: Tensor) -> Tensor:
    """Pooled features, as the task's classifier gets them."""
    task.eval()
    out = []
    for part in images.split(64):
        maps = task.model.forward_features(task.normalize(part.float() / 255))
        out.append(task.model.forward_head(maps, pre_logits=True))
    return torch.cat(out)


def statistics(images: Tensor) -> Tensor:
    """Mean, standard deviation and percentiles of each band."""
    out = []
    for part in images.split(256):
        pixels = part.float().flatten(2) / 255
        levels = torch.quantile(
            pixels, torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9]), dim=2
        )
        out.append(torch.cat([pixels.mean(2), pixels.std(2), *levels], 1))
    return torch.cat(out)


def probe(known: Tensor, labels: Tensor, asked: Tensor, truth: Tensor) -> str:
    """Linear probe and neighbours of one kind of features."""
    given = known, labels, asked
    found = linear_probe(*given), nearest_neighbours(*given, standardized=True)
    linear, neighbours = (100 * (each == truth).float().mean() for each in found)
    return f'linear probe {linear:.2f} %, kNN-5 {neighbours:.2f} %'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('folder', type=Path)
    parser.add_argument('--model', default='resnet18')
    parser.add_argument('--checkpoints', nargs='*', type=Path, default=[])
    parser.add_argument('--threads', type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train, test = Images(str(args.folder / 'train')), Images(str(args.folder / 'test'))
    print(f'{len(train)} training images, {len(test)} test images', flush=True)

    def report(name: str, make: Any) -> None:
        start = time.time()
        said = probe(make(train.images), train.labels, make(test.images), test.labels)
        print(f'{name}: {said}, {time.time() - start:.0f} s', flush=True)

    report('image statistics', statistics)
    for path in args.checkpoints:
        seed_everything(0, verbose=False)
        weights = None if path.name == 'random' else str(path)
        task = Classification(args.model, weights, num_classes=30, freeze_backbone=True)
        report(path.stem, lambda images, task=task: features(task, images))


if __name__ == '__main__':
    main()
