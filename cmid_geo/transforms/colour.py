# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Alterations of colour that a view of the same ground may suffer."""

from typing import Any

import kornia.augmentation as K
import torch
from kornia.augmentation import random_generator as rg
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
        hue: Largest turn of the hue, as a share of the circle.
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
    if rgb:
        jitter = [K.ColorJitter(brightness, contrast, saturation, hue, p=jitter_p)]
        grey: nn.Module = K.RandomGrayscale(p=grey_p)
    else:
        jitter = [
            K.ColorJitter(brightness, contrast, p=jitter_p),
            K.RandomGamma(gamma, (1.0, 1.0), p=jitter_p),
        ]
        grey = RandomBandMean(p=grey_p)
    return nn.Sequential(
        *jitter,
        K.RandomGaussianBlur((7, 7), blur_sigma, p=blur_p),
        RandomNoise(noise_std, p=noise_p),
        # Kornia adds up to 0.1 unless told not to
        K.RandomSolarize(thresholds=(0.5, 0.5), additions=(0.0, 0.0), p=solarize_p),
        grey,
    )


class RandomNoise(K.IntensityAugmentationBase2D):
    """Gaussian noise whose strength is drawn for each image; Kornia's has one strength."""

    def __init__(self, std: tuple[float, float], p: float = 0.5) -> None:
        """Initialize a new RandomNoise instance.

        Args:
            std: Smallest and largest standard deviation, in units of the image.
            p: Probability for each image.
        """
        super().__init__(p=p)
        self._param_generator = rg.PlainUniformGenerator((std, 'std', None, None))

    def apply_transform(
        self,
        input: Tensor,
        params: dict[str, Tensor],
        flags: dict[str, Any],
        transform: Tensor | None = None,
    ) -> Tensor:
        """Add the noise to (batch, bands, height, width)."""
        std = params['std'].to(input)[:, None, None, None]
        return (input + std * torch.randn_like(input)).clamp(0, 1)


class RandomBandMean(K.IntensityAugmentationBase2D):
    """Greyscale without a colour space: each band becomes the mean of all."""

    def __init__(self, p: float = 0.5) -> None:
        """Initialize a new RandomBandMean instance.

        Args:
            p: Probability for each image.
        """
        super().__init__(p=p)

    def apply_transform(
        self,
        input: Tensor,
        params: dict[str, Tensor],
        flags: dict[str, Any],
        transform: Tensor | None = None,
    ) -> Tensor:
        """Average (batch, bands, height, width) over the bands."""
        return input.mean(dim=1, keepdim=True).expand_as(input)
