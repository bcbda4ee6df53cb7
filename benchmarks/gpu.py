# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Checks and measurements that need a GPU, each apart from the others.

    python benchmarks/gpu.py --out gpu.json --budget 360

agree    losses, gradients and memory of one step against the CPU
sync     places where a training step makes the host wait for the device
trainer  a fit, its resumption, export and maps; steps of the downstream tasks
speed    chips a second beside the floor of the bare backbone, and where the rest goes
growth   time of a step against batch, size, bands and queue, one at a time
compile  speed with a compiled backbone, last as it may take minutes

The floor is what no implementation can avoid: twice the student's forward and backward and the
teacher's forward of the bare backbone, at the same batch, precision and memory format. Without a
GPU all parts run too, at small sizes; what only a GPU can tell is left out.
"""

import argparse
import copy
import gc
import json
import platform
import signal
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Self
from unittest.mock import Mock

import lightning
import rasterio
import timm
import torch
import torch.nn.functional as F
import torchvision
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from cmid_geo import (
    CMID,
    ChangeDetection,
    Classification,
    ObjectDetection,
    OrientedDetection,
    SceneDataModule,
    SemanticSegmentation,
    SyntheticScenes,
    View,
    create_backbone,
    export_backbone,
    predict_scene,
)
from cmid_geo.callbacks.nonfinite import StopOnNonFinite
from cmid_geo.callbacks.remember import Remember
from cmid_geo.ops.value_range import ValueRange
from cmid_geo.tasks.optimization import make_optimizer

PARTS = ('agree', 'sync', 'trainer', 'speed', 'growth', 'compile')
#: Chips a second of a ResNet-50 that we want on one card.
GOAL = 1330
#: Largest relative difference of a loss from the CPU's in float32.
LIMITS = {'32': 1e-5, 'bf16': 1e-3}
#: Largest absolute difference of teacher, keys and centre from the CPU's, in float32.
MEMORY_LIMIT = 1e-5
#: Seconds after which a compilation is given up.
COMPILE_LIMIT = 150


@dataclass(frozen=True)
class Sizes:
    """How much each part computes; *growth* varies one factor of *base* at a time."""

    models: tuple[str, ...]
    size: int
    batches: tuple[int, ...]
    agree_batch: int
    queue: int
    precision: str
    compiler: str
    steps: int
    growth: dict[str, tuple[int, ...]]
    base: dict[str, Any]
    heads: dict[str, int] = field(default_factory=dict)
    warmup: int = 3


GPU = Sizes(
    models=('resnet50', 'swin_tiny_patch4_window7_224', 'vit_small_patch16_224'),
    size=224,
    batches=(64, 128, 256),
    agree_batch=8,
    queue=65536,
    precision='bf16',
    compiler='inductor',
    steps=10,
    growth={
        'batch': (16, 32, 64, 128, 256),
        'size': (96, 160, 224, 320),
        'bands': (3, 4, 12),
        'queue': (4096, 16384, 65536),
    },
    base={'model': 'resnet50', 'batch': 64, 'size': 224, 'bands': 3, 'queue': 65536},
)
CPU = Sizes(
    models=('resnet18', 'vit_tiny_patch16_224'),
    size=96,
    batches=(8,),
    agree_batch=4,
    queue=4096,
    precision='32',
    compiler='inductor',
    steps=5,
    growth={
        'batch': (4, 8, 16, 32),
        'size': (64, 96, 160, 224),
        'bands': (3, 4, 12),
        'queue': (4096, 16384, 65536),
    },
    base={'model': 'resnet18', 'batch': 8, 'size': 96, 'bands': 3, 'queue': 4096},
    warmup=1,
)
TINY = Sizes(
    models=('resnet18',),
    size=64,
    batches=(2,),
    agree_batch=2,
    queue=16,
    precision='bf16',
    compiler='eager',
    steps=2,
    growth={'batch': (2, 4), 'size': (32, 64), 'bands': (3, 4), 'queue': (16, 32)},
    base={'model': 'resnet18', 'batch': 2, 'size': 64, 'bands': 3, 'queue': 16},
    heads={'hidden_dim': 32, 'output_dim': 16, 'num_prototypes': 32},
    warmup=1,
)


class Report:
    """Results by part and check, written after each; what fails does not stop the rest."""

    def __init__(self, out: str | None, budget: float, header: dict[str, Any]) -> None:
        self.out, self.budget, self.start = out, budget, time.perf_counter()
        self.parts: dict[str, dict[str, Any]] = {}
        self.seconds: dict[str, float] = {}
        self.errors: list[str] = []
        self.skipped: list[str] = []
        self.header = header
        say('header', header)

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.start

    def attempt(self, part: str, check: str, function: Callable[[], Any]) -> Any:
        """Run a check if there is time; return what it found, or None."""
        name, begun = f'{part}/{check}', self.elapsed
        if begun > self.budget:
            self.skipped.append(name)
            say(name, 'skipped, no time left')
            return None
        found = None
        try:
            found = function()
        except Exception:  # noqa: BLE001 (the rest goes on)
            self.errors.append(name)
            found = {'error': traceback.format_exc()}
            print(found['error'], flush=True)
        free()
        self.seconds[name] = round(self.elapsed - begun, 2)
        self.parts.setdefault(part, {})[check] = found
        say(f'{name} ({self.seconds[name]} s)', found)
        self.write()
        return None if isinstance(found, dict) and 'error' in found else found

    def write(self) -> None:
        if self.out:
            known = ('header', 'parts', 'seconds', 'errors', 'skipped')
            text = json.dumps({name: getattr(self, name) for name in known}, indent=1)
            Path(self.out).write_text(text, encoding='utf-8')

    def finish(self) -> int:
        self.write()
        found = {'errors': self.errors, 'skipped': self.skipped}
        say(f'finished after {self.elapsed:.0f} s', found)
        return len(self.errors)


def say(name: str, found: Any) -> None:
    """Print a result on one line, without tables and tracebacks."""
    if isinstance(found, dict):
        short = {key: value for key, value in found.items() if key != 'error'}
        found = json.dumps(short)[:1500]
    print(f'{name}: {found}', flush=True)


def free() -> None:
    """Give memory back, so that the next check begins like the first."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def wait(device: str) -> None:
    if device == 'cuda':
        torch.cuda.synchronize()


