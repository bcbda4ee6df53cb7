# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""What CMID learns from a few thousand small chips, beside what users have.

    python benchmarks/quality.py pack aid/train --out aid_train.npz
    python benchmarks/quality.py run cmid aid/train --scale cpu --epochs 25 --out runs/quality
    python benchmarks/quality.py run simclr aid/train --scale cpu --seconds 3600 --set lr=1.0 --out runs/quality
    python benchmarks/quality.py study benchmarks/quality_plan.json aid/train --scale cpu --epochs 10 --jobs 2 --out runs/quality
    python benchmarks/quality_curves.py runs/quality

Only AID's training images are used: 15 % of each class are held out and judged, the others train
networks without labels, and then probes with labels. Budgets are epochs, or seconds of one thread
or card, which become steps by the method's rate measured first; a trial may give its own steps. A trial writes its state every few
minutes and goes on from there when it is called again. Judging costs are not counted.
"""

import argparse
import io
import json
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# Asking for devices through CUDA itself would forbid it to forked processes
os.environ['PYTORCH_NVML_BASED_CUDA_CHECK'] = '1'

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from quality_methods import Memory, backbones, last_norms, make, optimize, resize
from torch import Tensor, multiprocessing
from torchvision.datasets import ImageFolder

from cmid_geo.metrics.effective_rank import rank_me
from cmid_geo.metrics.probes import linear_probe, nearest_neighbours, split_classes
from cmid_geo.ops.host import has_bfloat16
from cmid_geo.tasks import CMID

#: Small enough for two cores, and what an accelerator can do in the same time.
SCALES = {
    'cpu': SimpleNamespace(
        model='resnet18', vit='vit_tiny_patch16_224', size=64, chip=96, cell=16,
        batch=64, queue=4096, device='cpu',
    ),
    'gpu': SimpleNamespace(
        model='resnet50', vit='vit_small_patch16_224', size=128, chip=128, cell=16,
        batch=256, queue=8192, device='cuda',
    ),
}  # fmt: skip
DECAYS = (1e-3, 1e-2, 1e-1)
#: Of L-BFGS: a probe has to be cheap beside a trial of half a minute.
ITERATIONS = 50
#: Side in pixels at which the exported network is judged, at its usual stride.
EXPORTED_SIZE = 128
#: Training images on whose whole statistics of batch norms are estimated anew.
STATED = 2048
#: The data and the options, in each process.
HERE: dict[str, Any] = {}


class Loop:
    """What tasks ask of a Trainer."""

    def __init__(self, total: int) -> None:
        self.global_step, self.max_epochs = 0, total
        self.optimizers: list[Any] = []

    @property
    def current_epoch(self) -> int:
        """Schedules of TorchGeo move by the epoch: a step is one here."""
        return self.global_step


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


def read(path: Path, limit: int | None) -> tuple[Any, Any]:
    """Images (number, 3, height, width) of bytes, and labels, of a folder or a packed file."""
    if path.is_dir():
        found = ImageFolder(str(path))
        files, labels = zip(*found.samples)
        opened: Any = files
    else:
        held = np.load(path)
        joined, ends, labels = held['joined'].tobytes(), held['ends'], held['labels']
        starts = np.concatenate([[0], ends[:-1]])
        opened = [io.BytesIO(joined[a:b]) for a, b in zip(starts, ends)]
    order = np.random.default_rng(0).permutation(len(opened))[:limit]

    def decode(index: int) -> Any:
        image = Image.open(opened[index]).convert('RGB')
        return np.asarray(image).transpose(2, 0, 1)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return np.stack(list(pool.map(decode, order))), np.array(labels)[order]


def resized(images: Tensor, side: int) -> Tensor:
    """Bytes at another size, averaged over areas."""
    if images.shape[-1] == side:
        return images
    return torch.cat(
        [
            F.interpolate(
                part.float(), (side, side), mode='bilinear', antialias=True
            ).round().clamp(0, 255).byte()
            for part in images.split(512)
        ]
    )  # fmt: skip


def batch_at(images: Tensor, batch: int, step: int, seed: int) -> Tensor:
    """The batch of a step in [0, 1]; each epoch has its own order and leaves out what fills no batch."""
    each = len(images) // batch
    generator = torch.Generator().manual_seed(seed * 100_003 + step // each)
    order = torch.randperm(len(images), generator=generator)
    chosen = order[step % each * batch :][:batch]
    return images[chosen.to(images.device)].float() / 255


# ---------------------------------------------------------------------- training


def train(
    trial: Any, images: Tensor, steps: int, kept: Path | None = None
) -> tuple[Any, dict[str, Any]]:
    """Train a task for some steps, from where a killed run stopped.

    Returns:
        The task; seconds of the processor or card, and means of what was logged over twentieths.
    """
    options, scale, seed = HERE['options'], HERE['scale'], trial['seed']
    device = images.device
    torch.manual_seed(seed)
    task = make(trial, images, scale).to(device)
    if device.type == 'cuda' or not fine(trial, scale):
        task = task.to(memory_format=torch.channels_last)
    optimizer, schedule = optimize(task, steps, scale.batch, len(images))
    loop, memory, logged = Loop(steps), Memory(), {}
    loop.optimizers, task.trainer = [optimizer], loop
    task.all_gather = lambda data, *_, **__: data
    current: dict[str, Any] = {}
    task.log = lambda name, value, **_: current.__setitem__(name, value)
    task.log_dict = lambda values, **_: current.update(values)
    spent = restore(kept, task, optimizer, schedule, loop, logged)
    memory.remember.step = loop.global_step
    task.train()
    mark, saved = now(device), time.time()
    for step in range(loop.global_step, steps):
        torch.manual_seed((seed * 1_000_003 + step) % 2**31)
        image = batch_at(images, scale.batch, step, seed)
        if 'low' in trial:
            # Small views first, of the same chips
            side, part = trial['low']
            resize(task, side if step < part * steps else scale.size)
        with low_precision(device):
            outputs = task.training_step({'image': image}, step)
        loss = outputs['loss'] if isinstance(outputs, dict) else outputs
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        loop.global_step = step + 1
        memory(loop, task, outputs)
        if step % 10 == 0:
            current.setdefault('train_loss', loss.detach())
            part = logged.setdefault(str(20 * step // steps), {})
            for name, value in current.items():
                part.setdefault(name, []).append(float(value))
        if kept and time.time() - saved > options.every:
            spent, mark, saved = spent + now(device) - mark, now(device), time.time()
            keep(kept, task, optimizer, schedule, loop, logged, spent)
    spent += now(device) - mark
    if not math.isfinite(float(loss)):
        raise ValueError(
            f'the loss ended as {float(loss)}: lower the rate of the trial'
        )
    curves = {
        part: {name: float(np.mean(values)) for name, values in each.items()}
        for part, each in logged.items()
    }
    return task, {
        'seconds': spent,
        'rate': steps * scale.batch / spent,
        'curves': curves,
    }


def fine(trial: Any, scale: Any) -> bool:
    """Whether the last stage is dilated, which a CPU computes more slowly with channels last."""
    if trial['method'] == 'cmid':
        return trial.get('set', {}).get('cell', scale.cell) < 32
    return trial.get('stride', 32) < 32


def keep(path: Path, task: Any, optimizer: Any, schedule: Any, loop: Loop, logged: Any, spent: float) -> None:  # fmt: skip
    """Write the state of a run; banks of lightly are buffers that no state dict holds."""
    parts = task, optimizer, schedule
    state = {
        'state': [part.state_dict() for part in parts],
        'buffers': dict(task.named_buffers()),
        'step': loop.global_step, 'logged': logged, 'spent': spent,
    }  # fmt: skip
    torch.save(state, path.with_suffix('.part'))
    path.with_suffix('.part').replace(path)


def restore(path: Path | None, task: Any, optimizer: Any, schedule: Any, loop: Loop, logged: Any) -> float:  # fmt: skip
    """Read the state of a run, if there is one; return the seconds it took so far."""
    if not (path and path.exists()):
        return 0.0
    state = torch.load(path, map_location='cpu', weights_only=True)
    for part, held in zip((task, optimizer, schedule), state['state']):
        part.load_state_dict(held)
    for name, buffer in state['buffers'].items():
        owner, _, own = name.rpartition('.')
        held = task.get_submodule(owner)._buffers
        if held[own] is not None and held[own].shape != buffer.shape:
            held[own] = buffer.to(held[own].device)
        elif held[own] is not None:
            held[own].copy_(buffer)
    loop.global_step = state['step']
    logged.update(state['logged'])
    return state['spent']


def low_precision(device: torch.device) -> Any:
    """Autocast to bfloat16 where the device computes in it; others emulate it, many times slower."""
    quick = device.type != 'cpu' or has_bfloat16()
    return torch.autocast(device.type, torch.bfloat16, enabled=quick)


def now(device: torch.device) -> float:
    """Seconds of this process, or of the card once it has done its work."""
    if device.type == 'cuda':
        torch.cuda.synchronize()
        return time.perf_counter()
    # The machine may be shared: time that others took is not the method's cost
    return time.process_time()


# ---------------------------------------------------------------------- judging


@torch.no_grad()
def features(network: Any, images: Tensor, mean: Any, std: Any) -> Tensor:
    """Pooled features of whole images in evaluation mode."""
    network.eval()
    out = []
    for part in images.split(256):
        pixels = ((part.float() / 255 - mean) / std).contiguous(
            memory_format=torch.channels_last
        )
        with low_precision(part.device):
            found = network(pixels)
        out.append((found.mean((2, 3)) if found.ndim == 4 else found).float())
    return torch.cat(out)


def plain(network: Any, trial: Any) -> tuple[Any, dict[str, Any]]:
    """The network as a user of the exported file has it: timm's, at its usual stride; and how it is built."""
    scale, options = HERE['scale'], {}
    model = scale.model
    if trial['method'] == 'mae':
        # Its class token is hardly trained
        options = {'img_size': scale.size, 'dynamic_img_size': True, 'global_pool': 'avg', 'fc_norm': False}  # fmt: skip
        model = scale.vit
    elif model.startswith('vit'):
        options = {'dynamic_img_size': True, 'global_pool': 'avg', 'fc_norm': False}
    own = timm.create_model(model, num_classes=0, **options)
    # Ours hold timm's; the classifier is Identity in both
    own.load_state_dict(getattr(network, 'network', network).state_dict())
    first = next(network.parameters())
    how = {'model': model, 'options': options}
    return own.to(first.device, memory_format=torch.channels_last), how


