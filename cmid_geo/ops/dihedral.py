# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Quarter turns and flips of images, masks, points and boxes."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from .rotated_boxes import move_boxes


@dataclass(frozen=True)
class Dihedral:
    """Quarter turns counter-clockwise, then a flip from left to right.

    Points and boxes are in pixels (x, y) from the image's upper left corner: the pixel in column 3
    reaches from 3 to 4.

    Attributes:
        quarters: Number of quarter turns.
        flip: Whether left and right are exchanged afterwards.
    """

    quarters: int = 0
    flip: bool = False

    @property
    def inverse(self) -> 'Dihedral':
        """The one that undoes it; a flip after a rotation undoes itself."""
        return self if self.flip else Dihedral(-self.quarters % 4)

    def image(self, image: Tensor) -> Tensor:
        """Rotate and flip images or masks.

        Args:
            image: (..., height, width).

        Returns:
            The same pixels, (..., width, height) after an odd number of quarter turns.
        """
        if self.quarters:
            image = image.rot90(self.quarters, (-2, -1))
        return image.flip(-1) if self.flip else image

    def matrix(
        self, height: float, width: float
    ) -> tuple[Float[Tensor, '2 2'], Float[Tensor, '2']]:
        """Matrix and offset that move points as the image moves.

        Args:
            height: Of the image in pixels, before.
            width: Of the image in pixels, before.

        Returns:
            Matrix and offset, such that p moves to matrix p + offset.
        """
        cos, sin = ((1, 0), (0, 1), (-1, 0), (0, -1))[self.quarters % 4]
        mirror = -1 if self.flip else 1
        matrix = torch.tensor([[mirror * cos, mirror * sin], [-sin, cos]]).float()
        # The centre stays the centre, of an image whose sides an odd turn exchanges
        before = torch.tensor([width, height]) / 2
        after = before.flip(0) if self.quarters % 2 else before
        return matrix, after - matrix @ before

    def points(
        self, points: Float[Tensor, '*points 2'], height: float, width: float
    ) -> Float[Tensor, '*points 2']:
        """Move points along.

        Args:
            points: (x, y).
            height: Of the image in pixels, before.
            width: Of the image in pixels, before.

        Returns:
            (x, y) on the rotated and flipped image.
        """
        matrix, offset = (each.to(points) for each in self.matrix(height, width))
        return points @ matrix.T + offset

    def boxes(
        self, boxes: Float[Tensor, 'n values'], height: float, width: float
    ) -> Float[Tensor, 'n values']:
        """Move boxes along.

        Args:
            boxes: Upright (x1, y1, x2, y2), rotated (cx, cy, w, h, angle), or four corners
                (x1, y1, ..., x4, y4).
            height: Of the image in pixels, before.
            width: Of the image in pixels, before.

        Returns:
            The boxes, in the form they came in.
        """
        return move_boxes(boxes, *self.matrix(height, width))


def dihedral_group(
    square: bool = True, quarters: bool = True, flip: bool = True
) -> tuple[Dihedral, ...]:
    """List the rotations and flips that an image may undergo.

    Args:
        square: Whether the image is square; others keep their shape and so make half turns only.
        quarters: Whether to rotate.
        flip: Whether to flip: from left to right without rotations, in all directions with them.

    Returns:
        One to eight of them, the image as it is first.
    """
    steps = (0, 1, 2, 3) if square else (0, 2)
    return tuple(
        Dihedral(each, flipped)
        for flipped in ((False, True) if flip else (False,))
        for each in (steps if quarters else (0,))
    )


#: All eight, the image as it is first.
ALL = dihedral_group()


def draw_dihedral(
    square: bool = True, quarters: bool = True, flip: bool = True
) -> Dihedral:
    """Draw one at random, on the CPU.

    Args:
        square: See :func:`dihedral_group`, as both that follow.
        quarters: Whether to rotate.
        flip: Whether to flip.

    Returns:
        One of those that are allowed, each as likely.
    """
    group = dihedral_group(square, quarters, flip)
    return group[int(torch.randint(len(group), ()))]


def draw_rotations(
    batch: int, group: Sequence[Dihedral] = ALL
) -> Float[Tensor, 'batch 2 2']:
    """Draw a rotation by quarter turns and flips for each image of a batch, on the CPU.

    Args:
        batch: Number of images.
        group: What to draw from, each as likely.

    Returns:
        Matrices in float64 that move (x, y) about the image's centre; exactly 0, 1 and -1.
    """
    return _matrices(tuple(group))[torch.randint(len(group), (batch,))]


@lru_cache(maxsize=32)
def _matrices(group: tuple[Dihedral, ...]) -> Float[Tensor, 'group 2 2']:
    """The matrices of a group, which are made once."""
    with torch.inference_mode(False):
        return torch.stack([each.matrix(0, 0)[0] for each in group]).double()
