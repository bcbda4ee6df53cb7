# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Cost of a training step beside its floor, of CMID and of TorchGeo's methods.

The floor is what no implementation can avoid: twice the student's forward and backward and
the teacher's forward of the bare timm backbone. The step is all of it: views, losses, heads,
backward, optimizer, queue and teacher. Both are measured in turns in one run. Beside the time that
passes stands the processor's own, of all threads, which other programs disturb less, and how often
the system had to hand out a page of memory.

    python benchmarks/step_cost.py --model resnet50 --batch 16 --threads 2
    python benchmarks/step_cost.py --methods --model resnet18 --batch 4 --threads 1
    python benchmarks/step_cost.py --growth --threads 1 --plot growth.png
"""

import argparse
import platform
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import timm
import torch
from gpu import CPU, Drawn, Floor, Step, plot, stand_in, wait
from torch import Tensor, nn
from torchgeo.tasks import BYOL, MAE, MoCo, SimCLR

from cmid_geo import TwoViews


@dataclass(frozen=True)
class Cost:
    """What a call took: seconds that passed, of the processor, of that in the system; pages."""

    wall: float
    processor: float
    system: float
    pages: int


def cost(function: Callable[[], object], device: str = 'cpu') -> Cost:
    wait(device)
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    function()
    wait(device)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF)
    system = after.ru_stime - before.ru_stime
    processor = after.ru_utime - before.ru_utime + system
    return Cost(wall, processor, system, after.ru_minflt - before.ru_minflt)


def in_turns(
    functions: dict[str, Callable[[], object]], repeats: int, device: str = 'cpu'
) -> dict[str, list[Cost]]:
    """Costs of each function, called one after the other again and again, after a warm-up."""
    for function in functions.values():
        function()
    found: dict[str, list[Cost]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            found[name].append(cost(function, device))
    return found


def median(costs: list[Cost], name: str) -> float:
    return statistics.median(getattr(each, name) for each in costs)


def ratio(above: list[Cost], below: list[Cost], name: str) -> str:
    ratios = [getattr(a, name) / getattr(b, name) for a, b in zip(above, below)]
    return f'{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})'


# ---------------------------------------------------------------------- CMID


def one_step(given: argparse.Namespace) -> None:
    sizes = replace(CPU, size=given.size, queue=65536)
    floor = Floor(sizes, given.device, given.model, given.batch, 'contiguous')
    step = Step(sizes, given.device, given.model, given.batch)
    found = in_turns({'floor': floor, 'step': step}, given.repeats, given.device)
    for name, costs in found.items():
        each = ', '.join(f'{one.wall:.2f}' for one in costs)
        print(
            f'{name:5}  {median(costs, "wall"):.3f} s, of the processor '
            f'{median(costs, "processor"):.3f} s, of that in the system '
            f'{median(costs, "system"):.3f} s, {median(costs, "pages"):.0f} pages  (each: {each})'
        )
    print('ratio ', ratio(found['step'], found['floor'], 'wall'))
    print('ratio of the processor', ratio(found['step'], found['floor'], 'processor'))


# ---------------------------------------------------------------------- methods


class Bare:
    """The forwards, and forwards with backwards, of a bare backbone."""

    def __init__(self, model: str, image: Tensor, learning: int, looking: int) -> None:
        self.network: Any = timm.create_model(model, num_classes=0)
        self.image, self.learning, self.looking = image, learning, looking

    def features(self) -> Tensor:
        return self.network.forward_features(self.image)

    def __call__(self) -> None:
        self.network.zero_grad(set_to_none=True)
        for _ in range(self.learning):
            self.features().sum().backward()
        with torch.no_grad():
            for _ in range(self.looking):
                self.features()


class VisibleQuarter(Bare):
    """A ViT that sees a quarter of the patches, and its class token."""

    def features(self) -> Tensor:
        net = self.network
        tokens = net._pos_embed(net.patch_embed(self.image))
        seen = net.num_prefix_tokens + net.patch_embed.num_patches // 4
        return net.norm(net.blocks(net.norm_pre(tokens[:, :seen])))


class Method:
    """A training step of a task, with its own optimizer and without Lightning around it."""

    def __init__(self, task: Any, image: Tensor) -> None:
        self.task, self.batch = task.train(), {'image': image}
        trainer = stand_in(max_epochs=200, current_epoch=0, estimated_stepping_batches=200)  # fmt: skip
        task._trainer, task.log = trainer, lambda *_, **__: None
        self.optimizer = task.configure_optimizers()['optimizer']

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.task.training_step(self.batch, 0).backward()
        self.optimizer.step()


def methods(given: argparse.Namespace) -> None:
    """TorchGeo's methods and CMID beside the floor of each, all on the same two views."""
    chips = torch.rand(given.batch, 3, 256, 256)
    views = TwoViews(224)(chips)
    first, both = views[0].image, torch.cat([view.image for view in views], 1)
    off, model, vit = nn.Identity(), given.model, given.vit
    two = {'model': model, 'augmentation1': off, 'augmentation2': off}
    v2 = {'layers': 2, 'hidden_dim': 2048, 'output_dim': 128, 'memory_bank_size': 65536}
    byol = BYOL(model)
    byol.model.augment = off
    sizes = replace(CPU, size=224, queue=65536)

    def cmid(name: str) -> Step:
        step = Step(sizes, 'cpu', name, given.batch)
        step.task.augmentations = Drawn(views)
        return step

    # Name, network, forwards with backward and without, step
    rows: list[tuple[str, str, int, int, Callable[[], object]]] = [
        ('CMID', model, 2, 2, cmid(model)),
        ('MoCo v2', model, 1, 1, Method(MoCo(version=2, **two, **v2, temperature=0.07), both)),
        ('MoCo v3', model, 2, 2, Method(MoCo(version=3, **two), both)),
        ('SimCLR', model, 2, 0, Method(SimCLR(model, augmentations=off), both)),
        ('BYOL', model, 2, 2, Method(byol, both)),
        ('CMID', vit, 2, 2, cmid(vit)),
        ('MAE', vit, 1, 0, Method(MAE(vit, transform=off), first)),
    ]  # fmt: skip
    print('| method | network | floor: learning + looking | floor s | step s | step / floor |')  # fmt: skip
    print('|---|---|---|---:|---:|---:|')
    for name, network, learning, looking, step in rows:
        kind = VisibleQuarter if name == 'MAE' else Bare
        floor = kind(network, first, learning, looking)
        found = in_turns({'floor': floor, 'step': step}, given.repeats)
        seen = ' of a visible quarter' if name == 'MAE' else ''
        seconds = ' | '.join(f'{median(found[each], "processor"):.3f}' for each in ('floor', 'step'))  # fmt: skip
        above = ratio(found['step'], found['floor'], 'processor')
        print(f'| {name} | {network} | {learning} + {looking}{seen} | {seconds} | {above} |', flush=True)  # fmt: skip


