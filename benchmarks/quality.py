# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""What makes CMID learn from a few thousand small chips, beside SimCLR and MoCo v2 of TorchGeo.

    python benchmarks/quality.py pack aid/train --out aid_train.npz
    python benchmarks/quality.py study aid_train.npz --plan benchmarks/quality_plan.json \
        --total-seconds 300 --out results.json

Only AID's training images are used: 15 % of each class are held out and judged, the others train
networks without labels, and then probes with labels. All trials see equally many images; what each
cost in seconds is told too, but trials that run side by side share the device. Without --samples the
number is what fits into the time, by CMID's rate measured with all processes at work.
"""

import argparse
import io
import json
import math
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# Asking for devices through CUDA itself would forbid it to forked processes
os.environ['PYTORCH_NVML_BASED_CUDA_CHECK'] = '1'

import numpy as np
import torch
import torch.nn.functional as F
from aid_probe import fit, right
from PIL import Image
from student_or_teacher import accuracy
from torch import Tensor, multiprocessing
from torchgeo.tasks import MoCo, SimCLR
from torchgeo.tasks.simclr import LARS
from torchvision.datasets import ImageFolder

from cmid_geo.callbacks.remember import Remember
from cmid_geo.tasks import CMID
from cmid_geo.tasks.optimization import follow_schedule, make_optimizer
from cmid_geo.tasks.schedules import Horizon
from cmid_geo.transforms.views import TwoViews

DECAYS = (1e-2, 1e-1)
#: Of L-BFGS: a probe has to be cheap beside a trial of half a minute.
ITERATIONS = 50
#: The data and the options, in each process.
HERE: dict[str, Any] = {}


class Stepped(CMID):
    """CMID in a plain loop: the step comes from there instead of a Trainer."""

    at = 0

    def _step(self) -> int:
        return self.at

    def all_gather(self, data: Any, *_: Any, **__: Any) -> Any:
        return data


# ---------------------------------------------------------------------- data


def pack(folder: str, out: Path, quality: int) -> None:
    """Write all images of a folder into one file, as JPEG."""
    found, parts = ImageFolder(folder), []
    for path, _ in found.samples:
        buffer = io.BytesIO()
        Image.open(path).convert('RGB').save(buffer, 'JPEG', quality=quality)
        parts.append(buffer.getvalue())
    ends = np.cumsum([len(part) for part in parts])
    joined = np.frombuffer(b''.join(parts), np.uint8)
    np.savez(out, joined=joined, ends=ends, labels=np.array(found.targets))
    print(f'{len(parts)} images, {out.stat().st_size / 1e6:.1f} MB')


def unpack(path: Path, limit: int | None, threads: int = 16) -> tuple[Any, Any]:
    """Images (number, 3, height, width) of bytes, and labels."""
    held = np.load(path)
    joined, ends = held['joined'].tobytes(), held['ends']
    starts = np.concatenate([[0], ends[:-1]])
    order = np.random.default_rng(0).permutation(len(ends))[:limit]

    def decode(index: int) -> Any:
        image = Image.open(io.BytesIO(joined[starts[index] : ends[index]]))
        return np.asarray(image).transpose(2, 0, 1)

    with ThreadPoolExecutor(threads) as pool:
        return np.stack(list(pool.map(decode, order))), held['labels'][order]


def split(labels: Tensor, part: float) -> tuple[Tensor, Tensor]:
    """Indices of a part of each class, and of the rest; both hold at least one image of two or more, by a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    first, rest = [], []
    for label in labels.unique():
        mine = (labels == label).nonzero()[:, 0].cpu()
        mine = mine[torch.randperm(len(mine), generator=generator)]
        count = min(max(1, round(part * len(mine))), len(mine) - 1)
        first.append(mine[:count])
        rest.append(mine[count:])
    return torch.cat(first), torch.cat(rest)


def batches(images: Tensor, batch: int) -> Iterator[Tensor]:
    """Batches in [0, 1] without end, each epoch in a new order."""
    while True:
        order = torch.randperm(len(images), device=images.device)
        for chosen in order.split(batch):
            if len(chosen) == batch:
                yield images[chosen].float() / 255


# ---------------------------------------------------------------------- methods


