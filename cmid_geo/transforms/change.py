# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Two dates of one place, altered alike in geometry and apart in colour."""

from typing import Any

import kornia.augmentation as K
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..ops.cells import fill_invalid


class PairAugmentation(nn.Module):
    """Crops, flips and turns for both dates and their labels alike, colour for each date.

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
            turns: Whether to turn by quarters, if the output is square.
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
        self.colour = nn.Sequential(
            K.ColorJitter(brightness, contrast, p=colour_p),
            K.RandomGamma(gamma, (1.0, 1.0), p=colour_p),
        )

    @torch.compiler.disable
    @torch.no_grad()
    def forward(
        self,
        image: Float[Tensor, 'batch 2 bands height width'],
        mask: Int[Tensor, 'batch height width'],
        valid: Bool[Tensor, 'batch height width'] | None = None,
        geometry: Float[Tensor, 'batch 2 3'] | None = None,
    ) -> tuple[
        Float[Tensor, 'batch 2 bands rows cols'],
        Int[Tensor, 'batch rows cols'],
        Bool[Tensor, 'batch rows cols'],
    ]:
        """Alter pairs.

        Args:
            image: Both dates, in [0, 1].
            mask: Labels.
            valid: True where both dates hold data; everywhere by default.
            geometry: What to use instead of a draw, see :meth:`draw`.

        Returns:
            Image, labels and where they are valid.
        """
        geometry = self.draw(image) if geometry is None else geometry
        size = self.size or (image.shape[-2], image.shape[-1])
        grid = sampling_grid(geometry, (image.shape[-2], image.shape[-1]), size)
        # Both dates are layers of one image: what moves one moves the other
        filled, known = fill_invalid(image.flatten(1, 2).float(), valid)
        layers = torch.cat([filled, known[:, None].float()], dim=1)
        # Validity ends with the image, colours go on
        moved = F.grid_sample(layers, grid, padding_mode='border', align_corners=True)
        inside = (grid.abs() <= 1 + 1e-4).all(dim=-1)
        known = (moved[:, -1] > 1 - 1e-3) & inside
        labels = F.grid_sample(
            mask[:, None].double(),
            grid.double(),
            'nearest',
            'border',
            align_corners=True,
        )
        labels = labels[:, 0].round().to(mask.dtype)
        if self.ignore_index is not None:
            labels = labels.where(known, self.ignore_index)
        pair = moved[:, :-1].unflatten(1, image.shape[1:3])
        coloured = self.colour(pair.flatten(0, 1).clamp(0, 1)).clamp(0, 1)
        return (
            coloured.unflatten(0, pair.shape[:2]) * known[:, None, None], labels, known,
        )  # fmt: skip

    def draw(
        self, image: Float[Tensor, '*batch_dates_bands height width']
    ) -> Float[Tensor, 'batch 2 3']:
        """Draw a crop, a zoom, flips and a turn for each pair.

        Args:
            image: Only its shape and device matter.

        Returns:
            Matrices in float64 that map pixel indices (x, y, 1), counted from the output's
            centre, to pixel indices of the image.
        """
        batch, (height, width) = len(image), image.shape[-2:]
        rows, cols = self.size or (height, width)
        made: dict[str, Any] = {'device': image.device, 'dtype': torch.float64}
        zoom = torch.empty(batch, **made).uniform_(*self.zoom)
        turn = torch.randint(
            4 if self.turns and rows == cols else 1, (batch,), device=image.device
        )
        flip = torch.randint(2 if self.flips else 1, (2, batch), **made)
        # Cosine and sine of 0, 90, 180 and 270 degrees, exactly
        cos, sin = (torch.tensor(values, **made)[turn] for values in (
            (1.0, 0.0, -1.0, 0.0), (0.0, 1.0, 0.0, -1.0)
        ))  # fmt: skip
        across, down = (1 - 2 * flip) / zoom
        linear = torch.stack([across * cos, -across * sin, down * sin, down * cos], -1)
        centre = [
            _centres(extent, wanted / zoom)
            for extent, wanted in ((width, cols), (height, rows))
        ]
        return torch.cat(
            [linear.view(batch, 2, 2), torch.stack(centre, -1)[..., None]], -1
        )


def sampling_grid(
    geometry: Float[Tensor, 'batch 2 3'], extent: tuple[int, int], size: tuple[int, int]
) -> Float[Tensor, 'batch rows cols 2']:
    """Where the pixels of the output lie on the image, as ``grid_sample`` counts.

    Args:
        geometry: See :meth:`PairAugmentation.draw`.
        extent: (height, width) of the image in pixels.
        size: (rows, cols) of the output in pixels.

    Returns:
        (x, y), -1 and 1 at the centres of the outermost pixels.
    """
    made: dict[str, Any] = {'device': geometry.device, 'dtype': geometry.dtype}
    rows, cols = (torch.arange(side, **made) - (side - 1) / 2 for side in size)
    y, x = torch.meshgrid(rows, cols, indexing='ij')
    places = torch.stack([x, y, torch.ones_like(x)], -1)
    pixels = torch.einsum('bij,hwj->bhwi', geometry, places)
    last = torch.tensor([extent[1] - 1, extent[0] - 1], **made).clamp_min(1)
    return (2 * pixels / last - 1).float()


def _centres(extent: int, wanted: Tensor) -> Tensor:
    """Draw where windows of a width lie along an axis; those that are wider, in its middle."""
    # Whole pixels, so that nothing is interpolated where nothing is zoomed
    spare = (extent - wanted).clamp_min(0)
    start = (torch.rand_like(wanted) * (spare + 1)).floor().minimum(spare)
    beyond = ((extent - wanted) / 2).floor()
    return start.where(wanted <= extent, beyond) + (wanted - 1) / 2