@contextmanager
def full_float32() -> Iterator[None]:
    """Float32 as such, without TF32."""
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [each.allow_tf32 for each in backends]
    for each in backends:
        each.allow_tf32 = False
    try:
        yield
    finally:
        for each, value in zip(backends, before, strict=True):
            each.allow_tf32 = value


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Give up after some time."""

    def stop(*_: object) -> None:
        raise TimeoutError(f'not done after {seconds} s')

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# ---------------------------------------------------------------------- a step


def autocast(device: str, precision: str) -> torch.autocast:
    return torch.autocast(device, torch.bfloat16, enabled=precision == 'bf16')


def stand_in(**known: Any) -> Any:
    """A Trainer of which only some attributes are known."""
    return Mock(spec=Trainer, **known)


def side_of_chips(size: int) -> int:
    """Chips of 256 pixels for views of 224, and as much larger for others."""
    return size * 8 // 7


class Step:
    """A training step as in a fit, without Lightning around it."""

    def __init__(
        self,
        sizes: Sizes,
        device: str,
        model: str,
        batch: int,
        size: int | None = None,
        bands: int = 3,
        queue: int | None = None,
        layout: str = 'contiguous',
        optimizer: str = 'adan',
        compiled: bool = False,
    ) -> None:
        torch.manual_seed(0)
        self.device, self.precision = device, sizes.precision
        size = size or sizes.size
        self.task = CMID(
            model, in_channels=bands, size=size, queue_size=queue or sizes.queue, **sizes.heads
        )  # fmt: skip
        self.task.to(device)
        # One process has nothing to gather, and there is no Trainer to ask
        self.task.all_gather = lambda found: found
        for part in (self.task.student, self.task.teacher, self.task.decoder):
            part.to(memory_format=format_of(layout))
        if compiled:
            self.task.student.backbone.compile(backend=sizes.compiler)
            self.task.teacher.backbone.compile(backend=sizes.compiler)
        # Adan has no fused form; AdamW's tells what one would bring
        options: Any = {'betas': (0.98, 0.92, 0.99)}
        if optimizer == 'adamw':
            options = {'fused': True}
        self.optimizer = make_optimizer(self.task, optimizer, 1e-4, 0.02, **options)
        self.remember, self.trainer = Remember(), stand_in(global_step=0)
        side = side_of_chips(size)
        self.batch = {'image': torch.rand(batch, bands, side, side, device=device)}

    def forward(self, batch: dict[str, Tensor]) -> Any:
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.device, self.precision):
            return self.task.training_step(batch, 0)

    def move_memory(self, outputs: Any) -> None:
        self.trainer.global_step += 1
        args: Any = (self.trainer, self.task, outputs, None, 0)
        self.remember.on_train_batch_end(*args)

    def __call__(self) -> Any:
        outputs = self.forward(self.batch)
        outputs['loss'].backward()
        self.optimizer.step()
        self.move_memory(outputs)
        return outputs


class Floor:
    """The bare backbone's part of a step."""

    def __init__(
        self, sizes: Sizes, device: str, model: str, batch: int, layout: str
    ) -> None:
        self.device, self.precision = device, sizes.precision
        self.network: Any = create_backbone(model).network.to(device)
        self.network.to(memory_format=format_of(layout))
        self.image = torch.rand(batch, 3, sizes.size, sizes.size, device=device)

    def __call__(self) -> None:
        for _ in range(2):
            self.network.zero_grad(set_to_none=True)
            with autocast(self.device, self.precision):
                loss = self.network.forward_features(self.image).float().sum()
            loss.backward()
            with torch.no_grad(), autocast(self.device, self.precision):
                self.network.forward_features(self.image)


