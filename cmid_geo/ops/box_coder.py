# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Regression deltas of rotated boxes, relative to upright anchors or rotated proposals."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from .rotated_boxes import canonical, rotate, wrap_angle

#: A side may be so many times as long as an anchor's, or as short; a logarithm.
LARGEST = math.log(1000 / 16)

#: Deltas of the head times these are of about unit spread.
SPREADS = (10.0, 10.0, 5.0, 5.0, 10.0)

#: Boxes rotated by less than this (radians) are upright, whatever the sign of the rounding.
UPRIGHT = 1e-5


def encode_midpoints(
    boxes: Float[Tensor, 'n 5'], anchors: Float[Tensor, 'n 4']
) -> Float[Tensor, 'n 6']:
    """Six deltas that tell rotated boxes relative to upright anchors.

    The external box of a rotated one, and how far from the middle of its top side and of its
    right side the rotated box touches them (Xie et al. 2021, https://arxiv.org/abs/2108.05699).
    A box that is upright itself touches at the left of the top and at the top of the right.

    Args:
        boxes: (cx, cy, w, h, angle), sides above 0.
        anchors: (x1, y1, x2, y2).

    Returns:
        dx, dy in sides of the anchor; dw, dh the logarithms of ratios of sides; and dalpha, dbeta
        in [-0.5, 0.5], in sides of the external box.
    """
    x, y, w, h, angle = boxes.unbind(1)
    # The same boxes with an angle from 0 to a quarter turn: their first corner is the top one
    quarters = torch.floor((angle + UPRIGHT) / (math.pi / 2))
    odd = quarters.remainder(2) == 1
    w, h = torch.where(odd, h, w), torch.where(odd, w, h)
    angle = angle - quarters * (math.pi / 2)
    cos, sin = angle.cos(), angle.sin()
    width, height = w * cos + h * sin.abs(), w * sin.abs() + h * cos
    alpha, beta = (h * sin - w * cos) / 2, (w * sin - h * cos) / 2
    centre, sides = _centre_and_sides(anchors)
    shift = (torch.stack([x, y], 1) - centre) / sides
    growth = (torch.stack([width, height], 1) / sides).log()
    midpoints = torch.stack([alpha / width, beta / height], 1)
    return torch.cat([shift, growth, midpoints], 1)


def decode_midpoints(
    deltas: Float[Tensor, 'n 6'], anchors: Float[Tensor, 'n 4']
) -> Float[Tensor, 'n 5']:
    """Rotated boxes of the six deltas of :func:`encode_midpoints`.

    Any numbers tell a parallelogram; lengthening the shorter of its diagonals to the longer
    makes it a rectangle.

    Args:
        deltas: As from :func:`encode_midpoints`.
        anchors: (x1, y1, x2, y2).

    Returns:
        (cx, cy, w, h, angle) in canonical form.
    """
    centre, sides = _centre_and_sides(anchors)
    centre = centre + deltas[:, :2] * sides
    width, height = (sides * deltas[:, 2:4].clamp(-LARGEST, LARGEST).exp()).unbind(1)
    alpha, beta = deltas[:, 4:].clamp(-0.5, 0.5).unbind(1)
    top = torch.stack([alpha * width, -height / 2], 1)
    right = torch.stack([width / 2, beta * height], 1)
    to_top, to_right = top.norm(dim=1, keepdim=True), right.norm(dim=1, keepdim=True)
    radius = torch.maximum(to_top, to_right)
    top, right = top * (radius / to_top), right * (radius / to_right)
    along, across = right - top, right + top
    angle = torch.atan2(along[:, 1:], along[:, :1])
    lengths = [along.norm(dim=1, keepdim=True), across.norm(dim=1, keepdim=True)]
    return canonical(torch.cat([centre, *lengths, angle], 1))


def encode_rotated(
    boxes: Float[Tensor, 'n 5'], proposals: Float[Tensor, 'n 5']
) -> Float[Tensor, 'n 5']:
    """Five deltas that tell rotated boxes relative to rotated proposals.

    The boxes are taken in the form, of the four that are the same box, that is rotated the least
    from the proposal.

    Args:
        boxes: (cx, cy, w, h, angle), sides above 0.
        proposals: Boxes of the same form.

    Returns:
        Shifts along the proposal's sides in units of them, logarithms of ratios of sides, and
        the rotation in radians within pi/4; all times :data:`SPREADS`.
    """
    offset = boxes[:, None, :2] - proposals[:, None, :2]
    shift = rotate(offset, -proposals[:, 4:])[:, 0] / proposals[:, 2:4]
    angle = wrap_angle(boxes[:, 4:] - proposals[:, 4:])
    odd = angle.abs() > math.pi / 4
    sides = torch.where(odd, boxes[:, [3, 2]], boxes[:, 2:4])
    growth = (sides / proposals[:, 2:4]).log()
    deltas = torch.cat([shift, growth, wrap_angle(angle, math.pi / 2)], 1)
    return deltas * deltas.new_tensor(SPREADS)


def decode_rotated(
    deltas: Float[Tensor, 'n 5'], proposals: Float[Tensor, 'n 5']
) -> Float[Tensor, 'n 5']:
    """Rotated boxes of the five deltas of :func:`encode_rotated`.

    Args:
        deltas: As from :func:`encode_rotated`.
        proposals: (cx, cy, w, h, angle), sides above 0.

    Returns:
        (cx, cy, w, h, angle) in canonical form.
    """
    deltas = deltas / deltas.new_tensor(SPREADS)
    shift = rotate((deltas[:, :2] * proposals[:, 2:4])[:, None], proposals[:, 4:])[:, 0]
    sides = proposals[:, 2:4] * deltas[:, 2:4].clamp(-LARGEST, LARGEST).exp()
    angle = proposals[:, 4:] + deltas[:, 4:]
    return canonical(torch.cat([proposals[:, :2] + shift, sides, angle], 1))


def _centre_and_sides(anchors: Tensor) -> tuple[Tensor, Tensor]:
    """Centre (x, y) and sides (w, h) of upright boxes."""
    return (anchors[:, :2] + anchors[:, 2:]) / 2, anchors[:, 2:] - anchors[:, :2]
