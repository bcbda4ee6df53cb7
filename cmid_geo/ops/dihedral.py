# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Quarter turns and flips of images, masks, points and boxes."""

from dataclasses import dataclass

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
        """What undoes it: a flip after turns undoes itself."""
        return self if self.flip else Dihedral(-self.quarters % 4)

    def image(self, image: Tensor) -> Tensor:
        """Rotate and flip images or masks.

        Args:
            image: (..., height, width).

        Returns:
            The same pixels, (..., width, height) after an odd number of quarter turns.
        """
        turned = torch.rot90(image, self.quarters, (-2, -1)) if self.quarters else image
        return turned.flip(-1) if self.flip else turned

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
        matrix, offset = torch.eye(2), torch.zeros(2)
        # A quarter turn counter-clockwise brings (x, y) to (y, width - x)
        quarter = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
        for _ in range(self.quarters % 4):
            matrix, offset = quarter @ matrix, quarter @ offset
            offset[1] += width
            height, width = width, height
        if self.flip:
            mirror = torch.tensor([-1.0, 1.0])
            matrix, offset = mirror[:, None] * matrix, mirror * offset
            offset[0] += width
        return matrix, offset

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


#: All eight, the image as it is first.
ALL = tuple(Dihedral(quarters, flip) for flip in (False, True) for quarters in range(4))


def draw_dihedral(
    square: bool = True, quarters: bool = True, flip: bool = True
) -> Dihedral:
    """Draw one of the eight at random, on the CPU.

    Args:
        square: Whether the image is square; others keep their shape and so make half turns only.
        quarters: Whether to rotate.
        flip: Whether to flip.

    Returns:
        One of those that are allowed, each as likely.
    """
    turn, mirror = torch.randint(4, (2,)).tolist()
    steps = turn if square else turn // 2 * 2
    return Dihedral(steps if quarters else 0, flip and mirror % 2 == 1)


def draw_rotations(
    batch: int,
    quarters: bool = True,
    flip: bool = True,
    device: torch.device | str | None = None,
) -> Float[Tensor, 'batch 2 2']:
    """Draw a rotation by quarter turns and flips for each image of a batch, on its device.

    Args:
        batch: Number of images.
        quarters: Whether to rotate by quarter turns.
        flip: Whether to flip both axes, each half of the time.
        device: Where to draw.

    Returns:
        Matrices in float64 that move (x, y) about the image's centre; exactly 0, 1 and -1.
    """
    turn = torch.randint(4 if quarters else 1, (batch,), device=device)
    signs = (
        1 - 2 * torch.randint(2 if flip else 1, (batch, 2, 1), device=device).double()
    )
    # Cosine and sine of 0, 90, 180 and 270 degrees
    cos, sin = torch.tensor([[1.0, 0, -1, 0], [0.0, 1, 0, -1]], device=device)[
        :, turn
    ].double()
    return signs * torch.stack([cos, -sin, sin, cos], -1).view(batch, 2, 2)
