# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Flips and turns of images together with rotated boxes."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from ..ops.rotated_boxes import move_boxes

#: The eight ways to lay a square on itself: transposed, mirrored in x, mirrored in y.
WAYS = tuple((bool(way & 4), bool(way & 2), bool(way & 1)) for way in range(8))


class RandomTurns(nn.Module):
    """Lays each image of a batch in one of eight ways, and may turn it further.

    Flips and quarter turns move pixels without changing them; images that are not square are
    flipped only. Boxes are moved exactly.
    """

    def __init__(self, rotate: float = 0.0) -> None:
        """Initialize a new RandomTurns instance.

        Args:
            rotate: Share of the images, in [0, 1], that are also turned by any angle about their
                centre, interpolated bilinearly. What turns in from outside is 0.

        Raises:
            ValueError: If the share is none.
        """
        super().__init__()
        if not 0 <= rotate <= 1:
            raise ValueError(
                f'rotate={rotate} is a share of images: give one in [0, 1]'
            )
        self.rotate = rotate

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Turn a batch.

        Args:
            batch: ``image`` (B, C, H, W), and where given ``bbox``, for each image (N, 5) of
                (cx, cy, w, h, angle) or (N, 8) of four corners.

        Returns:
            The batch, turned; its other entries are as they were.
        """
        image = batch['image']
        ways = torch.randint(8, (len(image),)).tolist()
        angles = (torch.rand(len(image)) * 2 * math.pi).tolist()
        further = (torch.rand(len(image)) < self.rotate).tolist()
        boxes = batch.get('bbox') or [image.new_zeros(0, 5)] * len(image)
        turned = []
        for each, own, way, angle, more in zip(
            image, boxes, ways, angles, further, strict=True
        ):
            pair = lay(each, own, *WAYS[way])
            turned.append(rotate(*pair, angle) if more else pair)
        found = batch | {'image': torch.stack([each for each, _ in turned])}
        return (
            found | {'bbox': [own for _, own in turned]} if 'bbox' in batch else found
        )


def lay(
    image: Shaped[Tensor, 'bands height width'],
    boxes: Float[Tensor, 'n values'],
    transpose: bool,
    flip_x: bool,
    flip_y: bool,
) -> tuple[Shaped[Tensor, 'bands height width'], Float[Tensor, 'n values']]:
    """Transpose and flip an image and its boxes, in this order.

    Args:
        image: Any; one that is not square is not transposed.
        boxes: (cx, cy, w, h, angle), or four corners x1, y1, ..., x4, y4.
        transpose: Whether to swap x and y.
        flip_x: Whether to mirror left and right.
        flip_y: Whether to mirror top and bottom.

    Returns:
        Image and boxes.
    """
    height, width = image.shape[1:]
    matrix, offset = torch.eye(2), torch.zeros(2)
    if transpose and height == width:
        image, matrix = image.transpose(1, 2), matrix.flip(0)
    for flipped, axis, side in ((flip_x, 0, width), (flip_y, 1, height)):
        if flipped:
            image = image.flip(2 - axis)
            matrix[axis] *= -1
            offset[axis] = side
    return image, move_boxes(boxes, matrix, offset)


def rotate(
    image: Float[Tensor, 'bands height width'],
    boxes: Float[Tensor, 'n values'],
    angle: float,
) -> tuple[Float[Tensor, 'bands height width'], Float[Tensor, 'n values']]:
    """Turn an image and its boxes about the image's centre.

    Args:
        image: Any; what turns in from outside is 0.
        boxes: (cx, cy, w, h, angle), or four corners x1, y1, ..., x4, y4.
        angle: In radians, clockwise on the screen.

    Returns:
        Image and boxes, of which some may be outside.
    """
    height, width = image.shape[1:]
    cos, sin = math.cos(angle), math.sin(angle)
    matrix = torch.tensor([[cos, -sin], [sin, cos]])
    centre = torch.tensor([width / 2, height / 2])
    # grid_sample asks where each pixel comes from, in units of half sides
    back = torch.tensor([
        [cos, sin * height / width, 0.0], [-sin * width / height, cos, 0.0]
    ])  # fmt: skip
    grid = F.affine_grid(back[None].to(image), [1, *image.shape], align_corners=False)
    turned = F.grid_sample(image[None], grid, align_corners=False)[0]
    return turned, move_boxes(boxes, matrix, centre - matrix @ centre)
