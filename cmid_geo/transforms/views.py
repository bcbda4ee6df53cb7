# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Two located views of each chip."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import kornia.augmentation as K
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from kornia.geometry.conversions import normalize_homography
from kornia.geometry.linalg import transform_points
from torch import Tensor, nn

from ..ops.cells import CELL, fill_invalid, random_cell_mask
from .chips import check_chips, check_size, draw_dates
from .colour import strong_colour

#: The authors' statistics of RGB imagery in [0, 1], which they use for every pretraining set.
RGB_MEAN = (0.33797, 0.3605, 0.3348)
RGB_STD = (0.1359, 0.1352, 0.1407)


def default_standardisation(bands: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation to use where the data's own are not known.

    Args:
        bands: Number of bands.

    Returns:
        The authors' values for three bands; for others 0.5 and 0.25, the middle of [0, 1]
        and a usual spread in it.
    """
    if bands == 3:
        return RGB_MEAN, RGB_STD
    return (0.5,) * bands, (0.25,) * bands


@dataclass(frozen=True)
class View:
    """A look at a chip, and where on the chip each of its cells lies.

    Attributes:
        image: Standardised pixels; where not valid, the chip's mean of the band.
        mask: True where a cell is hidden from the student.
        positions: Centres (x, y) of what the cells' vectors see, row by row, in pixel indices
            of the chip: an integer is the centre of a pixel.
        valid: True where a pixel holds data, and so did all pixels it was drawn from.
    """

    image: Float[Tensor, 'batch bands height width']
    mask: Bool[Tensor, 'batch rows cols']
    positions: Float[Tensor, 'batch cells 2']
    valid: Bool[Tensor, 'batch height width']

    @property
    def valid_cells(self) -> Bool[Tensor, 'batch cells']:
        """Whether at least half of a cell is valid."""
        share = F.avg_pool2d(self.valid[:, None].float(), CELL)
        return (share >= 0.5).flatten(1)


class TwoViews(nn.Module):
    """Chips in, two located and masked views out: a plain one, then a strongly altered one.

    Both are cropped, flipped and turned, each on its own draw. Everything runs batched and
    on the chips' device. If you use this transform, please cite
    https://doi.org/10.1109/TGRS.2023.3268232.
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(
        self,
        size: int = 224,
        mask_ratio: float = 0.6,
        scale: tuple[float, float] = (0.3, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        turns: bool = True,
        rgb: bool | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        field_offset: float = 0.0,
        **colour: Any,
    ) -> None:
        """Initialize a new TwoViews instance.

        Args:
            size: Side of the views in pixels, a multiple of 32.
            mask_ratio: Share of the cells to hide, from 0 to 1.
            scale: Smallest and largest area of a crop, as shares of the chip's.
            ratio: Narrowest and widest side ratio of a crop.
            turns: Whether to draw vertical flips and quarter turns too: imagery from
                above has no up.
            rgb: Whether the bands are red, green and blue, so that saturation and hue
                exist; by default, whether there are three.
            mean: Mean of each band in [0, 1], to standardise with; see
                :func:`default_standardisation`.
            std: Standard deviation of each band in [0, 1].
            field_offset: From the centre of a cell to the centre of what its vector sees, in pixels
                of the view to the right and downwards: a backbone's
                :attr:`~cmid_geo.models.MaskedBackbone.field_offset`. The authors match the cells'
                own centres, whatever the network.
            **colour: Constants of :func:`~cmid_geo.transforms.colour.strong_colour`.

        Raises:
            ValueError: If *size* is no multiple of 32.
        """
        super().__init__()
        check_size(size)
        self.size = size
        self.mask_ratio = mask_ratio
        self.rgb = rgb
        self.field_offset = field_offset
        # Not persistent: who trains with these views keeps its own, and hands them over
        self.register_buffer(
            'mean', None if mean is None else torch.tensor(mean), False
        )
        self.register_buffer('std', None if std is None else torch.tensor(std), False)

        self.crop = _Geometry(
            K.RandomResizedCrop(
                (size, size),
                scale=scale,
                ratio=ratio,
                cropping_mode='resample',
                align_corners=True,
            )
        )
        flips: list[nn.Module] = [K.RandomHorizontalFlip(p=0.5)]
        if turns:
            flips += [K.RandomVerticalFlip(p=0.5), K.RandomRotation90((0, 3), p=1.0)]
        self.flip = _Geometry(*flips)
        self.colours = nn.ModuleDict(
            {
                'rgb': strong_colour(True, **colour),
                'any': strong_colour(False, **colour),
            }
        )

    # Drawing is data-dependent Python: compilers step over it
    @torch.compiler.disable
    @torch.no_grad()
    def forward(
        self,
        chips: Float[Tensor, 'batch *dates_bands height width'],
        valid: Bool[Tensor, 'batch *dates height width'] | None = None,
        geometries: tuple[Float[Tensor, 'batch 3 3'], Float[Tensor, 'batch 3 3']]
        | None = None,
        masks: tuple[Bool[Tensor, 'batch rows cols'], Bool[Tensor, 'batch rows cols']]
        | None = None,
    ) -> tuple[View, View]:
        """Draw two views of each chip.

        Args:
            chips: Bands in [0, 1]: (batch, bands, height, width), or (batch, dates, bands,
                height, width), of which each view gets a date of its own.
            valid: True where a pixel holds data: (batch, height, width) or (batch, dates,
                height, width); everywhere by default.
            geometries: Maps from chip to view pixels to use instead of drawn ones, see
                :meth:`draw_geometry`.
            masks: Hidden cells to use instead of drawn ones.

        Returns:
            The plain view and the strong one.

        Raises:
            ValueError: If the chips are smaller than the views.
        """
        check_chips(chips, valid, self.size)
        with torch.autocast(chips.device.type, enabled=False):
            chips = chips if chips.dtype == torch.float64 else chips.float()
            dates = (
                draw_dates(chips, valid) if chips.ndim == 5 else [(chips, valid)] * 2
            )
            images = [fill_invalid(image, known) for image, known in dates]
            views = []
            for number, (image, known) in enumerate(images):
                geometry = (
                    geometries[number] if geometries else self.draw_geometry(image)
                )
                mask = masks[number] if masks else self.draw_mask(image)
                views.append(
                    self._view(image, known, geometry, mask, strong=number == 1)
                )
        return views[0], views[1]

    def draw_geometry(self, chips: Float[Tensor, 'batch bands height width']) -> Tensor:
        """Draw a crop, flips and a quarter turn for each chip.

        Args:
            chips: Only their shape, type and device matter.

        Returns:
            Matrices (batch, 3, 3) in float64 that map pixel indices (x, y, 1) of a chip to
            those of its view.
        """
        batch, device = len(chips), chips.device
        cropped = self.crop.draw(batch, *chips.shape[-2:], device)
        return self.flip.draw(batch, self.size, self.size, device) @ cropped

    def draw_mask(self, chips: Float[Tensor, 'batch bands height width']) -> Tensor:
        """Draw the cells to hide.

        Args:
            chips: Only their number and device matter.

        Returns:
            (batch, rows, cols), True where hidden.
        """
        side = self.size // CELL
        return random_cell_mask(len(chips), side, side, self.mask_ratio, chips.device)

    def _view(
        self, image: Tensor, valid: Tensor, geometry: Tensor, mask: Tensor, strong: bool
    ) -> View:
        # One warp for all of crop, flips and turns; validity travels as one more band
        layers = torch.cat([image, valid[:, None].to(image.dtype)], dim=1)
        chip, view = (image.shape[2], image.shape[3]), (self.size, self.size)
        # Inverted in double precision: in single it is off by thousandths of a pixel
        theta = torch.linalg.inv(normalize_homography(geometry, chip, view))
        grid = F.affine_grid(
            theta[:, :2].to(image.dtype), [*layers.shape[:2], *view], align_corners=True
        )
        warped = F.grid_sample(layers, grid, padding_mode='border', align_corners=True)
        # Interpolated from valid pixels alone, 1 keeps 1 to rounding
        known = warped[:, -1] > 1 - 1e-4
        image = warped[:, :-1].clamp(0, 1)
        if strong:
            rgb = image.shape[1] == 3 if self.rgb is None else self.rgb
            image = self.colours['rgb' if rgb else 'any'](image).clamp(0, 1)
        positions = self._positions(geometry).to(image.dtype)
        return View(self._standardise(image), mask, positions, known)

    def _standardise(self, image: Tensor) -> Tensor:
        mean, std = default_standardisation(image.shape[1])
        centre = image.new_tensor(mean) if self.mean is None else self.mean.to(image)
        spread = image.new_tensor(std) if self.std is None else self.std.to(image)
        return (image - centre[:, None, None]) / spread[:, None, None]

    def _positions(self, geometry: Tensor) -> Tensor:
        side = torch.arange(
            self.size // CELL, device=geometry.device, dtype=geometry.dtype
        )
        centre = (side + 0.5) * CELL - 0.5 + self.field_offset
        row, col = torch.meshgrid(centre, centre, indexing='ij')
        cells = torch.stack([col, row], dim=-1).view(1, -1, 2)
        return transform_points(
            torch.linalg.inv(geometry), cells.expand(len(geometry), -1, -1)
        )


class _Geometry(K.AugmentationSequential):
    """Geometric augmentations of which only the drawn matrices are wanted."""

    def __init__(self, *steps: Any) -> None:
        """Initialize from Kornia's augmentations, none of which changes the size but the last."""
        super().__init__(*steps, data_keys=['input'])

    def draw(self, batch: int, height: int, width: int, device: torch.device) -> Tensor:
        """Draw for images of a size and return the matrices (batch, 3, 3) in float64."""
        # Kornia asks an image for its shape, type and device only: this one holds one value
        image = torch.zeros((), dtype=torch.float64, device=device)
        image = image.expand(batch, 1, height, width)
        # Drawn in Kornia's way, from the host's generator
        parameters = self.forward_parameters(image.shape)
        matrix: Any = self.get_transformation_matrix(image, parameters, recompute=True)
        return matrix.to(image)
