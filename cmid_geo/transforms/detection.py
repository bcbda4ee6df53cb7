# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Augmentation of images together with their boxes.

Boxes are (x1, y1, x2, y2) in pixels from the image's upper left corner: a pixel at column 3 reaches
from 3 to 4. Flips and quarter turns move them exactly.
"""

import kornia.augmentation as K
import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor, nn

from ..ops.dihedral import draw_dihedral


class BoxAugmentation(nn.Module):
    """Random rotations, flips, sizes and colours of images with boxes."""

    def __init__(
        self,
        flips: bool = True,
        turns: bool = True,
        scale: tuple[float, float] = (1.0, 1.0),
        contrast: float = 0.2,
        brightness: float = 0.2,
        min_visible: float = 0.3,
    ) -> None:
        """Initialize a new BoxAugmentation instance.

        Args:
            flips: Whether to flip half of the images; with *turns* in all directions.
            turns: Whether to rotate by quarter turns. Images that are not square make half turns only.
            scale: Smallest and largest size of what is shown, by its size before. What is
                beyond the image is cut off, what is missing is 0.
            contrast: Largest relative change of contrast, in [0, 1].
            brightness: Largest relative change of brightness, in [0, 1].
            min_visible: Least fraction of a box that must stay in the image, else it goes.

        Raises:
            ValueError: If a number is out of range.
        """
        super().__init__()
        if not 0 < scale[0] <= scale[1]:
            raise ValueError(
                f'scale={scale} is the smallest and the largest size: give two positive numbers in order'
            )
        for name, value in (
            ('contrast', contrast), ('brightness', brightness), ('min_visible', min_visible)
        ):  # fmt: skip
            if not 0 <= value <= 1:
                raise ValueError(f'{name}={value} is a fraction: give one in [0, 1]')
        self.flips, self.turns, self.scale = flips, turns, scale
        self.min_visible = min_visible
        self.colour = K.ColorJitter(brightness, contrast, p=1.0)

    def forward(
        self,
        image: Float[Tensor, 'batch bands height width'],
        boxes: list[Tensor],
        labels: list[Tensor],
    ) -> tuple[Float[Tensor, 'batch bands height width'], list[Tensor], list[Tensor]]:
        """Augment each image of a batch in its own way.

        Args:
            image: In [0, 1].
            boxes: Of each image, (N, 4).
            labels: Of each box, (N).

        Returns:
            Images, boxes and labels.
        """
        found = [self._move(*each) for each in zip(image, boxes, labels, strict=True)]
        images, moved, kept = map(list, zip(*found, strict=True))
        return self.colour(torch.stack(images)), moved, kept

    def _move(
        self, image: Tensor, boxes: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rotate, flip and resize an image, as drawn on the CPU, where boxes are dropped too."""
        height, width = image.shape[1:]
        way = draw_dihedral(height == width, self.turns, self.flips)
        image, boxes = way.image(image), way.boxes(boxes, height, width)
        chance, left, top = torch.rand(3).tolist()
        # As likely to halve as to double
        scale = self.scale[0] * (self.scale[1] / self.scale[0]) ** chance
        image, boxes = resize(image, boxes, scale, left, top)
        visible, kept = keep_visible(boxes, height, width, self.min_visible)
        return image, visible, labels[kept]


def resize(
    image: Float[Tensor, 'bands height width'],
    boxes: Float[Tensor, 'n 4'],
    scale: float,
    left: float,
    top: float,
) -> tuple[Float[Tensor, 'bands height width'], Float[Tensor, 'n 4']]:
    """Resize what an image shows, on a canvas of its own size, and move its boxes along.

    Args:
        image: Of any range; what is missing is 0.
        boxes: On it.
        scale: Size of what is shown, by its size before.
        left: Where the resized image lies on the canvas, or that on it: fraction of the free
            columns to its left, in [0, 1].
        top: The same of the free rows above.

    Returns:
        The image, and the boxes, which may reach beyond it.
    """
    if scale == 1:
        return image, boxes
    height, width = image.shape[1:]
    rows, cols = max(1, round(height * scale)), max(1, round(width * scale))
    resized = F.interpolate(image[None], (rows, cols), mode='bilinear', antialias=True)
    # Negative where the resized image is larger, and cut off
    x, y = round(left * (width - cols)), round(top * (height - rows))
    canvas = F.pad(resized[0], (x, width - cols - x, y, height - rows - y))
    factor = boxes.new_tensor([cols / width, rows / height] * 2)
    return canvas, boxes * factor + boxes.new_tensor([x, y] * 2)


def keep_visible(
    boxes: Float[Tensor, 'n 4'], height: int, width: int, min_visible: float = 0.0
) -> tuple[Float[Tensor, 'm 4'], Integer[Tensor, ' m']]:
    """Clip boxes to an image and drop those of which too little, or nothing, is left.

    Args:
        boxes: Whose second corner is right of and below the first.
        height: Of the image in pixels.
        width: Of the image in pixels.
        min_visible: Least fraction of a box's area that must be in the image, in [0, 1].

    Returns:
        The boxes, each of some area, and their places among the old ones.
    """
    limit = boxes.new_tensor([width, height, width, height])
    clipped = boxes.clamp_min(0).minimum(limit)
    extent, before = clipped[:, 2:] - clipped[:, :2], boxes[:, 2:] - boxes[:, :2]
    visible = extent.prod(1) >= min_visible * before.prod(1)
    kept = (visible & (extent > 0).all(1)).nonzero().flatten()
    return clipped[kept], kept


def check_boxes(boxes: Tensor, labels: Tensor, num_classes: int) -> None:
    """Refuse boxes and labels that are none.

    Args:
        boxes: Of an image.
        labels: Of each box.
        num_classes: Number of classes, background included.

    Raises:
        ValueError: If a shape is off, a coordinate is not finite, corners are exchanged, or a
            label is no class.
    """
    if boxes.ndim != 2 or boxes.shape[1] != 4 or labels.shape != boxes.shape[:1]:
        raise ValueError(
            f'boxes of shape {tuple(boxes.shape)} with labels of shape {tuple(labels.shape)}: give (N, 4) '
            'and (N), and (0, 4) and (0) for an image without objects'
        )
    bad = ~boxes.isfinite().all(1)
    if bad.any():
        raise ValueError(
            f'box {boxes[bad][0].tolist()} is not finite: correct or remove it'
        )
    bad = (boxes[:, 2:] < boxes[:, :2]).any(1)
    if bad.any():
        raise ValueError(
            f'box {boxes[bad][0].tolist()} ends before it begins: boxes are (x1, y1, x2, y2), those of '
            'COCO (x, y, width, height); convert them'
        )
    bad = (labels < 1) | (labels >= num_classes)
    if bad.any():
        raise ValueError(
            f'label {labels[bad][0].item()} but num_classes={num_classes} knows objects 1 to '
            f'{num_classes - 1}, and 0 is the background: raise num_classes=, or correct the labels'
        )