def judge(found: Tensor) -> dict[str, float]:
    """All scores of one kind of features, on the held-out images."""
    labels, held, rest = (HERE[name] for name in ('labels', 'held', 'rest'))
    known, asked, few = found[rest], found[held], split_classes(labels[rest], 0.1)[0]
    given = known, labels[rest], asked
    learn = {'decays': DECAYS, 'iterations': ITERATIONS}
    predicted = {
        'knn': nearest_neighbours(*given),
        'knn_standardised': nearest_neighbours(*given, standardized=True),
        'linear': linear_probe(*given, **learn),
        'linear_10': linear_probe(known[few], labels[rest][few], asked, **learn),
    }
    scores = {
        name: float((each == labels[held]).float().mean())
        for name, each in predicted.items()
    }
    return scores | {'rank_me': float(rank_me(known))}


def judge_all(task: Any, trial: Any, kept: Path) -> dict[str, Any]:
    """Scores of all networks of a task: as it trained, and the student as it would be exported."""
    scale, result = HERE['scale'], {}
    mean, std = 0.0, 1.0
    if isinstance(task, CMID):
        mean, std = task.mean[:, None, None], task.std[:, None, None]
    found = backbones(task)
    own = resized(HERE['images'], scale.size)
    for name, network in found.items():
        result[name] = judge(features(network, own, mean, std))
    exported, how = plain(found['student'], trial)
    if HERE['options'].save:
        held = {**how, 'state_dict': exported.state_dict(), 'mean': mean, 'std': std}
        torch.save(held, kept.with_suffix('.pth'))
    large = resized(HERE['images'], EXPORTED_SIZE)
    result['exported'] = judge(features(exported, large, mean, std))
    if HERE['options'].restate:
        restate(exported, large[HERE['rest']][:STATED], mean, std)
        result['restated'] = judge(features(exported, large, mean, std))
    return result