def make(trial: Any, images: Tensor, size: int) -> Any:
    """The task of a trial."""
    given = dict(trial.get('set', {}))
    if trial['method'] == 'simclr':
        # Negatives of the batch alone: the default bank is larger than the data
        constants = {'memory_bank_size': 0, 'lr': 0.3, **given}
        return SimCLR('resnet18', size=size, **constants)
    if trial['method'] == 'mocov2':
        constants = {
            'layers': 2, 'hidden_dim': 2048, 'output_dim': 128, 'lr': 0.03, 'weight_decay': 1e-4,
            'temperature': 0.07, 'memory_bank_size': 4096, 'moco_momentum': 0.999, **given,
        }  # fmt: skip
        return MoCo('resnet18', version=2, size=size, **constants)
    pixels = images[:1024].float() / 255
    # The default queue is longer than two epochs of these data, which a fit refuses
    constants = {
        'size': size, 'queue_size': 8192, 'mean': pixels.mean((0, 2, 3)).tolist(),
        'std': pixels.std((0, 2, 3)).tolist(), **given,
    }  # fmt: skip
    if 'views' in trial:
        ratio = constants.get('mask_ratio', 0.6)
        views = TwoViews(constants['size'], ratio, **trial['views'])
        return Stepped('resnet18', augmentations=views, **constants)
    return Stepped('resnet18', **constants)


def backbones(task: Any) -> dict[str, Any]:
    """Networks of a task that could be exported."""
    if isinstance(task, CMID):
        return {'student': task.student.backbone, 'teacher': task.teacher.backbone}
    return {'student': task.backbone} | (
        {'teacher': task.backbone_momentum} if isinstance(task, MoCo) else {}
    )


def last_norms(task: Any) -> list[Tensor]:
    """Weights of the last batch norms of ResNet-18's residual branches, of the student first."""
    return [
        weight
        for network in backbones(task).values()
        for name, weight in network.named_parameters()
        if name.endswith('bn2.weight')
    ]