def format_of(layout: str) -> torch.memory_format:
    return torch.channels_last if layout == 'channels_last' else torch.contiguous_format


def milliseconds(function: Callable[[], Any], sizes: Sizes, device: str) -> float:
    """Median time of a call, one after the other as in training, after a warm-up."""
    for _ in range(sizes.warmup):
        function()
    clock = Clock(device)
    for _ in range(sizes.steps):
        function()
        clock.mark('call')
    return statistics.median(clock.read()['call'])


class Clock:
    """Time between marks, by what was done before each: on a GPU that of the device."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.marks: list[tuple[str, Any]] = []
        wait(device)
        self.mark('')

    def mark(self, name: str, *_: object) -> None:
        if self.device == 'cuda':
            now: Any = torch.cuda.Event(enable_timing=True)
            now.record()
        else:
            now = time.perf_counter()
        self.marks.append((name, now))

    def read(self) -> dict[str, list[float]]:
        wait(self.device)
        times = defaultdict(list)
        for (_, begin), (name, end) in pairwise(self.marks):
            cuda = self.device == 'cuda'
            passed = begin.elapsed_time(end) if cuda else 1000 * (end - begin)
            times[name].append(passed)
        return times


# ---------------------------------------------------------------------- agree


def agree(report: Report, sizes: Sizes, device: str) -> None:
    with full_float32():
        for model in sizes.models:
            report.attempt('agree', model, partial(agreement, sizes, device, model))


class Drawn(nn.Module):
    """Views that were drawn before."""

    def __init__(self, views: tuple[View, View]) -> None:
        super().__init__()
        self.views = views

    def forward(self, chips: Tensor, valid: Tensor | None) -> tuple[View, View]:
        return self.views


def agreement(sizes: Sizes, device: str, model: str) -> dict[str, Any]:
    """Compare a step with that of the CPU in float32, and that with float64."""
    step = Step(sizes, 'cpu', model, sizes.agree_batch)
    task = step.task
    # What starts at 0 would hide what does not agree
    for parameter in (*task.student.parameters(), *task.decoder.parameters()):
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    keys = torch.randn(task.queue.keys.shape[0] // 2, task.queue.keys.shape[1])
    task.queue.enqueue(F.normalize(keys, dim=1))
    coarse = torch.rand(sizes.agree_batch, 3, 16, 16)
    chips = F.interpolate(coarse, (side_of_chips(sizes.size),) * 2, mode='bilinear')
    views = task.augmentations(chips)

    truth = one_step(step, views, 'cpu', '32')
    found: dict[str, Any] = {
        'losses': truth['losses'].tolist(),
        'largest difference of a plain view': view_difference(task, chips, device),
    }
    exact = one_step(step, views, 'cpu', '64')
    found['float32 of the CPU against its float64'] = differences(truth, exact)
    for precision, limit in LIMITS.items():
        here = one_step(step, views, device, precision)
        told = differences(here, truth)
        told['losses agree'] = max(told['losses']) <= limit
        if precision == '32':
            moved = max(told[name] for name in ('teacher', 'queue', 'centre'))
            told['memory agrees'] = moved <= MEMORY_LIMIT
        found[precision] = told
    return found


def view_difference(task: CMID, chips: Tensor, device: str) -> float:
    """Largest difference of a normalized plain view, of one crop, made here and on the CPU."""
    views: Any = copy.deepcopy(task.augmentations)
    geometry, mask = views.draw_geometry(chips), views.draw_mask(chips)
    made = []
    for place in ('cpu', device):
        views.to(place)
        pairs = [(each.to(place),) * 2 for each in (geometry, mask)]
        made.append(views(chips.to(place), None, *pairs)[0].image.cpu())
    return (made[1] - made[0]).abs().max().item()


def one_step(
    step: Step, views: tuple[View, View], device: str, precision: str
) -> dict[str, Any]:
    """Losses, gradients and memory of a step on given views, on the CPU in float64."""
    kind = torch.float64 if precision == '64' else torch.float32

    def bring(value: Tensor) -> Tensor:
        return value.to(device, kind if value.is_floating_point() else None)

    step = copy.copy(step)
    step.task, step.device, step.precision = copy.deepcopy(step.task), device, precision
    step.remember, step.trainer = Remember(), stand_in(global_step=0)
    task = step.task.to(device, kind)
    names = [each.name for each in fields(View)]
    first, second = (
        View(*(bring(getattr(view, name)) for name in names)) for view in views
    )
    task.augmentations = Drawn((first, second))
    outputs = step.forward({'image': first.image})
    outputs['loss'].backward()
    step.move_memory(outputs)
    tensors = {
        'losses': outputs['losses'],
        'teacher': torch.cat([each.flatten() for each in task.teacher.parameters()]),
        'queue': task.queue.keys,
        'centre': task.assign.center,
    }
    given = [each for each in task.named_parameters() if each[1].grad is not None]
    gradient = {name: each.grad.double().cpu().flatten() for name, each in given}
    return {name: each.double().cpu() for name, each in tensors.items()} | {
        'gradient': gradient, 'seen': int(task.queue.seen)
    }  # fmt: skip


def differences(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Relative differences of losses, cosines of gradients, absolute differences of memory."""
    if (
        one['seen'] != other['seen']
        or one['gradient'].keys() != other['gradient'].keys()
    ):
        raise RuntimeError('other keys were counted, or other parameters got gradients')
    relative = (one['losses'] - other['losses']).abs() / other['losses'].abs()
    whole = [torch.cat(list(each['gradient'].values())) for each in (one, other)]
    size = whole[1].norm()
    # Of a gradient that is all rounding the cosine says nothing
    large = [n for n, g in other['gradient'].items() if g.norm() > 1e-3 * size]
    pairs = {n: (one['gradient'][n], other['gradient'][n]) for n in large}
    cosines = {n: F.cosine_similarity(*pair, dim=0).item() for n, pair in pairs.items()}
    worst = min(cosines, key=lambda name: cosines[name])
    memory = ('teacher', 'queue', 'centre')
    return {
        'losses': relative.tolist(),
        'gradient cosine': F.cosine_similarity(*whole, dim=0).item(),
        'worst gradient': [worst, cosines[worst]],
    } | {name: (one[name] - other[name]).abs().max().item() for name in memory}


