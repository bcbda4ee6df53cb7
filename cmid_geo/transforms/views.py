# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Two located views of each chip."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..ops.cells import CELL, random_cell_mask
from ..ops.dihedral import dihedral_group
from ..ops.host import send
from ..ops.value_range import normalize
from .colour import strong_colour
from .geometry import (
    RandomCrops,
    draw_dihedrals,
    sampling_grid,
    sampling_shifts,
    stack_validity,
    warp_layers,
)

#: The authors' statistics of RGB imagery in [0, 1], which they use for every pretraining set.
RGB_MEAN = (0.33797, 0.3605, 0.3348)
RGB_STD = (0.1359, 0.1352, 0.1407)


def default_mean_std(bands: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
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
        image: Normalized pixels; where not valid, the chip's mean of the band.
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
        cell = self.valid.shape[1] // self.mask.shape[1]
        fraction = F.avg_pool2d(self.valid[:, None].float(), cell)
        return (fraction >= 0.5).flatten(1)


class TwoViews(nn.Module):
    """Chips in, two located and masked views out: a plain one, then a strongly altered one.

    Both are cropped, rotated and flipped, each on its own draw. What moves and colours them is
    drawn on the host and sent without waiting; pixels are worked on batched, on the chips'
    device. From chips more than 1.5 times as large as the views they are antialiased: what shrinks
    is averaged over the area of each pixel. If you use this transform, please cite
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
        cell: int = CELL,
        **colour: Any,
    ) -> None:
        """Initialize a new TwoViews instance.

        Args:
            size: Side of the views in pixels, a multiple of *cell*.
            mask_ratio: Fraction of the cells to hide, from 0 to 1.
            scale: Smallest and largest area of a crop, as fractions of the chip's.
            ratio: Narrowest and widest side ratio of a crop.
            turns: Whether to draw quarter turns too, and with them flips in all directions: imagery
                from above has no up.
            rgb: Whether the bands are red, green and blue, so that saturation and hue
                exist; by default, whether there are three.
            mean: Mean of each band in [0, 1], to normalize with; see
                :func:`~cmid_geo.transforms.views.default_mean_std`.
            std: Standard deviation of each band in [0, 1].
            field_offset: From the centre of a cell to the centre of what its vector sees, in pixels
                of the view to the right and downwards: a backbone's
                :attr:`~cmid_geo.models.MaskedBackbone.field_offset`. The authors match the cells'
                own centres, whatever the network.
            cell: Side of a cell in pixels, 32 or 16.
            **colour: Constants of :func:`~cmid_geo.transforms.colour.strong_colour`.

        Raises:
            ValueError: If *size* is no multiple of *cell*.
        """
        super().__init__()
        check_size(size, cell)
        self.size = size
        self.cell = cell
        self.mask_ratio = mask_ratio
        self.rgb = rgb
        self.field_offset = field_offset
        # Not persistent: who trains with these views keeps its own, and hands them over
        for name, values in {'mean': mean, 'std': std}.items():
            buffer = None if values is None else torch.tensor(values)
            self.register_buffer(name, buffer, False)
        self.register_load_state_dict_pre_hook(_keep_constants)

        self.crop = RandomCrops((size, size), scale, ratio)
        self.group = dihedral_group(quarters=turns)
        self.colours = nn.ModuleDict()
        self.colours['rgb'] = strong_colour(True, **colour)
        self.colours['any'] = strong_colour(False, **colour)

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
            if chips.ndim == 5:
                layers = [stack_validity(*date) for date in draw_dates(chips, valid)]
            else:
                layers = [stack_validity(chips, valid)] * 2
            views = []
            for place, image in enumerate(layers):
                warp = geometries[place] if geometries else self.draw_geometry(image)
                mask = masks[place] if masks else self.draw_mask(image)
                views.append(self._view(image, chips.shape[-3], warp, mask, place == 1))
        return views[0], views[1]

    def draw_geometry(self, chips: Float[Tensor, 'batch bands height width']) -> Tensor:
        """Draw a crop, and a rotation and flip of it, for each chip.

        Args:
            chips: Only their shape matters.

        Returns:
            Matrices (batch, 3, 3) in float64, on the host, that map pixel indices (x, y, 1) of a chip to
            those of its view.
        """
        size = (self.size, self.size)
        rotation = draw_dihedrals(len(chips), self.group, size)
        return rotation @ self.crop.draw(chips)

    def draw_mask(self, chips: Float[Tensor, 'batch bands height width']) -> Tensor:
        """Draw the cells to hide.

        Args:
            chips: Only their number matters.

        Returns:
            (batch, rows, cols) on the host, True where hidden.
        """
        side = self.size // self.cell
        return random_cell_mask(len(chips), side, side, self.mask_ratio)

    def _view(
        self, layers: Tensor, bands: int, geometry: Tensor, mask: Tensor, strong: bool
    ) -> View:
        size = (self.size, self.size)
        grid = sampling_grid(geometry, layers, size)
        shifts = sampling_shifts(geometry, layers, size)
        image, known = warp_layers(layers, bands, grid, shifts)
        if strong:
            rgb = bands == 3 if self.rgb is None else self.rgb
            image = self.colours['rgb' if rgb else 'any'](image).clamp_(0, 1)
        positions = send(self._positions(geometry).to(image.dtype), image)
        mean, std = default_mean_std(bands)
        mean = mean if self.mean is None else self.mean
        std = std if self.std is None else self.std
        image = normalize(image, mean, std)
        return View(image, send(mask, image), positions, known)

    def _positions(self, geometry: Tensor) -> Tensor:
        side = torch.arange(self.size // self.cell, device=geometry.device).to(geometry)
        centre = (side + 0.5) * self.cell - 0.5 + self.field_offset
        row, col = torch.meshgrid(centre, centre, indexing='ij')
        cells, back = torch.stack([col, row], dim=-1).view(-1, 2), geometry.inverse()
        return cells @ back[:, :2, :2].mT + back[:, None, :2, 2]


def _keep_constants(
    views: nn.Module, state: dict[str, Tensor], prefix: str, *_: object
) -> None:
    """Take nothing from a checkpoint: Kornia saves constants, which the arguments tell."""
    for name in [name for name in state if name.startswith(prefix)]:
        del state[name]
    state.update({f'{prefix}{name}': own for name, own in views.state_dict().items()})


def check_size(size: int, cell: int = CELL) -> None:
    """Refuse views that do not divide into cells.

    Args:
        size: Side of the views in pixels.
        cell: Side of a cell in pixels.

    Raises:
        ValueError: If *size* is no positive multiple of *cell*.
    """
    if size < cell or size % cell:
        below, above = max(size // cell, 1) * cell, (max(size, 0) // cell + 1) * cell
        raise ValueError(
            f'size={size} is no positive multiple of {cell}: views divide into cells of '
            f'{cell}x{cell} pixels, use {below} or {above}'
        )


def check_chips(chips: Tensor, valid: Tensor | None, size: int) -> None:
    """Refuse chips from which no views can be cut.

    Args:
        chips: (batch, bands, height, width) or (batch, dates, bands, height, width).
        valid: (batch, height, width) or (batch, dates, height, width), or None.
        size: Side of the views in pixels.

    Raises:
        ValueError: If a shape does not fit.
    """
    if chips.ndim not in (4, 5) or not chips.is_floating_point():
        raise ValueError(
            f'chips of shape {tuple(chips.shape)} and type {chips.dtype}: views are cut from floats '
            'in [0, 1] of shape (batch, bands, height, width) or (batch, dates, bands, height, width)'
        )
    height, width = chips.shape[-2:]
    if min(height, width) < size:
        raise ValueError(
            f'chips are {height}x{width} pixels but views need {size}: raise '
            'SceneDataModule(patch_size=...) or lower CMID(size=...)'
        )
    expected = chips.shape[:-3] + chips.shape[-2:]
    if valid is not None and valid.shape != expected:
        raise ValueError(
            f'valid has shape {tuple(valid.shape)} but the chips need {tuple(expected)}: '
            'pass one value a pixel, for each date if there are several'
        )


def draw_dates(
    chips: Tensor, valid: Tensor | None
) -> list[tuple[Tensor, Tensor | None]]:
    """Draw two dates of each place, different ones where there are two or more.

    Args:
        chips: (batch, dates, bands, height, width).
        valid: (batch, dates, height, width), or None.

    Returns:
        Chips and validity of the first date, and of the second.
    """
    batch, dates = chips.shape[:2]
    order = torch.rand(batch, dates, device=chips.device).argsort(dim=1)
    rows = torch.arange(batch, device=chips.device)
    drawn = [(rows, order[:, 0]), (rows, order[:, -1])]
    return [(chips[each], None if valid is None else valid[each]) for each in drawn]
