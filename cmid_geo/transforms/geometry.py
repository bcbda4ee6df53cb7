# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Crops, rotations and flips of batches of images, each by a matrix of its own.

A matrix (3, 3) in float64 maps the pixel indices (x, y, 1) of an image to those of its output: an
integer is the centre of a pixel.
"""

import kornia.augmentation as K
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer
from kornia.geometry.conversions import normalize_homography
from torch import Tensor

from ..ops.cells import fill_invalid
from ..ops.dihedral import Dihedral, draw_rotations


def draw_crops(
    crop: K.RandomResizedCrop, image: Float[Tensor, 'batch *bands height width']
) -> Float[Tensor, 'batch 3 3']:
    """Draw a crop of each image in Kornia's way, from the host's generator.

    Args:
        crop: What to draw from.
        image: Only its shape and device matter.

    Returns:
        Matrices from the image to the enlarged crop.
    """
    # Kornia asks an image for its shape, type and device only: this one holds one value
    like = torch.zeros((), dtype=torch.float64, device=image.device)
    like = like.expand(len(image), 1, *image.shape[-2:])
    drawn = crop.forward_parameters(like.shape)
    return crop.compute_transformation(like, drawn, crop.flags)


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
    batch: int, group: tuple[Dihedral, ...], size: tuple[int, int], device: torch.device
) -> Float[Tensor, 'batch 3 3']:
    """Draw rotations and flips that leave images where they are.

    Args:
        batch: Number of images.
        group: What to draw from.
        size: (height, width) of the images in pixels.
        device: Where to draw.

    Returns:
        The matrices.
    """
    middle = (torch.tensor([size[1], size[0]]) - 1) / 2
    return around(draw_rotations(batch, group, device), middle, size)


def sampling_grid(
    geometry: Float[Tensor, 'batch 3 3'],
    image: Float[Tensor, 'batch *bands height width'],
    size: tuple[int, int],
) -> Float[Tensor, 'batch rows cols 2']:
    """Places of the output's pixels on the image, as ``grid_sample`` counts.

    Args:
        geometry: Matrices from image to output.
        image: Only its shape and type matter.
        size: (rows, cols) of the output in pixels.

    Returns:
        (x, y), -1 and 1 at the centres of the outermost pixels.
    """
    extent = (image.shape[-2], image.shape[-1])
    # Inverted in double precision: in single it is off by thousandths of a pixel
    theta = torch.linalg.inv(normalize_homography(geometry, extent, size))
    shape = [len(theta), 1, *size]
    return F.affine_grid(theta[:, :2].to(image.dtype), shape, align_corners=True)


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
    image, valid = fill_invalid(image, valid)
    # Validity travels as one more band
    layers = torch.cat([image, valid[:, None].to(image.dtype)], dim=1)
    # Validity ends with the image, colours go on
    warped = F.grid_sample(layers, grid, padding_mode='border', align_corners=True)
    inside = (grid.abs() <= 1 + 1e-4).all(dim=-1)
    # Interpolated from valid pixels alone, 1 keeps 1 to rounding
    return warped[:, :-1].clamp(0, 1), (warped[:, -1] > 1 - 1e-4) & inside


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
