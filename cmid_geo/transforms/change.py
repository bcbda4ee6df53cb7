# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Augmentation of pairs of images: alike in geometry, each date on its own in colour."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..ops.dihedral import dihedral_group, draw_rotations
from .colour import plain_colour
from .geometry import around, sampling_grid, warp_image, warp_mask


class PairAugmentation(nn.Module):
    """Crops, rotations and flips for both dates and their labels alike, colour for each date.

    Images are interpolated bilinearly, labels take the nearest pixel. Without zoom pixels move
    by whole numbers, and none is interpolated. What was drawn from outside the image, or from
    pixels that are not valid, is not valid, and 0.
    """

    def __init__(
        self,
        size: int | tuple[int, int] | None = None,
        zoom: tuple[float, float] = (1.0, 1.0),
        flips: bool = True,
        turns: bool = True,
        brightness: float = 0.2,
        contrast: float = 0.2,
        gamma: tuple[float, float] = (0.8, 1.25),
        colour_p: float = 0.5,
        ignore_index: int | None = None,
    ) -> None:
        """Initialize a new PairAugmentation instance.

        Args:
            size: Side, or (height, width), of a random crop in pixels; by default all of the
                image, in its own size.
            zoom: Smallest and largest enlargement.
            flips: Whether to flip.
            turns: Whether to rotate by quarter turns, if the output is square.
            brightness: Largest relative change of brightness.
            contrast: Largest relative change of contrast.
            gamma: Smallest and largest exponent.
            colour_p: Probability of brightness and contrast, and of gamma, for each date.
            ignore_index: Label of pixels that are not valid; by default they keep the nearest.

        Raises:
            ValueError: If *zoom* is no range of factors above 0.
        """
        super().__init__()
        if not 0 < zoom[0] <= zoom[1]:
            raise ValueError(
                f'zoom={zoom} is the smallest and the largest enlargement: give 0 < first <= second'
            )
        self.size = (size, size) if isinstance(size, int) else size
        self.zoom, self.flips, self.turns = zoom, flips, turns
        self.ignore_index = ignore_index
        # Saturation and hue would need red, green and blue
        self.colour = plain_colour(brightness, contrast, gamma, colour_p)

    @torch.compiler.disable
    @torch.no_grad()
    def forward(
        self,
        image: Float[Tensor, 'batch 2 bands height width'],
        mask: Int[Tensor, 'batch height width'],
        valid: Bool[Tensor, 'batch height width'] | None = None,
        geometry: Float[Tensor, 'batch 3 3'] | None = None,
    ) -> tuple[
        Float[Tensor, 'batch 2 bands rows cols'],
        Int[Tensor, 'batch rows cols'],
        Bool[Tensor, 'batch rows cols'],
    ]:
        """Augment pairs.

        Args:
            image: Both dates, in [0, 1].
            mask: Labels.
            valid: True where both dates hold data; everywhere by default.
            geometry: What to use instead of a draw, see :meth:`draw`.

        Returns:
            Image, labels and where they are valid.
        """
        geometry = self.draw(image) if geometry is None else geometry
        # Both dates are layers of one image: what moves one moves the other
        layers, size = image.flatten(1, 2).float(), self._size(image)
        grid = sampling_grid(geometry, layers, size)
        moved, known = warp_image(layers, valid, grid)
        labels = warp_mask(mask, grid)
        if self.ignore_index is not None:
            labels = labels.where(known, self.ignore_index)
        pair = moved.unflatten(1, image.shape[1:3])
        coloured = self.colour(pair.flatten(0, 1)).clamp(0, 1).view_as(pair)
        return coloured * known[:, None, None], labels, known

    def draw(
        self, image: Float[Tensor, '*batch_dates_bands height width']
    ) -> Float[Tensor, 'batch 3 3']:
        """Draw a crop, a zoom, a rotation and flips for each pair.

        Args:
            image: Only its shape matters.

        Returns:
            Matrices in float64 that map pixel indices (x, y, 1) of the image to those of the output.
        """
        batch, (rows, cols) = len(image), self._size(image)
        if self.turns and rows == cols:
            group = dihedral_group(flip=self.flips)
        else:
            group = dihedral_group(False, self.flips, self.flips)
        rotation = draw_rotations(batch, group)
        zoom = rotation.new_empty(batch).uniform_(*self.zoom)
        height, width = image.shape[-2:]
        centre = [_centres(width, cols / zoom), _centres(height, rows / zoom)]
        linear = rotation * zoom[:, None, None]
        return around(linear, torch.stack(centre, -1), (rows, cols))

    def _size(self, image: Tensor) -> tuple[int, int]:
        return self.size or (image.shape[-2], image.shape[-1])


def _centres(extent: int, wanted: Tensor) -> Tensor:
    """Draw where windows of a width lie along an axis; those that are wider, in its middle."""
    # Whole pixels, so that nothing is interpolated where nothing is zoomed
    spare = (extent - wanted).clamp_min(0)
    start = (torch.rand_like(wanted) * (spare + 1)).floor().minimum(spare)
    beyond = ((extent - wanted) / 2).floor()
    return start.where(wanted <= extent, beyond) + (wanted - 1) / 2
