# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""How exact the IoU of rotated boxes is, by shapely, and how long it takes.

python benchmarks/rotated_overlap.py
"""

import math
import time

import numpy as np
import shapely
import torch
from torch import Tensor

from cmid_geo.ops.rotated_boxes import corners, rotated_iou, rotated_nms


def draw(number: int, side: float, least: float, most: float) -> Tensor:
    """Boxes of float64 whose sides are drawn evenly in their logarithms."""
    sides = torch.rand(number, 2, dtype=torch.float64) * math.log(most / least)
    centre = torch.rand(number, 2, dtype=torch.float64) * side
    angle = (torch.rand(number, 1, dtype=torch.float64) - 0.5) * 2 * math.pi
    return torch.cat([centre, least * sides.exp(), angle], 1)


def by_shapely(first: Tensor, second: Tensor) -> np.ndarray:
    a, b = (
        shapely.polygons(corners(each.double()).numpy()) for each in (first, second)
    )
    common = shapely.area(shapely.intersection(a[:, None], b[None]))
    return common / (shapely.area(a)[:, None] + shapely.area(b)[None] - common)


def exactness() -> None:
    plain, thin = draw(300, 100, 2, 60), draw(300, 60, 1, 1)
    thin[:, 2] = 50
    turned = plain[:, [0, 1, 3, 2, 4]] + torch.tensor([0, 0, 0, 0, math.pi / 2])
    moved = plain.clone()
    moved[:, :2] = (moved[:, :2] * 8).round() / 8 + 20_000
    kinds = {
        'any': (plain, draw(300, 100, 2, 60)),
        '1 by 50': (thin, thin),
        'themselves, sides swapped': (plain, turned),
        'tiny in huge': (draw(300, 100, 0.5, 1), draw(300, 100, 50, 5000)),
        'at 20,000 px': (moved, moved),
    }
    print(
        '| boxes | pairs that overlap | largest error, float64 | float32 |\n| --- | --- | --- | --- |'
    )
    for name, (first, second) in kinds.items():
        errors = []
        for kind in (torch.float64, torch.float32):
            a, b = first.to(kind), second.to(kind)
            # shapely gets the rounded boxes, so that rounding them is no error
            expected = by_shapely(a, b)
            errors.append(np.abs(rotated_iou(a, b).double().numpy() - expected).max())
        print(
            f'| {name} | {int((expected > 0).sum())} | {errors[0]:.1e} | {errors[1]:.1e} |'
        )


def speed() -> None:
    boxes = draw(2000, 1024, 4, 64).float()
    dense = draw(500, 60, 4, 64).float()
    scores, one = torch.rand(2000), torch.zeros(2000, dtype=torch.long)
    jobs = {
        'IoU, 2000 x 2000 boxes of 4 to 64 px on 1024 px': lambda: rotated_iou(
            boxes, boxes
        ),
        'IoU, 500 x 500 boxes on one spot': lambda: rotated_iou(dense, dense),
        'NMS, 2000 boxes of one class on 1024 px': lambda: rotated_nms(
            boxes, scores, one, 0.1
        ),
    }
    for name, job in jobs.items():
        taken = []
        for _ in range(5):
            start = time.process_time()
            job()
            taken.append(time.process_time() - start)
        print(f'- {name}: {np.median(taken):.2f} s of one core (median of 5)')


if __name__ == '__main__':
    torch.manual_seed(0)
    torch.set_num_threads(1)
    exactness()
    speed()