@torch.no_grad()
def restate(network: Any, images: Tensor, mean: Any, std: Any) -> None:
    """Estimate the statistics of batch norms anew, on whole images."""
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        # The mean over all batches
        norm.momentum = None
    network.train()
    for part in images.split(256):
        with low_precision(part.device):
            network((part.float() / 255 - mean) / std)
    network.eval()


# ---------------------------------------------------------------------- trials


def prepare(images: Any, labels: Any, options: Any) -> None:
    """Give a process the data and the options."""
    torch.set_num_threads(options.threads)
    HERE['options'], HERE['scale'] = options, SCALES[options.scale]
    for name in ('model', 'size', 'chip', 'cell', 'batch', 'queue', 'device'):
        if getattr(options, name) is not None:
            setattr(HERE['scale'], name, getattr(options, name))
    device = torch.device(HERE['scale'].device)
    HERE['images'] = torch.from_numpy(images).to(device)
    HERE['labels'] = torch.from_numpy(labels).long().to(device)
    HERE['held'], HERE['rest'] = (
        part.to(device) for part in split_classes(HERE['labels'], 0.15)
    )


def perform(trial: Any, kept: Path) -> dict[str, Any]:
    """Train and judge one trial."""
    options, scale = HERE['options'], HERE['scale']
    if trial['method'] == 'stats':
        pixels = HERE['images'].float().flatten(2) / 255
        return {'student': judge(torch.cat([pixels.mean(2), pixels.std(2)], 1))}
    images = resized(HERE['images'][HERE['rest']], scale.chip)
    if trial['method'] == 'random':
        torch.manual_seed(trial['seed'])
        return judge_all(make({**trial, 'method': 'cmid'}, images, scale), trial, kept)
    each = len(images) // scale.batch
    steps = trial.get('steps')
    if steps is None and options.epochs:
        steps = round(options.epochs * each)
    plan = kept.with_suffix('.steps')
    if steps is None and plan.exists():
        steps = int(plan.read_text())
    if steps is None:
        train(trial, images, 3)
        rate = train(trial, images, options.probe_steps)[1]['rate']
        steps = max(1, round(options.seconds * rate / scale.batch))
        plan.write_text(str(steps))
    task, result = train(trial, images, steps, kept)
    result |= {'steps': steps, 'epochs': steps / each, **judge_all(task, trial, kept)}
    norms = [float(weight.abs().mean()) for weight in last_norms(task)]
    result['last_norm'] = float(np.mean(norms or [math.nan]))
    return result