# ---------------------------------------------------------------------- growth


def growth(given: argparse.Namespace) -> None:
    """Time of the processor for a step, one factor varied at a time, its values in turns."""
    rows: list[dict[str, Any]] = []
    print('| network | factor | value | step ms | chips/s |\n|---|---|---:|---:|---:|')
    for model in given.growth_models:
        for factor, values in CPU.growth.items():
            sizes = [CPU.base | {'model': model, factor: value} for value in values]
            steps = {str(value): Step(CPU, 'cpu', **each) for value, each in zip(values, sizes)}  # fmt: skip
            found = in_turns({**steps}, given.repeats)
            for value, each in zip(values, sizes):
                took = median(found[str(value)], 'processor')
                rows.append({'model': model, 'factor': factor, 'value': value, 'step ms': 1000 * took})  # fmt: skip
                print(f'| {model} | {factor} | {value} | {1000 * took:.0f} | {each["batch"] / took:.1f} |', flush=True)  # fmt: skip
    if given.plot:
        plot(rows, given.plot)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--model', default='resnet50')
    parser.add_argument('--vit', default='vit_tiny_patch16_224', help='for MAE')
    parser.add_argument('--batch', type=int, default=16)
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--methods', action='store_true')
    parser.add_argument('--growth', action='store_true')
    parser.add_argument('--growth-models', nargs='+', default=CPU.models)
    parser.add_argument('--plot', help='picture of the growth to write')
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    print(given, 'torch', torch.__version__, platform.processor() or platform.machine())
    run = methods if given.methods else growth if given.growth else one_step
    run(given)


if __name__ == '__main__':
    main()