# ---------------------------------------------------------------------- sync


class Waits:
    """Counts the places at which the host waits for the GPU."""

    def __init__(self, device: str) -> None:
        self.found: Counter[str] = Counter()
        self.device = device
        self._catching: Any = None

    def __enter__(self) -> Self:
        self._catching = warnings.catch_warnings()
        self._catching.__enter__()
        warnings.simplefilter('always')
        if self.device == 'cuda':
            torch.cuda.set_sync_debug_mode('warn')
        warnings.showwarning = self.note
        return self

    def __exit__(self, *_: object) -> None:
        if self.device == 'cuda':
            torch.cuda.set_sync_debug_mode('default')
        self._catching.__exit__(None, None, None)

    def note(self, message: Any, *_: object, **__: object) -> None:
        if 'called a synchronizing' in str(message):
            stack = traceback.extract_stack()
            own = [f for f in stack if f.filename not in (__file__, warnings.__file__)]
            places = [f'{Path(f.filename).name}:{f.lineno} {f.name}' for f in own[-5:]]
            self.found[' > '.join(places)] += 1


def sync(report: Report, sizes: Sizes, device: str) -> None:
    for kind in ('uint8', 'float32'):
        check = partial(waits_of_a_step, sizes, device, kind)
        report.attempt('sync', kind, check)


def waits_of_a_step(sizes: Sizes, device: str, kind: str) -> dict[str, Any]:
    """Waits of each stage of a step, and of a whole one under 'error'."""
    step = Step(sizes, device, sizes.models[0], sizes.batches[0])
    data = SceneDataModule('none')
    high = 255.0 if kind == 'uint8' else 4000.0
    data.value_range = ValueRange((1, 2, 3), (0.0,) * 3, (high,) * 3)
    shape = step.batch['image'].shape
    image = (high * torch.rand(shape)).to(getattr(torch, kind))
    valid = torch.rand(len(image), *shape[2:]) > 0.1
    raw = {'image': image, 'valid': valid}
    if device == 'cuda':
        raw = {name: value.pin_memory() for name, value in raw.items()}
    watch = StopOnNonFinite()
    trainer = stand_in(current_epoch=0, checkpoint_callback=None)
    made: dict[str, Any] = {}

    def load() -> None:
        moved = {name: raw[name].to(device, non_blocking=True) for name in raw}
        made['batch'] = data.on_after_batch_transfer(moved, 0)

    def compute() -> None:
        made['outputs'] = step.forward(made['batch'])

    stages: dict[str, Callable[[], Any]] = {
        'transfer and scale': load,
        'views, forward, losses': compute,
        'backward': lambda: made['outputs']['loss'].backward(),
        'optimizer': step.optimizer.step,
        'remember': lambda: step.move_memory(made['outputs']),
        'stop on non-finite': lambda: watch.on_train_batch_end(
            trainer, step.task, made['outputs'], None, 0
        ),
    }
    for _ in range(2):
        for stage in stages.values():
            stage()
    found: dict[str, Any] = {}
    for name, stage in stages.items():
        with Waits(device) as waits:
            stage()
        found[name] = dict(waits.found)
    if device == 'cuda':
        found['whole step under error'] = under_error(stages)
    return found


def under_error(stages: dict[str, Callable[[], Any]]) -> str:
    """Run a step that may not wait; tell where it does."""
    wait('cuda')
    torch.cuda.set_sync_debug_mode('error')
    try:
        for stage in stages.values():
            stage()
    except RuntimeError:
        return traceback.format_exc()[-1500:]
    finally:
        torch.cuda.set_sync_debug_mode('default')
    return 'free of waits'