def attempt(trial: Any) -> dict[str, Any]:
    """Perform a trial, unless its result is there; an error is a result too."""
    options = HERE['options']
    name = ''.join(c if c.isalnum() or c in '.-' else '_' for c in trial['name'])
    out = options.out / f'{name}-{trial["seed"]}.json'
    if out.exists():
        return json.loads(out.read_text())
    if time.time() > options.deadline:
        return {**trial, 'error': 'not started: the time was up'}
    start, kept = time.time(), out.with_suffix('.ckpt')
    usual = HERE['scale']
    HERE['scale'] = SimpleNamespace(**vars(usual) | trial.get('scale', {}))
    scale = {n: v for n, v in vars(HERE['scale']).items()}
    try:
        result = perform(trial, kept)
    except Exception as error:  # noqa: BLE001 (the other trials go on)
        return {**trial, 'error': f'{type(error).__name__}: {error}'}
    finally:
        HERE['scale'] = usual
    found = {**trial, **result, 'wall': time.time() - start, 'scale': scale}
    out.write_text(json.dumps(found, indent=1))
    kept.unlink(missing_ok=True)
    return found


def study(options: Any, plan: list[Any]) -> None:
    """Run the trials of a plan side by side, in order, until the time is up."""
    options.out.mkdir(parents=True, exist_ok=True)
    end = time.time() + options.total_seconds
    # A trial begun later would be cut off
    options.deadline = end - options.reserve
    images, labels = read(options.data, options.limit)
    trials = [{'seed': seed, **each} for seed in options.seeds for each in plan]
    if options.jobs == 1:
        prepare(images, labels, options)
        for trial in trials:
            print(line(attempt(trial)), flush=True)
        return
    context = multiprocessing.get_context(options.start)
    with context.Pool(options.jobs, prepare, (images, labels, options)) as pool:
        found = pool.imap_unordered(attempt, trials, 1)
        for _ in trials:
            try:
                print(line(found.next(timeout=max(0.1, end - time.time()))), flush=True)
            except multiprocessing.TimeoutError:
                print('the time is up', flush=True)
                break


