# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Alterations of images that move the boxes on them along.

Boxes are (x1, y1, x2, y2) in pixels from the image's upper left corner: a pixel at column 3 reaches
from 3 to 4. Flips and quarter turns move them exactly.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor, nn


@dataclass(frozen=True)
class Alteration:
    """What is done to an image, in this order.

    Attributes:
        flip: Whether left and right are exchanged.
        turns: Quarter turns counter-clockwise.
        scale: Size of what is shown, by its size before.
        left: Where the scaled image lies on one of the old size, or that on it: share of the
            free columns to its left, in [0, 1].
        top: Likewise, of the free rows above.
        contrast: Factor of the distance to the band's mean.
        brightness: Factor of all values, after that.
    """

    flip: bool = False
    turns: int = 0
    scale: float = 1.0
    left: float = 0.0
    top: float = 0.0
    contrast: float = 1.0
    brightness: float = 1.0


class BoxAugmentation(nn.Module):
    """Random flips, quarter turns, sizes and colours of images with boxes."""

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
            turns: Whether to turn by quarters. Images that are not square make half turns only.
            scale: Smallest and largest size of what is shown, by its size before. What is
                beyond the image is cut off, what is missing is 0.
            contrast: Largest relative change of contrast, in [0, 1].
            brightness: Largest relative change of brightness, in [0, 1].
            min_visible: Least share of a box that must stay in the image, else it goes.

        Raises:
            ValueError: If a number is out of range.
        """
        super().__init__()
        if not 0 < scale[0] <= scale[1]:
            raise ValueError(
                f'scale={scale} is the smallest and the largest size: give two positive numbers in order'
            )
        shares = {
            'contrast': contrast,
            'brightness': brightness,
            'min_visible': min_visible,
        }
        for name, value in shares.items():
            if not 0 <= value <= 1:
                raise ValueError(f'{name}={value} is a share: give one in [0, 1]')
        self.flips, self.turns, self.scale = flips, turns, scale
        self.contrast, self.brightness = contrast, brightness
        self.min_visible = min_visible

    def draw(self) -> Alteration:
        """Draw what is done to one image.

        Returns:
            It, drawn on the CPU, where boxes are dropped too.
        """
        chance = torch.rand(7).tolist()
        low, high = self.scale
        return Alteration(
            flip=self.flips and chance[0] < 0.5,
            turns=int(4 * chance[1]) if self.turns else 0,
            # As likely to halve as to double
            scale=low * (high / low) ** chance[2],
            left=chance[3],
            top=chance[4],
            contrast=1 + self.contrast * (2 * chance[5] - 1),
            brightness=1 + self.brightness * (2 * chance[6] - 1),
        )

    def forward(
        self,
        image: Float[Tensor, 'batch bands height width'],
        boxes: list[Tensor],
        labels: list[Tensor],
    ) -> tuple[Float[Tensor, 'batch bands height width'], list[Tensor], list[Tensor]]:
        """Alter each image of a batch in its own way.

        Args:
            image: In [0, 1].
            boxes: Of each image, (N, 4).
            labels: Of each box, (N).

        Returns:
            Images, boxes and labels.
        """
        images, all_boxes, all_labels = [], [], []
        for each, its_boxes, its_labels in zip(image, boxes, labels, strict=True):
            altered, moved = alter(each, its_boxes, self.draw())
            visible, kept = keep_visible(moved, *altered.shape[1:], self.min_visible)
            images.append(altered)
            all_boxes.append(visible)
            all_labels.append(its_labels[kept])
        return torch.stack(images), all_boxes, all_labels


def alter(
    image: Float[Tensor, 'bands height width'],
    boxes: Float[Tensor, 'n 4'],
    alteration: Alteration,
) -> tuple[Float[Tensor, 'bands height width'], Float[Tensor, 'n 4']]:
    """Alter an image and move its boxes along.

    Args:
        image: In [0, 1].
        boxes: On it.
        alteration: What to do. An image that is not square makes the half turns of it only.

    Returns:
        The image, of the same size, and the boxes, which may reach beyond it.
    """
    if alteration.flip:
        image, width = image.flip(-1), image.shape[-1]
        x1, y1, x2, y2 = boxes.unbind(1)
        boxes = torch.stack([width - x2, y1, width - x1, y2], 1)
    square = image.shape[1] == image.shape[2]
    for _ in range(alteration.turns if square else alteration.turns // 2 * 2):
        # Columns become rows, counted from the right
        image, width = image.rot90(1, (1, 2)), image.shape[-1]
        x1, y1, x2, y2 = boxes.unbind(1)
        boxes = torch.stack([y1, width - x2, y2, width - x1], 1)
    if alteration.scale != 1:
        image, boxes = _resize(image, boxes, alteration)
    mean = image.mean((1, 2), keepdim=True)
    image = (image - mean) * alteration.contrast + mean
    return (image * alteration.brightness).clamp(0, 1), boxes


def keep_visible(
    boxes: Float[Tensor, 'n 4'], height: int, width: int, min_visible: float = 0.0
) -> tuple[Float[Tensor, 'm 4'], Integer[Tensor, ' m']]:
    """Clip boxes to an image and drop those of which too little, or nothing, is left.

    Args:
        boxes: Whose second corner is right of and below the first.
        height: Of the image in pixels.
        width: Likewise.
        min_visible: Least share of a box's area that must be in the image, in [0, 1].

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


def _resize(
    image: Tensor, boxes: Tensor, alteration: Alteration
) -> tuple[Tensor, Tensor]:
    """Scale an image on a canvas of its own size."""
    height, width = image.shape[1:]
    rows = max(1, round(height * alteration.scale))
    cols = max(1, round(width * alteration.scale))
    scaled = F.interpolate(image[None], (rows, cols), mode='bilinear', antialias=True)
    # Negative where the scaled image is larger, and cut off
    left = round(alteration.left * (width - cols))
    top = round(alteration.top * (height - rows))
    canvas = F.pad(scaled[0], (left, width - cols - left, top, height - rows - top))
    factor = boxes.new_tensor([cols / width, rows / height] * 2)
    return canvas, boxes * factor + boxes.new_tensor([left, top] * 2)
