# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Rotated boxes: forms, intersection over union, non-maximum suppression and moves.

A rotated box is (cx, cy, w, h, angle): its centre and sides in pixels, and the direction of the
side w in radians. The image's axes are x to the right and y down, (0, 0) is the outer corner of
the first pixel, and a positive angle turns from x to y: clockwise, as seen on the screen.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

#: Pairs of boxes that are clipped at a time, about 25 MB.
PAIRS = 2**16

#: The four corners in units of half a side, clockwise on the screen.
SIGNS = ((-1, -1), (1, -1), (1, 1), (-1, 1))


def canonical(boxes: Float[Tensor, '*boxes 5']) -> Float[Tensor, '*boxes 5']:
    """The one form, of the several that are the same box, that all results have.

    Args:
        boxes: (cx, cy, w, h, angle), of any angle.

    Returns:
        The same boxes with w >= h and an angle in [-pi/2, pi/2).
    """
    x, y, w, h, angle = boxes.unbind(-1)
    angle = torch.where(w < h, angle + math.pi / 2, angle)
    longer, shorter = torch.maximum(w, h), torch.minimum(w, h)
    return torch.stack([x, y, longer, shorter, wrap_angle(angle)], -1)


def wrap_angle(
    angle: Float[Tensor, '*shape'], period: float = math.pi
) -> Float[Tensor, '*shape']:
    """Bring angles of a period near 0.

    Args:
        angle: In radians.
        period: Of which the angles are meant: pi for boxes, pi/2 for squares.

    Returns:
        Angles in [-period/2, period/2).
    """
    wrapped = torch.remainder(angle + period / 2, period) - period / 2
    # The remainder of a small negative number is rounded to the period itself
    return torch.where(wrapped >= period / 2, wrapped - period, wrapped)


def corners(boxes: Float[Tensor, '*boxes 5']) -> Float[Tensor, '*boxes 4 2']:
    """Corners of boxes.

    Args:
        boxes: (cx, cy, w, h, angle).

    Returns:
        (x, y) of the four, clockwise on the screen.
    """
    offsets = boxes.new_tensor(SIGNS) * boxes[..., None, 2:4] / 2
    return boxes[..., None, :2] + rotate(offsets, boxes[..., 4:])


def rotate(
    points: Float[Tensor, '*#sets points 2'], angle: Float[Tensor, '*#sets _']
) -> Float[Tensor, '... points 2']:
    """Rotate points about (0, 0).

    Args:
        points: (x, y).
        angle: In radians, from x to y; one a set of points, or one a point.

    Returns:
        The rotated points.
    """
    (x, y), cos, sin = points.unbind(-1), angle.cos(), angle.sin()
    return torch.stack([x * cos - y * sin, x * sin + y * cos], -1)


def boxes_from_corners(
    points: Float[Tensor, '*boxes 4 2'],
) -> Float[Tensor, '*boxes 5']:
    """Smallest boxes around four points each, such as DOTA's polygons.

    A smallest rectangle has a side in the direction of a side of the points' convex hull
    (Freeman and Shapira 1975), and these are among the six directions from point to point.

    Args:
        points: (x, y) in any order; they need not form a rectangle.

    Returns:
        (cx, cy, w, h, angle) in canonical form.
    """
    exact = points.to(_exact(points))
    middle = exact.mean(-2, keepdim=True)
    exact = exact - middle
    starts, ends = torch.combinations(torch.arange(4, device=points.device)).unbind(1)
    edges = exact[..., ends, :] - exact[..., starts, :]
    angles = torch.atan2(edges[..., 1], edges[..., 0])
    # All points as seen along each of the directions: (..., 6, 4, 2)
    seen = rotate(exact[..., None, :, :], -angles[..., None])
    low, high = seen.amin(-2), seen.amax(-2)
    best = (high - low).prod(-1).argmin(-1)[..., None]
    angle = angles.gather(-1, best)
    pick = best[..., None].expand(*best.shape, 2)
    low, high = (bound.gather(-2, pick)[..., 0, :] for bound in (low, high))
    centre = (middle + rotate((low + high)[..., None, :] / 2, angle))[..., 0, :]
    return canonical(torch.cat([centre, high - low, angle], -1)).to(points.dtype)


def external_boxes(boxes: Float[Tensor, '*boxes 5']) -> Float[Tensor, '*boxes 4']:
    """Smallest upright boxes around rotated ones.

    Args:
        boxes: (cx, cy, w, h, angle).

    Returns:
        (x1, y1, x2, y2), as torchvision has them.
    """
    x, y, w, h, angle = boxes.unbind(-1)
    cos, sin = angle.cos().abs(), angle.sin().abs()
    width, height = (w * cos + h * sin) / 2, (w * sin + h * cos) / 2
    return torch.stack([x - width, y - height, x + width, y + height], -1)


