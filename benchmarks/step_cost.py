# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""What a training step of CMID costs beside its floor.

The floor is what no implementation can avoid: twice the student's forward and backward and
the teacher's forward of the bare timm backbone. The step is all of it: views, losses, heads,
backward, optimizer, queue and teacher. Both are measured in turns in one run.

    python benchmarks/step_cost.py --model resnet50 --batch 16 --threads 2
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import timm
import torch
from timm.optim import Adan, param_groups_weight_decay

from cmid_geo.models import update_teacher
from cmid_geo.tasks import CMID


def seconds(function: Callable[[], object], device: str) -> float:
    if device == 'cuda':
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--model', default='resnet50')
    parser.add_argument('--batch', type=int, default=16)
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--chip', type=int, default=256)
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--device', default='cpu')
    given: Any = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)

    bare = timm.create_model(given.model, num_classes=0).to(given.device)
    image = torch.rand(given.batch, 3, given.size, given.size, device=given.device)
    task = CMID(given.model, size=given.size).to(given.device)
    groups = param_groups_weight_decay(task, 0.02)
    optimizer = Adan(groups, lr=1e-4, betas=(0.98, 0.92, 0.99))
    batch = {
        'image': torch.rand(given.batch, 3, given.chip, given.chip, device=given.device)
    }

    def floor() -> None:
        for _ in range(2):
            bare.zero_grad(set_to_none=True)
            bare.forward_features(image).sum().backward()
            with torch.no_grad():
                bare.forward_features(image)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        outputs = task.training_step(batch, 0)
        outputs['loss'].backward()
        optimizer.step()
        task.queue.enqueue(outputs['keys'].flatten(0, 1))
        task.assign.update_center(outputs['scores'], outputs['cells'])
        update_teacher(task.teacher, task.student, 0.996)

    floor()
    step()
    times = SimpleNamespace(floor=[], step=[])
    for _ in range(given.repeats):
        times.floor.append(seconds(floor, given.device))
        times.step.append(seconds(step, given.device))
    ratios = [s / f for s, f in zip(times.step, times.floor)]
    print(
        f'{given} torch {torch.__version__} {platform.processor() or platform.machine()}'
    )
    print(
        f'floor  {statistics.median(times.floor):.3f} s  (each: {[round(t, 2) for t in times.floor]})'
    )
    print(
        f'step   {statistics.median(times.step):.3f} s  (each: {[round(t, 2) for t in times.step]})'
    )
    print(
        f'ratio  {statistics.median(ratios):.3f}  (from {min(ratios):.3f} to {max(ratios):.3f})'
    )


if __name__ == '__main__':
    main()
