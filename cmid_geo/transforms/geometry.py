# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Crops, rotations and flips of batches of images, each by a matrix of its own.

A matrix (3, 3) in float64 maps the pixel indices (x, y, 1) of an image to those of its output: an
integer is the centre of a pixel. Matrices are drawn and inverted on the host, which is faster
for a few numbers and lets the device go on; only where pixels come from is sent there.
"""

import math
from collections.abc import Sequence
from functools import partial

import kornia.augmentation as K
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from ..ops.cells import fill_invalid
from ..ops.dihedral import Dihedral, draw_rotations
from ..ops.host import send


class RandomCrops:
    """Crops in Kornia's way, from the host's generator.

    No module: what moves a task to a device would move Kornia's generator along.
    """

    def __init__(
        self,
        size: tuple[int, int],
        scale: tuple[float, float],
        ratio: tuple[float, float],
    ) -> None:
        """Initialize a new RandomCrops instance.

        Args:
            size: (height, width) of the enlarged crops in pixels.
            scale: Smallest and largest area of a crop, as fractions of the image's.
            ratio: Narrowest and widest side ratio of a crop.
        """
        self.size = size
        self.crop = K.RandomResizedCrop(size, scale, ratio)

    def draw(
        self, image: Float[Tensor, 'batch *bands height width']
    ) -> Float[Tensor, 'batch 3 3']:
        """Draw a crop of each image.

        Args:
            image: Only its shape matters.

        Returns:
            Matrices from the image to the enlarged crop.
        """
        shape = torch.Size([len(image), 1, *image.shape[-2:]])
        corners = self.crop.forward_parameters(shape)['src'].double()
        # Clockwise from the upper left: the centres of the outermost pixels
        first, last = corners[:, 0], corners[:, 2]
        extent = torch.tensor([self.size[1], self.size[0]]) - 1
        zoom = extent / (last - first).clamp_min(1)
        matrix = torch.eye(3).double().repeat(len(image), 1, 1)
        matrix[:, :2, :2] = torch.diag_embed(zoom)
        matrix[:, :2, 2] = -first * zoom
        return matrix


def around(
    linear: Float[Tensor, 'batch 2 2'],
    centre: Float[Tensor, '*#batch 2'],
    size: tuple[int, int],
) -> Float[Tensor, 'batch 3 3']:
    """Matrices that map a point of images to the centre of the output.

    Args:
        linear: What is done about the point.
        centre: The point (x, y) in pixel indices of each image.
        size: (height, width) of the output in pixels.

    Returns:
        The matrices.
    """
    middle = (linear.new_tensor([size[1], size[0]]) - 1) / 2
    offset = middle - (linear @ centre.to(linear)[..., None])[..., 0]
    last = linear.new_tensor([0, 0, 1]).expand(len(linear), 1, 3)
    return torch.cat([torch.cat([linear, offset[..., None]], 2), last], 1)


def draw_dihedrals(
    batch: int, group: tuple[Dihedral, ...], size: tuple[int, int]
) -> Float[Tensor, 'batch 3 3']:
    """Draw rotations and flips that leave images where they are.

    Args:
        batch: Number of images.
        group: What to draw from.
        size: (height, width) of the images in pixels.

    Returns:
        The matrices.
    """
    middle = (torch.tensor([size[1], size[0]]) - 1) / 2
    return around(draw_rotations(batch, group), middle, size)


def sampling_grid(
    geometry: Float[Tensor, 'batch 3 3'],
    image: Float[Tensor, 'batch *bands height width'],
    size: tuple[int, int],
) -> Float[Tensor, 'batch rows cols 2']:
    """Places of the output's pixels on the image, as ``grid_sample`` counts.

    Args:
        geometry: Matrices from image to output.
        image: Only its shape, type and device matter.
        size: (rows, cols) of the output in pixels.

    Returns:
        (x, y) on the image's device, -1 and 1 at the centres of the outermost pixels.
    """
    # Inverted in double precision: in single it is off by thousandths of a pixel
    back = torch.linalg.inv(geometry)
    half, reach = _reach(geometry, size), _reach(geometry, image.shape[-2:])
    middle = back[:, :2, :2] @ half + back[:, :2, 2]
    linear = back[:, :2, :2] * half / reach[:, None]
    theta = torch.cat([linear, (middle / reach - 1)[..., None]], 2)
    shape = [len(theta), 1, *size]
    return F.affine_grid(send(theta.to(image.dtype), image), shape, align_corners=True)


def sampling_shifts(
    geometry: Float[Tensor, 'batch 3 3'],
    image: Float[Tensor, 'batch *bands height width'],
    size: tuple[int, int],
) -> Float[Tensor, 'shifts batch 1 1 2'] | None:
    r"""Shifts of a sampling grid between which shrunk images are averaged, against aliasing.

    Bilinear sampling sees two pixels along an axis, however many become one. With :math:`k`
    samples a pixel and axis, the sides' quotient rounded, an axis that shrinks :math:`f` times
    has them

    .. math::

        \sqrt{(f^2 - 1) / (k^2 - 1)}

    pixels of the image apart: their spread is that of an average over the pixel's area, which
    they are where :math:`f = k`, and nothing where nothing shrinks.

    Args:
        geometry: Matrices from image to output.
        image: Only its shape, type and device matter.
        size: (rows, cols) of the output in pixels.

    Returns:
        What to add to :func:`sampling_grid`, on the image's device; None if images are
        at most 1.5 times as large as the output. The number hangs on the sizes alone, so that
        shapes stay fixed whatever is drawn.
    """
    larger = max(image.shape[-2] / size[0], image.shape[-1] / size[1])
    samples = math.ceil(larger - 0.5)
    if samples < 2:
        return None
    linear = torch.linalg.inv(geometry)[:, :2, :2]
    # Pixels of the image from one of the output to the next, along its x and its y
    shrinking = torch.linalg.vector_norm(linear, dim=1).clamp_min(1)
    spacing = ((1 - shrinking**-2) / (samples**2 - 1)).sqrt()
    steps = torch.arange(samples).to(geometry) - (samples - 1) / 2
    offsets = spacing * torch.cartesian_prod(steps, steps)[:, None]
    shifts = (linear @ offsets[..., None])[..., 0]
    shifts = shifts / _reach(geometry, image.shape[-2:])
    return send(shifts.to(image.dtype), image)[:, :, None, None]


def _reach(like: Tensor, size: Sequence[int]) -> Tensor:
    """From the middle of an image of (height, width) pixels to the centre of its last one, (x, y)."""
    return like.new_tensor([max(side - 1, 1) for side in reversed(size)]) / 2


def warp_image(
    image: Float[Tensor, 'batch bands height width'],
    valid: Bool[Tensor, 'batch height width'] | None,
    grid: Float[Tensor, 'batch rows cols 2'],
) -> tuple[Float[Tensor, 'batch bands rows cols'], Bool[Tensor, 'batch rows cols']]:
    """Warp images bilinearly, once for all that is done to them.

    Args:
        image: In [0, 1]; anything where not valid.
        valid: True where a pixel holds data; everywhere by default.
        grid: Of :func:`sampling_grid`.

    Returns:
        The images, clamped to [0, 1]; and True where a pixel lies on the image and all pixels
        that it was drawn from are valid.
    """
    return warp_layers(stack_validity(image, valid), image.shape[1], grid)


def stack_validity(
    image: Float[Tensor, 'batch bands height width'],
    valid: Bool[Tensor, 'batch height width'] | None,
) -> Float[Tensor, 'batch layers height width']:
    """Make layers that may be warped, in any number of ways.

    Args:
        image: Anything where not valid.
        valid: True where a pixel holds data; everywhere by default.

    Returns:
        The image, where not valid the band's mean; and validity as one more band, unless all is
        valid.
    """
    if valid is None:
        return image
    filled, _ = fill_invalid(image, valid)
    return torch.cat([filled, valid[:, None].to(image.dtype)], dim=1)


def warp_layers(
    layers: Float[Tensor, 'batch layers height width'],
    bands: int,
    grid: Float[Tensor, 'batch rows cols 2'],
    shifts: Float[Tensor, 'shifts batch 1 1 2'] | None = None,
) -> tuple[Float[Tensor, 'batch bands rows cols'], Bool[Tensor, 'batch rows cols']]:
    """Warp images and their validity in one go, see :func:`warp_image`.

    Args:
        layers: Of :func:`stack_validity`.
        bands: Number of bands of the images.
        grid: Of :func:`sampling_grid`.
        shifts: Of :func:`sampling_shifts`; by default images are sampled once.

    Returns:
        What :func:`warp_image` does.
    """
    # Validity ends with the image, colours go on
    sample = partial(F.grid_sample, padding_mode='border', align_corners=True)
    if shifts is None:
        warped = sample(layers, grid)
    else:
        # As far to one side as to the other, at the image's edge too: places stay true
        room = (1 - grid.abs()).clamp_min(0)
        places = (grid + shift.clamp(-room, room) for shift in shifts)
        warped = torch.zeros_like(grid[:, None, ..., 0])
        for place in places:
            warped = warped + sample(layers, place) / len(shifts)
    count = 1 if shifts is None else len(shifts)
    inside = (grid.abs() <= 1 + 1e-4).all(dim=-1)
    if layers.shape[1] > bands:
        # Interpolated from valid pixels alone, 1 keeps 1 to rounding
        inside = inside & (warped[:, -1] > 1 - 1e-4 / count)
    return warped[:, :bands].clamp(0, 1), inside


def warp_mask(
    mask: Integer[Tensor, 'batch height width'],
    grid: Float[Tensor, 'batch rows cols 2'],
) -> Integer[Tensor, 'batch rows cols']:
    """Warp masks by the nearest pixel.

    Args:
        mask: Labels.
        grid: Of :func:`sampling_grid`.

    Returns:
        The labels, of the type they came in.
    """
    # Whole numbers up to 2**53 are exact in double precision
    layers, places = mask[:, None].double(), grid.double()
    warped = F.grid_sample(layers, places, 'nearest', 'border', align_corners=True)
    return warped[:, 0].round().to(mask.dtype)
