# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Augmentation of images together with their masks."""

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn

from ..ops.dihedral import dihedral_group
from .colour import Jitter
from .geometry import RandomCrops, draw_dihedrals, sampling_grid, warp_image, warp_mask


class LabelledAugmentation(nn.Module):
    """Rotations, flips, enlarged crops and changes of brightness, drawn for each image.

    Overhead imagery has no up; images that are not square make half turns only. Masks follow the
    geometry by the nearest pixel; nothing is drawn in from outside the chip, so that no label has
    to be made up.
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
            scale: Smallest and largest area of a crop, as fractions of the chip's, enlarged to all of it;
                None for the whole chip. (0.25, 1) enlarges up to twice.
            brightness: Largest relative change.
            contrast: Largest relative change.
        """
        super().__init__()
        self.size = (size, size)
        self.crop: RandomCrops | None = None
        if scale is not None:
            self.crop = RandomCrops(self.size, scale, (3 / 4, 4 / 3))
        self.colour = Jitter(brightness, contrast, p=0.8)

    @torch.compiler.disable
    @torch.no_grad()
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
        size = (image.shape[2], image.shape[3]) if self.crop is None else self.size
        group = dihedral_group(square=size[0] == size[1])
        geometry = draw_dihedrals(len(image), group, size)
        if self.crop is not None:
            geometry = geometry @ self.crop.draw(image)
        grid = sampling_grid(geometry, image, size)
        moved, known = warp_image(image, valid, grid)
        out = self.colour(moved).clamp(0, 1)
        labels = None if mask is None else warp_mask(mask, grid)
        if valid is None:
            return out, labels, None
        return out * known[:, None], labels, known