# ---------------------------------------------------------------------- trainer


class FitWaits(Callback):
    """Counts the waits of a fit's fourth and fifth batch, Lightning's own among them."""

    def __init__(self, device: str) -> None:
        self.waits, self.begun = Waits(device), False

    def on_train_batch_start(self, *args: Any) -> None:
        batch_idx = args[-1]
        if batch_idx == 3 and not self.begun:
            self.begun = True
            self.waits.__enter__()
        # Before validation and checkpoint, which have to wait
        elif batch_idx == 5:
            self.leave()

    def on_exception(self, *_: Any) -> None:
        self.leave()

    def leave(self) -> None:
        if self.begun:
            self.begun = False
            self.waits.__exit__()


def trainer(report: Report, sizes: Sizes, device: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        check = partial(fit_twice, sizes, device, where)
        report.attempt('trainer', 'fit and resume', check)
        check = partial(stop_and_resume, sizes, device, where)
        report.attempt('trainer', 'stop and resume', check)
        check = partial(map_twice, sizes, device, where)
        report.attempt('trainer', 'maps', check)
    for name in DOWNSTREAM:
        check = partial(downstream_steps, sizes, device, name)
        report.attempt('trainer', name, check)


def fit_twice(sizes: Sizes, device: str, folder: Path) -> dict[str, Any]:
    """Fit for an epoch, go on for another from the checkpoint, export."""
    # 256 pixels: the windows of the map, and no time to speak of
    side = max(2 * sizes.size, 256)
    SyntheticScenes(folder / 'scenes', scenes=1, size=side)
    batch, steps = min(sizes.batches[0], 32), 6
    torch.manual_seed(0)
    found: dict[str, Any] = {}
    for epochs in (1, 2):
        data = SceneDataModule(
            str(folder / 'scenes' / 'images'), patch_size=side_of_chips(sizes.size),
            length=steps * batch, batch_size=batch, seed=0,
        )  # fmt: skip
        task = CMID(
            sizes.models[0], in_channels=4, size=sizes.size, queue_size=2 * batch,
            warmup_steps=2, teacher_temp_steps=2, **sizes.heads,
        )  # fmt: skip
        waits = FitWaits(device)
        fit = Trainer(
            accelerator='gpu' if device == 'cuda' else 'cpu', devices=1,
            precision='bf16-mixed', max_epochs=epochs, logger=False,
            default_root_dir=folder, enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[ModelCheckpoint(folder, f'epoch{epochs}'), waits],
        )  # fmt: skip
        last = None if epochs == 1 else folder / 'epoch1.ckpt'
        fit.fit(task, data, ckpt_path=last)
        found[f'after epoch {epochs}'] = {
            'step': fit.global_step,
            'keys as many as chips': int(task.queue.seen) == 2 * batch * steps * epochs,
            'loss': fit.callback_metrics['train_loss'].item(),
            'chips a second': fit.callback_metrics['images_per_second'].item(),
            'waits': dict(waits.waits.found),
        }
    export_backbone(folder / 'epoch2.ckpt', folder / 'exported.ckpt', 'student')
    found['exported bytes'] = (folder / 'exported.ckpt').stat().st_size
    return found


def stop_and_resume(sizes: Sizes, device: str, folder: Path) -> dict[str, Any]:
    """Compare six steps with the same again, and with those resumed after the third."""
    scenes = folder / 'scenes' / 'images'
    batch = min(sizes.batches[0], 32)
    before = torch.are_deterministic_algorithms_enabled()

    def ended(start: Path | None) -> dict[str, Tensor]:
        torch.manual_seed(0)
        data = SceneDataModule(
            str(scenes), patch_size=side_of_chips(sizes.size), length=6 * batch,
            batch_size=batch, seed=0,
        )  # fmt: skip
        task = CMID(
            sizes.models[0], in_channels=4, size=sizes.size, queue_size=2 * batch,
            warmup_steps=2, teacher_temp_steps=2, **sizes.heads,
        )  # fmt: skip
        saved = ModelCheckpoint(
            folder / 'stopped', every_n_train_steps=3, filename='{step}', save_top_k=-1
        )
        fit = Trainer(
            accelerator='gpu' if device == 'cuda' else 'cpu', devices=1,
            precision='bf16-mixed', max_epochs=1, logger=False, deterministic='warn',
            default_root_dir=folder, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[saved] if start is None else [],
            enable_checkpointing=start is None,
        )  # fmt: skip
        fit.fit(task, data, ckpt_path=start)
        return {name: each.detach().cpu() for name, each in task.state_dict().items()}

    try:
        whole = ended(None)
        again = ended(None)
        resumed = ended(folder / 'stopped' / 'step=3.ckpt')
    finally:
        torch.use_deterministic_algorithms(before)
    return {
        'largest difference of the same run': difference_of(whole, again),
        'largest difference of the resumed run': difference_of(whole, resumed),
    }


def difference_of(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """Largest absolute difference of two networks."""
    pairs = [(first[name].double(), second[name].double()) for name in first]
    return max((one - two).abs().max().item() for one, two in pairs if one.numel())


def map_twice(sizes: Sizes, device: str, folder: Path) -> dict[str, Any]:
    """Map a scene on both devices: vectors of the exported backbone, and probabilities."""
    scene = min((folder / 'scenes' / 'images').glob('*.tif'))
    torch.manual_seed(0)
    network = sizes.models[0]
    segmentation = SemanticSegmentation(
        'unet', network, in_channels=4, num_classes=3, mean=[0.4] * 4, std=[0.2] * 4
    )
    found = {}
    mapped: dict[str, Any] = {
        'vectors': (str(folder / 'exported.ckpt'), {}),
        'probabilities': (
            segmentation, {'output': 'probabilities', 'low': 0, 'high': 255}
        ),
    }  # fmt: skip
    for name, (task, options) in mapped.items():
        maps, seconds = [], []
        for place in ('cpu', device):
            out, begun = folder / f'{name}_{len(maps)}.tif', time.perf_counter()
            with full_float32():
                predict_scene(task, str(scene), out, size=256, device=place, **options)
            seconds.append(round(time.perf_counter() - begun, 2))
            with rasterio.open(out) as file:
                maps.append(torch.from_numpy(file.read().astype('float64')))
        valid = maps[0].isfinite()
        found[name] = {
            'largest difference': (maps[1] - maps[0])[valid].abs().max().item(),
            'spread of the CPU map': maps[0][valid].std().item(),
            'nodata alike': torch.equal(valid, maps[1].isfinite()),
            'seconds on the CPU and here': seconds,
        }
    return found


def boxes_of(count: int, side: int) -> tuple[Tensor, Tensor]:
    corner = torch.rand(count, 2) * side / 2
    return torch.cat([corner, corner + side / 4], 1), torch.randint(1, 4, (count,))


def downstream_batch(name: str, batch: int, side: int) -> dict[str, Any]:
    dates = (2,) if name == 'change' else ()
    made: dict[str, Any] = {'image': torch.rand(batch, *dates, 3, side, side)}
    if name in ('segmentation', 'change'):
        top = 2 if name == 'change' else 4
        made['mask'] = torch.randint(0, top, (batch, side, side))
    elif name == 'classification':
        made['label'] = torch.randint(0, 4, (batch,))
    else:
        drawn = [boxes_of(5, side) for _ in range(batch)]
        made['label'] = [labels for _, labels in drawn]
        made['bbox_xyxy'] = [boxes for boxes, _ in drawn]
        # The corners in turn
        made['bbox'] = [boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]] for boxes, _ in drawn]
        del made['bbox_xyxy' if name == 'oriented' else 'bbox']
    return made


