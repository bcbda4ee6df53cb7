# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Whose backbone is better to export: the student's or the teacher's?

    python benchmarks/student_or_teacher.py aid/train --model resnet18 --steps 1000
    python benchmarks/student_or_teacher.py aid/train --evaluate student_or_teacher.ckpt

Pretrains on a folder of images (one folder a class; the labels are not used), and at each
quarter of the run compares both backbones by kNN on their mean features: five neighbours
by cosine, features standardised. Three in ten images ask, the others answer. Choose the
default on training images only: the test images are for reporting. The second command compares
the ends of a run on twenty such splits, and with it the student whose batch norms are given
the statistics of whole images.
"""

import argparse
import copy
import time
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms.v2.functional import pil_to_tensor

from cmid_geo import CMID
from cmid_geo.metrics.probes import nearest_neighbours


class Images(Dataset):
    """Images in memory: 128x128 pixels, 48 kB each."""

    def __init__(self, folder: str) -> None:
        files = ImageFolder(folder)
        self.images = torch.stack([pil_to_tensor(image) for image, _ in files])
        self.labels = torch.tensor(files.targets)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {'image': self.images[index].float() / 255}


@torch.no_grad()
def features(backbone: Any, task: CMID, images: Tensor) -> Tensor:
    """Mean features of whole images; batch norms use the statistics they gathered."""
    training = backbone.training
    backbone.eval()
    mean, std = task.mean[:, None, None], task.std[:, None, None]
    out = [
        backbone((part.float() / 255 - mean) / std).mean((2, 3))
        for part in images.split(128)
    ]
    backbone.train(training)
    return torch.cat(out)


def accuracy(known: Tensor, labels: Tensor, asked: Tensor, truth: Tensor) -> float:
    """Share of the asked whose five nearest known images vote for the truth."""
    found = nearest_neighbours(known, labels, asked, standardized=True)
    return float((found == truth).float().mean())


class Compare(Callback):
    """Compares the backbones at the start and at each quarter."""

    def __init__(self, data: Images, steps: int) -> None:
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(1))
        split = len(order) * 3 // 10
        self.asked, self.known = order[:split], order[split:]
        self.data, self.quarter = data, steps // 4

    def report(self, task: Any, step: int) -> None:
        scores = {}
        for name in ('student', 'teacher'):
            made = features(getattr(task, name).backbone, task, self.data.images)
            labels = self.data.labels
            scores[name] = accuracy(made[self.known], labels[self.known],
                                    made[self.asked], labels[self.asked])  # fmt: skip
        said = ' '.join(f'{name} {100 * score:.1f} %' for name, score in scores.items())
        losses = {
            k: round(float(v), 3)
            for k, v in task.trainer.callback_metrics.items()
            if k.startswith('train_') or k in ('key_rank', 'embedding_std')
        }
        print(f'{step} steps: {said} {losses}', flush=True)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.report(pl_module, 0)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if trainer.global_step % self.quarter == 0:
            self.report(pl_module, trainer.global_step)


@torch.no_grad()
def calibrate(backbone: Any, task: CMID, images: Tensor) -> Any:
    """A copy whose batch norms know whole images, of 2048 of them."""
    copied = copy.deepcopy(backbone).train()
    for module in copied.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    mean, std = task.mean[:, None, None], task.std[:, None, None]
    for part in images[torch.randperm(len(images))[:2048]].split(64):
        copied((part.float() / 255 - mean) / std)
    return copied


def evaluate(checkpoint: str, data: Images, splits: int = 20) -> None:
    """Compare the ends of a run on the same splits."""
    task = CMID.load_from_checkpoint(checkpoint, weights_only=True)
    student, teacher = task.student.backbone, task.teacher.backbone
    made = {
        name: features(backbone, task, data.images)
        for name, backbone in {
            'student': student,
            'teacher': teacher,
            'calibrated student': calibrate(student, task, data.images),
        }.items()
    }
    scores = {name: [] for name in made}
    for seed in range(splits):
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
        asked, known = order[: len(order) * 3 // 10], order[len(order) * 3 // 10 :]
        for name, found in made.items():
            scores[name].append(
                accuracy(found[known], data.labels[known], found[asked], data.labels[asked])
            )  # fmt: skip
    base = torch.tensor(scores['teacher'])
    for name, values in scores.items():
        found = torch.tensor(values)
        gain = found - base
        print(
            f'{name}: {100 * found.mean():.2f} %, {100 * gain.mean():+.2f} points over the '
            f'teacher (standard deviation over splits {100 * gain.std():.2f}, better in '
            f'{int((gain > 0).sum())} of {splits})',
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('folder')
    parser.add_argument('--model', default='resnet18')
    parser.add_argument('--steps', type=int, default=1000)
    parser.add_argument('--batch', type=int, default=32)
    parser.add_argument('--size', type=int, default=96)
    parser.add_argument('--momentum', type=float, default=0.99)
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--out', default='student_or_teacher.ckpt')
    parser.add_argument('--evaluate', metavar='CKPT')
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    seed_everything(0)
    data = Images(args.folder)
    if args.evaluate:
        evaluate(args.evaluate, data)
        return
    task = CMID(
        args.model, size=args.size, queue_size=2048, hidden_dim=512, output_dim=128,
        num_prototypes=512, momentum=args.momentum, lr=4e-3, teacher_temp=0.04,
        warmup_steps=args.steps // 10, teacher_temp_steps=0,
    )  # fmt: skip
    trainer = Trainer(
        accelerator='cpu', devices=1, max_steps=args.steps, logger=False,
        enable_checkpointing=False, enable_progress_bar=False,
        callbacks=[Compare(data, args.steps)],
    )  # fmt: skip
    start = time.time()
    trainer.fit(
        task, DataLoader(data, batch_size=args.batch, shuffle=True, drop_last=True)
    )
    trainer.save_checkpoint(args.out)
    print(f'{args.model}, {args.steps} steps: {(time.time() - start) / 60:.0f} minutes')


if __name__ == '__main__':
    main()
