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
import torch.nn.functional as F
from lightning.pytorch import seed_everything
from student_or_teacher import Images, accuracy
from torch import Tensor, nn

from cmid_geo.tasks import Classification

DECAYS = (1e-4, 1e-3, 1e-2, 1e-1)


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


def fit(
    known: Tensor, labels: Tensor, decay: float, iterations: int = 200
) -> nn.Linear:
    """Logistic regression with a penalty on the squared weights."""
    linear = nn.Linear(known.shape[1], int(labels.max()) + 1)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    optimizer = torch.optim.LBFGS(
        linear.parameters(), max_iter=iterations, line_search_fn='strong_wolfe'
    )

    def closure() -> Any:
        optimizer.zero_grad()
        loss = F.cross_entropy(linear(known), labels)
        loss = loss + decay * linear.weight.square().sum() / 2
        loss.backward()
        return loss

    optimizer.step(closure)
    return linear


def right(linear: nn.Linear, asked: Tensor, truth: Tensor) -> float:
    """Share of the asked whose class is found."""
    return float((linear(asked).argmax(1) == truth).float().mean())


def probe(known: Tensor, labels: Tensor, asked: Tensor, truth: Tensor) -> str:
    """Linear probe and neighbours of one kind of features."""
    mean, std = known.mean(0), known.std(0).clamp_min(1e-6)
    known, asked = (known - mean) / std, (asked - mean) / std
    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(0))
    held, rest = order[: len(order) // 5], order[len(order) // 5 :]
    scores = {
        decay: right(fit(known[rest], labels[rest], decay), known[held], labels[held])
        for decay in DECAYS
    }
    best = max(scores, key=lambda decay: scores[decay])
    linear = right(fit(known, labels, best), asked, truth)
    neighbours = accuracy(known, labels, asked, truth)
    return (
        f'linear probe {100 * linear:.2f} %, kNN-5 {100 * neighbours:.2f} % '
        f'(decay {best:g}, {100 * scores[best]:.1f} % on held-out training images)'
    )


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
