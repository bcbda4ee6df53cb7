# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Augmentation of images together with the labels of their pixels."""

from typing import Any

import kornia.augmentation as K
import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn


class LabelledAugmentation(nn.Module):
    """Flips, quarter turns, enlarged crops and changes of brightness, drawn for each image.

    Overhead imagery has no up. Masks follow the geometry by the nearest pixel; nothing is
    drawn in from outside the chip, so that no label has to be made up.
    """

    def __init__(
        self,
        size: int,
        scale: tuple[float, float] | None = (0.25, 1.0),
        brightness: float = 0.2,
        contrast: float = 0.2,
    ) -> None:
        """Initialize a new LabelledAugmentation instance.

        Args:
            size: Side of the chips in pixels, in and out.
            scale: Smallest and largest share of the chip's area that is enlarged to all of it;
                None for the whole chip. (0.25, 1) enlarges up to twice.
            brightness: Largest relative change.
            contrast: Largest relative change.
        """
        super().__init__()
        steps: list[Any] = [K.RandomHorizontalFlip(p=0.5), K.RandomVerticalFlip(p=0.5)]
        if scale is not None:
            steps.append(K.RandomResizedCrop((size, size), scale, (3 / 4, 4 / 3)))
        self.geometry = K.AugmentationSequential(
            *steps, data_keys=['input', 'mask'], same_on_batch=False
        )
        self.colour = K.ColorJitter(brightness, contrast, p=0.8)

    def forward(
        self,
        image: Float[Tensor, 'batch bands height width'],
        mask: Integer[Tensor, 'batch height width'] | None = None,
        valid: Bool[Tensor, 'batch height width'] | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Augment a batch.

        Args:
            image: In [0, 1].
            mask: Classes.
            valid: True where a pixel holds data.

        Returns:
            Image, mask and valid, augmented alike; None for what was None.
        """
        # Both go through as bands of one mask: whole numbers up to 2**24 are exact in float32
        blank = torch.zeros_like(image[:, 0])
        layers = [blank if part is None else part.to(image) for part in (mask, valid)]
        turned, followed = _turn(image, torch.stack(layers, 1))
        out, followed = self.geometry(turned, followed)
        out = self.colour(out).clamp(0, 1)
        if valid is not None:
            out = out * (followed[:, 1:] > 0.5)
        return (
            out,
            None if mask is None else followed[:, 0].round().to(mask.dtype),
            None if valid is None else followed[:, 1] > 0.5,
        )


def _turn(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Transpose every other image: with both flips these are all eight positions."""
    if image.shape[-1] != image.shape[-2]:
        return image, mask
    swap = (torch.rand(len(image), device=image.device) < 0.5)[:, None, None, None]
    return image.where(~swap, image.mT), mask.where(~swap, mask.mT)