def rotated_iou(
    first: Float[Tensor, 'n 5'], second: Float[Tensor, 'm 5']
) -> Float[Tensor, 'n m']:
    """Intersection over union of every box with every other, exact but for rounding.

    Args:
        first: (cx, cy, w, h, angle), sides of 0 or more.
        second: Boxes of the same form.

    Returns:
        In [0, 1]; 0 where a box has no area.
    """
    # torchvision 0.29's box_iou(fmt='cxcywhr') is wrong for some boxes: of 600 random ones three had
    # an IoU other than 1, down to 0.54, with the same box written with its sides swapped
    a, b = first.to(_exact(first)), second.to(_exact(second))
    fractions = a.new_zeros(len(a), len(b))
    around_a, around_b = external_boxes(a), external_boxes(b)
    areas_a, areas_b = a[:, 2] * a[:, 3], b[:, 2] * b[:, 3]
    rows = max(1, PAIRS // max(len(b), 1))
    for start in range(0, len(a), rows):
        chunk = around_a[start : start + rows, None]
        near = (chunk[..., :2] < around_b[:, 2:]) & (around_b[:, :2] < chunk[..., 2:])
        i, j = near.all(-1).nonzero(as_tuple=True)
        i = i + start
        common = intersection(a[i], b[j])
        whole = areas_a[i] + areas_b[j] - common
        fractions[i, j] = torch.where(whole > 0, common / whole, 0).clamp(0, 1)
    return fractions.to(first.dtype)


def intersection(
    first: Float[Tensor, 'pairs 5'], second: Float[Tensor, 'pairs 5']
) -> Float[Tensor, 'pairs']:
    """Areas that pairs of boxes have in common.

    In the frame of the second box, which is then [-a, a] x [-b, b], Green's theorem gives the
    area as the integral of clamp(x, -a, a) d clamp(y, -b, b) around the first: what is outside
    is moved onto the border, where it encloses nothing. Between the points where an edge
    crosses the lines x = -a, a and y = -b, b both are linear, so trapezoids are exact. Nothing
    here is special about shared edges, touching corners or boxes inside others.

    Args:
        first: (cx, cy, w, h, angle).
        second: Boxes of the same form.

    Returns:
        Areas in square pixels.
    """
    offset = rotate((first[:, :2] - second[:, :2])[:, None], -second[:, 4:])[:, 0]
    relative = torch.cat([offset, first[:, 2:4], first[:, 4:] - second[:, 4:]], 1)
    start, half = corners(relative), second[:, None, 2:4] / 2
    step = start.roll(-1, 1) - start
    crossings = torch.cat([(-half - start) / step, (half - start) / step], -1)
    # An edge along a line crosses it nowhere: 0/0 and 1/0 become 0 or 1
    crossings = crossings.nan_to_num(0).clamp(0, 1).sort(-1).values
    times = F.pad(F.pad(crossings, (1, 0)), (0, 1), value=1.0)
    path = start[..., None, :] + times[..., None] * step[..., None, :]
    path = path.clamp(-half[..., None, :], half[..., None, :])
    # Any constant may be taken off x on a closed way; a near one keeps small boxes exact
    x, y = path[..., 0] - path[:, :1, :1, 0], path[..., 1]
    return ((x[..., 1:] + x[..., :-1]) * y.diff(dim=-1)).sum((1, 2)).clamp(min=0) / 2


def rotated_nms(
    boxes: Float[Tensor, 'n 5'],
    scores: Float[Tensor, 'n'],
    labels: Int[Tensor, 'n'],
    threshold: float,
) -> Int[Tensor, 'kept']:
    """Keep the best of boxes that overlap, class by class.

    Args:
        boxes: (cx, cy, w, h, angle).
        scores: Confidences, of any range.
        labels: Boxes of different labels do not compete.
        threshold: Boxes go whose IoU with a better one that is kept is above this.

    Returns:
        Indices of those to keep, the best first.
    """
    order = scores.argsort(descending=True, stable=True)
    kept = torch.zeros_like(order, dtype=torch.bool)
    for label in labels.unique():
        places = (labels[order] == label).nonzero()[:, 0]
        rivals = boxes[order[places]]
        kept[places] = _greedy(rotated_iou(rivals, rivals) > threshold)
    return order[kept]


def _greedy(over: Bool[Tensor, 'n n']) -> Bool[Tensor, 'n']:
    """Find those of sorted boxes that stay, given which overlap too far.

    A box stays unless a better one that stays overlaps it. Started from all, the n-th round
    decides the n-th box for good, and usually far fewer rounds decide all.
    """
    over = over.triu(1)
    kept = over.new_ones(len(over))
    while True:
        again = ~(over & kept[:, None]).any(0)
        if again.equal(kept):
            return kept
        kept = again


def _exact(boxes: Tensor) -> torch.dtype:
    """Type to compute in: Apple's devices have no float64."""
    return torch.float32 if boxes.device.type == 'mps' else torch.float64


def move_boxes(
    boxes: Float[Tensor, 'n values'],
    matrix: Float[Tensor, '2 2'],
    offset: Float[Tensor, '2'],
) -> Float[Tensor, 'n values']:
    """Move boxes as points p move to matrix p + offset.

    Args:
        boxes: Upright (x1, y1, x2, y2), rotated (cx, cy, w, h, angle), or four corners
            (x1, y1, ..., x4, y4).
        matrix: A rotation, or a rotation and a flip; for upright boxes by quarter turns.
        offset: In pixels.

    Returns:
        The boxes, in the form they came in.

    Raises:
        ValueError: If a box has neither 4, 5 nor 8 values.
    """
    matrix, offset = matrix.to(boxes), offset.to(boxes)
    values = boxes.shape[1]
    if values == 5:
        angle = boxes[:, 4]
        along = torch.stack([angle.cos(), angle.sin()], 1) @ matrix.T
        angle = torch.atan2(along[:, 1], along[:, 0])
        centre = boxes[:, :2] @ matrix.T + offset
        return torch.cat([centre, boxes[:, 2:4], angle[:, None]], 1)
    if values not in (4, 8):
        raise ValueError(
            f'boxes of {values} values: give (x1, y1, x2, y2), (cx, cy, w, h, angle) or four corners '
            'x1, y1, ..., x4, y4'
        )
    points = boxes.reshape(-1, values // 2, 2) @ matrix.T + offset
    if values == 8:
        return points.flatten(1)
    return torch.cat([points.amin(1), points.amax(1)], 1)