def line(result: Any) -> str:
    """One trial in one line: per cent."""
    said = [f'{result["name"]} ({result["seed"]})']
    if 'error' in result:
        return f'{said[0]}: {result["error"]}'
    for name in ('student', 'teacher', 'exported', 'restated'):
        if name in result:
            scores = {
                k: v if k == 'rank_me' else 100 * v for k, v in result[name].items()
            }
            said.append(
                name + ' ' + ' '.join(f'{k} {v:.1f}' for k, v in scores.items())
            )
    others = ('last_norm', 'steps', 'epochs', 'seconds', 'rate', 'wall')
    said += [f'{k} {result[k]:.4g}' for k in others if result.get(k) is not None]
    if 'curves' in result:
        last = result['curves'][max(result['curves'], key=int)]
        said.append(' '.join(f'{k} {v:.3g}' for k, v in last.items()))
    return ' | '.join(said)


def setting(text: str) -> tuple[str, Any]:
    """``name=value`` of the command line, the value in JSON."""
    name, _, value = text.partition('=')
    return name, json.loads(value)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest='command', required=True)
    packing = commands.add_parser('pack')
    packing.add_argument('folder')
    packing.add_argument('--out', type=Path, required=True)
    packing.add_argument('--quality', type=int, default=85)
    one, many = commands.add_parser('run'), commands.add_parser('study')
    one.add_argument('method')
    one.add_argument('--set', type=setting, nargs='*', default=[])
    one.add_argument('--views', type=setting, nargs='*', default=[])
    one.add_argument('--name')
    many.add_argument('plan', type=Path)
    for running in (one, many):
        running.add_argument('data', type=Path, help="AID's training folder, or a pack")
        running.add_argument('--scale', choices=SCALES, default='cpu')
        budget = running.add_mutually_exclusive_group(required=True)
        budget.add_argument('--epochs', type=float)
        budget.add_argument('--seconds', type=float, help='of one thread or card')
        running.add_argument('--out', type=Path, required=True)
        running.add_argument('--seeds', type=int, nargs='+', default=[0])
        running.add_argument('--total-seconds', type=float, default=1e9)
        running.add_argument('--reserve', type=float, default=15)
        running.add_argument('--every', type=float, default=180, help='seconds')
        running.add_argument('--jobs', type=int, default=1)
        running.add_argument('--threads', type=int, default=1)
        running.add_argument('--start', default='spawn', choices=['fork', 'spawn'])
        running.add_argument('--probe-steps', type=int, default=20)
        running.add_argument('--save', action='store_true', help='keep the backbones')
        running.add_argument(
            '--restate',
            action='store_true',
            help='judge it with batch norms estimated anew, too',
        )
        running.add_argument('--limit', type=int, help='images to read')
        for name in ('size', 'chip', 'cell', 'batch', 'queue'):
            running.add_argument(f'--{name}', type=int)
        for name in ('model', 'device'):
            running.add_argument(f'--{name}')
    options = parser.parse_args()
    if options.command == 'pack':
        pack(options.folder, options.out, options.quality)
    elif options.command == 'study':
        study(options, json.loads(options.plan.read_text()))
    else:
        trial = {'name': options.name or options.method, 'method': options.method}
        trial |= {'set': dict(options.set)} if options.set else {}
        trial |= {'views': dict(options.views)} if options.views else {}
        options.jobs = 1
        study(options, [trial])


if __name__ == '__main__':
    main()