def optimize(task: Any, total: int, batch: int, chips: int) -> tuple[Any, Any]:
    """Optimizer and schedule: 5 % warm-up, then a cosine."""
    given, warmup = task.hparams, max(1, total // 20)
    if isinstance(task, CMID):
        # The paper's rise of the temperature: a quarter of the run
        task.horizon = Horizon(total, warmup, total // 4, batch, chips)
        rate = given['lr'] * batch / given['lr_batch_size']
        optimizer = make_optimizer(
            task, 'adan', rate, given['weight_decay'], betas=given['betas']
        )
        end = given['lr_end'] / rate
    else:
        kind: Any = LARS if isinstance(task, SimCLR) else torch.optim.SGD
        learned = [p for p in task.parameters() if p.requires_grad]
        decay, momentum = given['weight_decay'], given['momentum']
        optimizer = kind(learned, lr=given['lr'], momentum=momentum, weight_decay=decay)
        end = 0.0
    found: Any = follow_schedule(optimizer, 'cosine', total, warmup, end)
    return optimizer, found['lr_scheduler']['scheduler']


def train(task: Any, images: Tensor, steps: int, batch: int) -> dict[str, Any]:
    """Train for some steps; tell the seconds and the last loss."""
    device = images.device
    optimizer, schedule = optimize(task, steps, batch, len(images))
    remember, trainer = Remember(), SimpleNamespace(global_step=0)
    task.train()
    last: Any = None
    start = now(device)
    for step, image in zip(range(steps), batches(images, batch)):
        task.at = step
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == 'cuda'):
            last = task.training_step({'image': image}, step)
        loss = last['loss'] if isinstance(last, dict) else last
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if isinstance(task, CMID):
            trainer.global_step = step + 1
            remember.on_train_batch_end(trainer, task, last, None, step)
    seconds = now(device) - start
    losses = last['losses'].tolist() if isinstance(last, dict) else [float(last)]
    if not all(map(math.isfinite, losses)):
        raise ValueError(
            f'the losses ended as {losses}, not finite: lower the rate of the trial'
        )
    return {'seconds': seconds, 'rate': steps * batch / seconds, 'losses': losses}


def now(device: torch.device) -> float:
    """Seconds, once the device has done its work."""
    if device.type == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter()


# ---------------------------------------------------------------------- judging


@torch.no_grad()
def features(task: Any, network: Any, images: Tensor) -> Tensor:
    """Pooled features of whole images in evaluation mode, in float32."""
    network.eval()
    out = []
    for part in images.split(256):
        pixels = part.float() / 255
        if isinstance(task, CMID):
            pixels = (pixels - task.mean[:, None, None]) / task.std[:, None, None]
        found = network(pixels)
        out.append(found.mean((2, 3)) if found.ndim == 4 else found)
    return torch.cat(out)


def rank_me(found: Tensor) -> float:
    """Effective rank (arXiv 2210.02885)."""
    values = torch.linalg.svdvals(found)
    shares = values / values.sum() + 1e-7
    return float(torch.exp(-(shares * shares.log()).sum()))


def linear(known: Tensor, labels: Tensor, asked: Tensor, truth: Tensor) -> float:
    """Accuracy of a logistic regression; its decay is chosen on a fifth of what is known."""
    mean, std = known.mean(0), known.std(0).clamp_min(1e-6)
    known, asked = (known - mean) / std, (asked - mean) / std
    held, rest = (part.to(known.device) for part in split(labels, 0.2))
    with torch.device(known.device):
        scores = [
            right(
                fit(known[rest], labels[rest], decay, ITERATIONS),
                known[held],
                labels[held],
            )
            for decay in DECAYS
        ]
        best = DECAYS[scores.index(max(scores))]
        return right(fit(known, labels, best, ITERATIONS), asked, truth)


def neighbours(known: Tensor, labels: Tensor, asked: Tensor, truth: Tensor) -> float:
    """Accuracy of five nearest by cosine, raw features."""
    cosines = F.normalize(asked, dim=1) @ F.normalize(known, dim=1).T
    votes = F.one_hot(labels[cosines.topk(5).indices], int(labels.max()) + 1).sum(1)
    return float((votes.argmax(1) == truth).float().mean())


def judge(
    found: Tensor, labels: Tensor, held: Tensor, rest: Tensor
) -> dict[str, float]:
    """All scores of one kind of features, on the held-out images."""
    known, asked = found[rest], found[held]
    given = known, labels[rest], asked, labels[held]
    few, _ = split(labels[rest], 0.1)
    return {
        'knn': neighbours(*given),
        'knn_standardised': accuracy(*given),
        'linear': linear(*given),
        'linear_10': linear(known[few], labels[rest][few], asked, labels[held]),
        'rank_me': rank_me(known),
    }


# ---------------------------------------------------------------------- trials


def prepare(images: Any, labels: Any, options: Any) -> None:
    """Give a process the data and the options."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // options.jobs))
    device = torch.device(options.device)
    HERE['images'] = torch.from_numpy(images).to(device)
    HERE['labels'] = torch.from_numpy(labels).long().to(device)
    HERE['held'], HERE['rest'] = (
        part.to(device) for part in split(HERE['labels'], 0.15)
    )
    HERE['options'] = options


def build(trial: Any) -> Any:
    """The task of a trial on its device, always from the same seed."""
    torch.manual_seed(0)
    options, images = HERE['options'], HERE['images'][HERE['rest']]
    task = make(trial, images, options.size).to(images.device)
    if images.device.type == 'cuda':
        task = task.to(memory_format=torch.channels_last)
    if trial.get('open'):
        # Residual branches count from the start, where timm starts them at 0
        for weight in last_norms(task):
            torch.nn.init.ones_(weight)
    return task


def rate(trial: Any) -> float:
    """Images a second, once warm."""
    options, images = HERE['options'], HERE['images'][HERE['rest']]
    task = build(trial)
    train(task, images, 5, options.batch)
    return train(task, images, options.probe_steps, options.batch)['rate']


def perform(trial: Any) -> dict[str, Any]:
    """Train and judge one trial."""
    options, images, labels = (HERE[name] for name in ('options', 'images', 'labels'))
    split_of = labels, HERE['held'], HERE['rest']
    if trial['method'] == 'stats':
        pixels = images.float().flatten(2) / 255
        found = torch.cat([pixels.mean(2), pixels.std(2)], 1)
        return {'student': judge(found, *split_of)}
    seconds = trial.get('seconds')
    samples = rate(trial) * seconds if seconds else trial['samples']
    task, result = build(trial), {}
    if trial['method'] != 'random':
        steps = max(1, int(samples) // options.batch)
        result = {'steps': steps}
        result |= train(task, images[HERE['rest']], steps, options.batch)
    for name, network in backbones(task).items():
        result[name] = judge(features(task, network, images), *split_of)
    half = last_norms(task)[: 8 if isinstance(task, (CMID, MoCo)) else None]
    result['last_norm'] = float(torch.stack([w.abs().mean() for w in half]).mean())
    return result


def attempt(trial: Any) -> dict[str, Any]:
    """Perform a trial; an error is a result too."""
    if time.time() > HERE['options'].deadline:
        return {**trial, 'error': 'not started: the time was up'}
    start = time.time()
    try:
        result = perform(trial)
    except Exception as error:  # noqa: BLE001 (the other trials go on)
        result = {'error': f'{type(error).__name__}: {error}'}
    return {**trial, **result, 'wall': time.time() - start}


def study(options: Any) -> None:
    """Run the trials of a plan side by side, in order, until the time is up."""
    end = time.time() + options.total_seconds
    # A trial begun later would be cut off
    options.deadline = end - options.reserve
    plan, results = json.loads(options.plan.read_text()), []
    images, labels = unpack(options.data, options.limit)
    context = multiprocessing.get_context(options.start)
    with context.Pool(options.jobs, prepare, (images, labels, options)) as pool:
        if not (options.samples or options.seconds):
            rates = pool.map(rate, [{'method': 'cmid'}] * options.jobs, 1)
            left = 0.75 * (end - time.time()) * sum(rates)
            options.samples = int(left / max(1, len(plan) - 2))
            print(f'{rates} images a second, {options.samples} a trial', flush=True)
        budget = {'samples': options.samples, 'seconds': options.seconds}
        found = pool.imap_unordered(attempt, [{**budget, **each} for each in plan], 1)
        for _ in plan:
            try:
                result = found.next(timeout=max(0.1, end - time.time()))
            except multiprocessing.TimeoutError:
                print('the time is up', flush=True)
                break
            results.append(result)
            print(line(result), flush=True)
            options.out.write_text(json.dumps(results, indent=1))


def line(result: Any) -> str:
    """One trial in one line: per cent, student / teacher."""
    if 'error' in result:
        return f'{result["name"]}: {result["error"]}'
    said = [result['name']]
    for name in ('student', 'teacher'):
        if name in result:
            scores = {
                k: v if k == 'rank_me' else 100 * v for k, v in result[name].items()
            }
            said.append(
                name + ' ' + ' '.join(f'{k} {v:.1f}' for k, v in scores.items())
            )
    others = ('last_norm', 'steps', 'seconds', 'rate', 'losses', 'wall')
    said += [
        f'{k} {np.round(result[k], 3)}' for k in others if result.get(k) is not None
    ]
    return ' | '.join(said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest='command', required=True)
    packing = commands.add_parser('pack')
    packing.add_argument('folder')
    packing.add_argument('--out', type=Path, required=True)
    packing.add_argument('--quality', type=int, default=85)
    running = commands.add_parser('study')
    running.add_argument('data', type=Path)
    running.add_argument('--plan', type=Path, required=True)
    running.add_argument('--out', type=Path, required=True)
    running.add_argument('--total-seconds', type=float, default=300)
    running.add_argument('--reserve', type=float, default=15)
    running.add_argument('--samples', type=int, help='images a trial')
    running.add_argument('--seconds', type=float, help='a trial, instead of images')
    running.add_argument('--jobs', type=int, default=4)
    running.add_argument('--start', default='spawn', choices=['fork', 'spawn'])
    running.add_argument('--batch', type=int, default=256)
    running.add_argument('--size', type=int, default=96)
    running.add_argument('--probe-steps', type=int, default=20)
    running.add_argument('--limit', type=int, help='images to read')
    running.add_argument('--device', default='cuda')
    options = parser.parse_args()
    if options.command == 'pack':
        pack(options.folder, options.out, options.quality)
    else:
        study(options)


if __name__ == '__main__':
    main()
