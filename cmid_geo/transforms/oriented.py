# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Augmentation of images together with rotated boxes."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..ops.dihedral import draw_dihedral
from ..ops.rotated_boxes import move_boxes


class RandomTurns(nn.Module):
    """Rotates each image of a batch by quarter turns, flips it, and may rotate it further.

    Flips and quarter turns move pixels without changing them; images that are not square make half
    turns only. Boxes are moved exactly.
    """

    def __init__(self, rotate: float = 0.0) -> None:
        """Initialize a new RandomTurns instance.

        Args:
            rotate: Fraction of the images, in [0, 1], that are also rotated by any angle about their
                centre, interpolated bilinearly. What comes in from outside is 0.

        Raises:
            ValueError: If *rotate* is not in [0, 1].
        """
        super().__init__()
        if not 0 <= rotate <= 1:
            raise ValueError(
                f'rotate={rotate} is a fraction of the images: give one in [0, 1]'
            )
        self.rotate = rotate

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Rotate and flip a batch.

        Args:
            batch: ``image`` (B, C, H, W), and where given ``bbox``, for each image (N, 5) of
                (cx, cy, w, h, angle) or (N, 8) of four corners.

        Returns:
            The batch, rotated and flipped; its other entries are as they were.
        """
        image = batch['image']
        boxes = batch.get('bbox') or [image.new_zeros(0, 5)] * len(image)
        found = [self._rotate(*pair) for pair in zip(image, boxes, strict=True)]
        batch = batch | {'image': torch.stack([each for each, _ in found])}
        return batch | {'bbox': [own for _, own in found]} if 'bbox' in batch else batch

    def _rotate(self, image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        height, width = image.shape[1:]
        way = draw_dihedral(height == width)
        image, boxes = way.image(image), way.boxes(boxes, height, width)
        chance, angle = torch.rand(2).tolist()
        if chance >= self.rotate:
            return image, boxes
        return rotate(image, boxes, angle * 2 * math.pi)


def rotate(
    image: Float[Tensor, 'bands height width'],
    boxes: Float[Tensor, 'n values'],
    angle: float,
) -> tuple[Float[Tensor, 'bands height width'], Float[Tensor, 'n values']]:
    """Rotate an image and its boxes about the image's centre.

    Args:
        image: Any; what comes in from outside is 0.
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
    rotated = F.grid_sample(image[None], grid, align_corners=False)[0]
    return rotated, move_boxes(boxes, matrix, centre - matrix @ centre)