DOWNSTREAM: dict[str, Callable[[str], Any]] = {
    'segmentation': lambda n: SemanticSegmentation(backbone=n, num_classes=4),
    'change': lambda n: ChangeDetection(backbone=n),
    'classification': lambda n: Classification(n, num_classes=4, mixup=0.2),
    'detection': lambda n: ObjectDetection(backbone=n, num_classes=4),
    'oriented': lambda n: OrientedDetection(backbone=n, num_classes=4),
}


def downstream_steps(sizes: Sizes, device: str, name: str) -> dict[str, Any]:
    """Two steps of a downstream task on noise, in bfloat16."""
    torch.manual_seed(0)
    task = DOWNSTREAM[name](sizes.models[0]).to(device)
    made = downstream_batch(
        name, sizes.agree_batch, side_of_chips(sizes.size) // 32 * 32
    )
    batch = {
        key: [each.to(device) for each in value]
        if isinstance(value, list)
        else value.to(device)
        for key, value in made.items()
    }
    optimizer = make_optimizer(task, 'adamw', 1e-4, 0.01)
    losses, finite = [], True
    for _ in range(2):
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, 'bf16'):
            loss = task.training_step(batch, 0)
        loss.backward()
        gradients = [p.grad for p in task.parameters() if p.grad is not None]
        finite &= all(bool(each.isfinite().all()) for each in gradients)
        optimizer.step()
        losses.append(loss.item())
    if not (finite and gradients and all(map(torch.isfinite, torch.tensor(losses)))):
        raise FloatingPointError(f'{name}: losses {losses}, finite gradients: {finite}')
    return {'losses': losses, 'tensors with a finite gradient': len(gradients)}


# ---------------------------------------------------------------------- speed


