# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Random changes of colour, on the images' device."""

from collections.abc import Callable
from functools import partial

import kornia.augmentation as K
import torch
from jaxtyping import Float
from torch import Tensor, nn


def strong_colour(
    rgb: bool,
    brightness: float = 0.4,
    contrast: float = 0.4,
    saturation: float = 0.2,
    hue: float = 0.1,
    gamma: tuple[float, float] = (0.8, 1.25),
    jitter_p: float = 0.8,
    blur_sigma: tuple[float, float] = (0.1, 2.0),
    blur_p: float = 1.0,
    noise_std: tuple[float, float] = (0.012, 0.028),
    noise_p: float = 0.6,
    solarize_p: float = 0.2,
    grey_p: float = 0.2,
) -> nn.Module:
    """The strong view's changes of colour, in the paper's order.

    Saturation and hue need red, green and blue; other bands get a gamma in their place.

    Args:
        rgb: Whether the bands are red, green and blue.
        brightness: Largest relative change of brightness.
        contrast: Largest relative change of contrast.
        saturation: Largest relative change of saturation.
        hue: Largest rotation of the hue, as a fraction of the circle.
        gamma: Smallest and largest exponent, where *rgb* is False.
        jitter_p: Probability of the four above.
        blur_sigma: Narrowest and widest Gaussian blur in pixels.
        blur_p: Probability of the blur.
        noise_std: Weakest and strongest Gaussian noise, on [0, 1].
        noise_p: Probability of the noise.
        solarize_p: Probability of inverting all values above 0.5.
        grey_p: Probability of giving all bands the same values.

    Returns:
        A module from (batch, bands, height, width) in [0, 1] to the same.
    """
    jitter = plain_colour(brightness, contrast, gamma, jitter_p)
    grey: nn.Module = Randomly(band_mean, grey_p)
    if rgb:
        jitter = K.ColorJitter(brightness, contrast, saturation, hue, p=jitter_p)
        grey = K.RandomGrayscale(p=grey_p)
    return nn.Sequential(
        jitter,
        K.RandomGaussianBlur((7, 7), blur_sigma, p=blur_p),
        Randomly(partial(add_noise, std=noise_std), noise_p),
        # Kornia adds up to 0.1 unless told not to
        K.RandomSolarize(thresholds=(0.5, 0.5), additions=(0.0, 0.0), p=solarize_p),
        grey,
    )


def plain_colour(
    brightness: float, contrast: float, gamma: tuple[float, float], p: float
) -> nn.Module:
    """Changes of colour that any bands can undergo, each drawn for each image.

    Args:
        brightness: Largest relative change of brightness.
        contrast: Largest relative change of contrast.
        gamma: Smallest and largest exponent.
        p: Probability of brightness and contrast, and of gamma.

    Returns:
        A module from (batch, bands, height, width) in [0, 1] to the same.
    """
    jitter = K.ColorJitter(brightness, contrast, p=p)
    return nn.Sequential(jitter, K.RandomGamma(gamma, (1.0, 1.0), p=p))


class Randomly(nn.Module):
    """A change of images that some of them undergo."""

    def __init__(self, change: Callable[[Tensor], Tensor], p: float) -> None:
        """Initialize a new Randomly instance.

        Args:
            change: From (batch, bands, height, width) to the same.
            p: Probability for each image.
        """
        super().__init__()
        self.change, self.p = change, p

    def forward(
        self, image: Float[Tensor, 'batch bands height width']
    ) -> Float[Tensor, 'batch bands height width']:
        """Change some of the images."""
        chosen = torch.rand(len(image), 1, 1, 1, device=image.device) < self.p
        return self.change(image).where(chosen, image)


def add_noise(
    image: Float[Tensor, 'batch bands height width'], std: tuple[float, float]
) -> Float[Tensor, 'batch bands height width']:
    """Add Gaussian noise whose strength is drawn for each image; Kornia's has one strength.

    Args:
        image: In [0, 1].
        std: Smallest and largest standard deviation, in units of the image.

    Returns:
        The image, in [0, 1].
    """
    strength = torch.empty_like(image[:, :1, :1, :1]).uniform_(*std)
    return (image + strength * torch.randn_like(image)).clamp(0, 1)


def band_mean(
    image: Float[Tensor, 'batch bands height width'],
) -> Float[Tensor, 'batch bands height width']:
    """Greyscale without a colour space: each band becomes the mean of all.

    Args:
        image: Of any range.

    Returns:
        The image, all its bands alike.
    """
    return image.mean(dim=1, keepdim=True).expand_as(image)