def speed(report: Report, sizes: Sizes, device: str) -> None:
    first, *others = sizes.models
    kinds = [(first, batch, layout, 'adan')
             for batch in reversed(sizes.batches)
             for layout in ('contiguous', 'channels_last')]  # fmt: skip
    kinds += [(first, sizes.batches[-1], 'channels_last', 'adamw')]
    kinds += [(model, sizes.batches[-1], 'contiguous', 'adan') for model in others]
    split = partial(split_of_a_step, sizes, device)
    report.attempt('speed', 'split in ms', split)
    for model, batch, layout, optimizer in kinds:
        name = f'{model} {batch} {layout} {optimizer}'
        row = partial(rate, sizes, device, model, batch, layout, optimizer)
        report.attempt('speed', name, row)
    report.attempt('speed', 'profile', partial(profile_of_a_step, sizes, device))


def rate(
    sizes: Sizes, device: str, model: str, batch: int, layout: str, optimizer: str,
    compiled: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Time of the step and of its floor."""
    floor = milliseconds(Floor(sizes, device, model, batch, layout), sizes, device)
    free()
    options: Any = {'layout': layout, 'optimizer': optimizer, 'compiled': compiled}
    step = Step(sizes, device, model, batch, **options)
    begun = time.perf_counter()
    step()
    wait(device)
    first = time.perf_counter() - begun
    took = milliseconds(step, sizes, device)
    chips = 1000 * batch / took
    told = {
        'chips/s': round(chips, 1),
        'floor chips/s': round(1000 * batch / floor, 1),
        'step ms': round(took, 2),
        'floor ms': round(floor, 2),
        'floor/step': round(floor / took, 3),
        'TFLOP/s of the floor in the step': round(chips * flops(model, sizes.size) / 1e12, 2),
        'peak GiB': peak(device),
        'first step s': round(first, 1),
    }  # fmt: skip
    return told | ({'goal chips/s': GOAL} if model == 'resnet50' else {})


@lru_cache
def flops(model: str, size: int) -> float:
    """FLOPs of the floor for a chip, counted by torch on the CPU: an addition and a product are two."""
    floor = Floor(TINY, 'cpu', model, 2, 'contiguous')
    floor.image = torch.rand(2, 3, size, size)
    # Fused attention of the CPU is not counted
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        floor()
    return counter.get_total_flops() / 2


def peak(device: str) -> float | None:
    if device != 'cuda':
        return None
    return round(torch.cuda.max_memory_allocated() / 2**30, 2)


def best_step(sizes: Sizes, device: str) -> Step:
    step = Step(
        sizes, device, sizes.models[0], sizes.batches[-1], layout='channels_last'
    )
    for _ in range(sizes.warmup):
        step()
    return step


def split_of_a_step(sizes: Sizes, device: str) -> dict[str, float]:
    """Median time of the parts of a step, in ms."""
    step = best_step(sizes, device)
    clock, task = Clock(device), step.task
    for part, name in ((task.augmentations, 'views'), (task.student, 'student'), (task.teacher, 'teacher')):  # fmt: skip
        part.register_forward_pre_hook(lambda *_: clock.mark('losses and heads'))
        part.register_forward_hook(partial(_mark, clock, name))
    parts: defaultdict[str, list[float]] = defaultdict(list)
    for _ in range(sizes.steps):
        clock.marks.clear()
        clock.mark('')
        outputs = step.forward(step.batch)
        clock.mark('losses and heads')
        outputs['loss'].backward()
        clock.mark('backward')
        step.optimizer.step()
        clock.mark('optimizer')
        step.move_memory(outputs)
        clock.mark('remember')
        for name, times in clock.read().items():
            parts[name].append(sum(times))
    return {name: round(statistics.median(each), 3) for name, each in parts.items()}


def _mark(clock: Clock, name: str, *_: object) -> None:
    clock.mark(name)


def profile_of_a_step(sizes: Sizes, device: str) -> dict[str, Any]:
    """What takes most time in a step: kernels and operators of a GPU, else operators."""
    step, cuda = best_step(sizes, device), device == 'cuda'
    wait(device)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda
    with profile(activities=activities) as watched:
        step()
        wait(device)
    found: dict[str, Any] = {}
    averages = watched.key_averages()
    for name, kind in (('kernels', DeviceType.CUDA), ('operators', DeviceType.CPU)):
        # Spans that were named by hand hold kernels that are counted themselves
        events = [
            each
            for each in averages
            if each.device_type == kind
            and not getattr(each, 'is_user_annotation', False)
        ]
        taken = [(each.self_device_time_total if cuda else each.self_cpu_time_total, each) for each in events]  # fmt: skip
        taken.sort(key=lambda pair: -pair[0])
        found[f'all {name} ms'] = round(sum(pair[0] for pair in taken) / 1000, 3)
        found[name] = [[each.key[:100], each.count, round(micro / 1000, 3)] for micro, each in taken[:25]]  # fmt: skip
        print(f'{name}: calls, ms')
        for key, count, took in found[name]:
            print(f'  {key[:70]:70} {count:5} {took:9.3f}')
    return found


# ---------------------------------------------------------------------- growth


def growth(report: Report, sizes: Sizes, device: str) -> None:
    rows: list[dict[str, Any]] = []
    for factor, values in sizes.growth.items():
        for value in values:
            given = sizes.base | {factor: value}
            same = [row for row in rows if row['given'] == given]
            # The base stands in each of the curves, and is measured once
            if same:
                rows.append(same[0] | {'factor': factor, 'value': value})
                continue
            name = f'{factor} {value}'
            found = report.attempt('growth', name, partial(grown, sizes, device, given))
            if found:
                rows.append(found | {'factor': factor, 'value': value, 'given': given})
    report.parts.setdefault('growth', {})['rows'] = rows
    base = ', '.join(f'{name} {value}' for name, value in sizes.base.items())
    print(f'\nGrowth around {base}, {sizes.precision}, channels_last:\n')
    print(
        '| factor | value | step ms | chips/s | peak GiB |\n|---|---:|---:|---:|---:|'
    )
    for row in rows:
        numbers = ' | '.join(str(row[each]) for each in ('value', 'step ms', 'chips/s', 'peak GiB'))  # fmt: skip
        print(f'| {row["factor"]} | {numbers} |', flush=True)
    report.write()


def grown(sizes: Sizes, device: str, given: dict[str, Any]) -> dict[str, Any]:
    """Time of a step at given sizes."""
    step = Step(sizes, device, layout='channels_last', **given)
    took = milliseconds(step, sizes, device)
    return {
        'step ms': round(took, 2),
        'chips/s': round(1000 * given['batch'] / took, 1),
        'peak GiB': peak(device),
    }


def plot(rows: list[dict[str, Any]], path: str) -> None:
    """Draw the curves of :func:`growth`."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    names = list(dict.fromkeys(row['factor'] for row in rows))
    models = dict.fromkeys(row.get('model') for row in rows)
    figure, axes = plt.subplots(1, len(names), figsize=(3.5 * len(names), 3), squeeze=False, layout='constrained')  # fmt: skip
    for axis, name in zip(axes[0], names, strict=True):
        for model in models:
            curve = [
                (row['value'], row['step ms'])
                for row in rows
                if (row['factor'], row.get('model')) == (name, model)
            ]
            axis.plot(*zip(*curve, strict=True), 'o-', label=model)
        axis.set(xlabel=name, ylabel='ms a step', ylim=(0, None))
    if len(models) > 1:
        axes[0, 0].legend()
    figure.savefig(path)
    plt.close(figure)


# ---------------------------------------------------------------------- compile


def compile_(report: Report, sizes: Sizes, device: str) -> None:
    for model in sizes.models:
        layout = 'channels_last' if model.startswith('resnet') else 'contiguous'
        batch = sizes.batches[-1]

        def run(model: str = model, layout: str = layout, batch: int = batch) -> Any:
            left = max(1, int(report.budget - report.elapsed))
            with at_most(min(COMPILE_LIMIT, left)):
                return rate(sizes, device, model, batch, layout, 'adan', True)

        report.attempt('compile', f'{model} {batch} {layout} adan compiled', run)
        torch.compiler.reset()


# ---------------------------------------------------------------------- all


def header_of(given: argparse.Namespace) -> dict[str, Any]:
    cuda = given.device == 'cuda'
    return {
        'commit': given.commit,
        'device': torch.cuda.get_device_name() if cuda else platform.machine(),
        'threads': torch.get_num_threads(),
        'python': platform.python_version(),
        'torch': torch.__version__,
        'cuda': torch.version.cuda,
        'cudnn': torch.backends.cudnn.version() if cuda else None,
        'torchvision': torchvision.__version__,
        'lightning': lightning.__version__,
        'timm': timm.__version__,
        'parts': given.parts,
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--parts', default=','.join(PARTS))
    parser.add_argument('--device', choices=('cuda', 'cpu'), default='cuda')
    parser.add_argument('--tiny', action='store_true', help='sizes of a test')
    parser.add_argument('--budget', type=float, default=360, help='seconds')
    parser.add_argument('--commit', default='not given')
    parser.add_argument('--out', help='JSON file to write')
    parser.add_argument('--plot', help='picture of the growth to write')
    given = parser.parse_args(arguments)
    unknown = set(given.parts.split(',')) - set(PARTS)
    if unknown:
        parser.error(f'--parts {sorted(unknown)}: there are {", ".join(PARTS)}')
    sizes = TINY if given.tiny else GPU if given.device == 'cuda' else CPU
    report = Report(given.out, given.budget, header_of(given))
    functions = dict(zip(PARTS, (agree, sync, trainer, speed, growth, compile_), strict=True))  # fmt: skip
    for part in given.parts.split(','):
        try:
            functions[part](report, sizes, given.device)
        except Exception:  # noqa: BLE001 (the rest goes on)
            report.errors.append(part)
            traceback.print_exc(file=sys.stdout)
    rows = report.parts.get('growth', {}).get('rows')
    if given.plot and rows:
        plot(rows, given.plot)
    return report.finish()


if __name__ == '__main__':
    sys.exit(min(main(), 1))
