# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Random changes of colour, drawn on the host and made on the images' device.

Kornia draws. Its modules are kept by a method alone, not registered: what moves a task to a device
would move their generators too, and each look at what they drew would wait for the device. What
they drew is applied here in as few passes over the images as it takes; an image that is not chosen
undergoes the change that changes nothing.
"""

from typing import Any

import kornia.augmentation as K
import torch
import torch.nn.functional as F
from jaxtyping import Float
from kornia.filters import get_gaussian_kernel1d
from torch import Tensor, nn

from ..ops.host import send

#: Kornia's names of what jitters, as it counts them, and the factors that change nothing.
FACTORS = {
    'brightness_factor': 1.0,
    'contrast_factor': 1.0,
    'saturation_factor': 1.0,
    'hue_factor': 0.0,
}
#: Weights of red, green and blue in their grey (ITU-R BT.601).
LUMA = (0.299, 0.587, 0.114)


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
        A module from (batch, bands, height, width) in [0, 1] to the same, to rounding.
    """
    jitter = plain_colour(brightness, contrast, gamma, jitter_p)
    if rgb:
        jitter = Jitter(brightness, contrast, saturation, hue, p=jitter_p)
    return nn.Sequential(
        jitter,
        Blur(blur_sigma, blur_p),
        Noise(noise_std, noise_p),
        Solarize(solarize_p),
        Grey(rgb, grey_p),
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
    return nn.Sequential(Jitter(brightness, contrast, p=p), Gamma(gamma, p))


class Jitter(nn.Module):
    """Brightness, contrast, saturation and hue, in an order drawn for each batch."""

    def __init__(
        self,
        brightness: float,
        contrast: float,
        saturation: float = 0.0,
        hue: float = 0.0,
        p: float = 1.0,
    ) -> None:
        """Initialize a new Jitter instance.

        Args:
            brightness: Largest relative change of brightness.
            contrast: Largest relative change of contrast.
            saturation: Largest relative change of saturation.
            hue: Largest rotation of the hue, as a fraction of the circle.
            p: Probability for each image.
        """
        super().__init__()
        drawer = K.ColorJitter(brightness, contrast, saturation, hue, p=p)
        self.draw = drawer.forward_parameters
        self.steps = (_brighten, _stretch, _saturate, rotate_hue)

    def forward(
        self, image: Float[Tensor, 'batch bands height width']
    ) -> Float[Tensor, 'batch bands height width']:
        """Change some of the images, in [0, 1]."""
        drawn = self.draw(image.shape)
        factors = torch.stack(
            [_chosen(drawn, drawn[name], same) for name, same in FACTORS.items()]
        )
        same = factors.new_tensor(list(FACTORS.values()))
        changes = (factors != same[:, None]).any(1).tolist()
        sent = send(factors.to(image.dtype), image)[..., None, None, None]
        for step in drawn['order'].tolist():
            if changes[step]:
                image = self.steps[step](image, sent[step])
        return image


class Gamma(nn.Module):
    """A power of the values."""

    def __init__(self, gamma: tuple[float, float], p: float) -> None:
        """Initialize a new Gamma instance.

        Args:
            gamma: Smallest and largest exponent.
            p: Probability for each image.
        """
        super().__init__()
        self.draw = K.RandomGamma(gamma, (1.0, 1.0), p=p).forward_parameters

    def forward(
        self, image: Float[Tensor, 'batch bands height width']
    ) -> Float[Tensor, 'batch bands height width']:
        """Change some of the images, in [0, 1]."""
        drawn = self.draw(image.shape)
        return image ** _column(_chosen(drawn, drawn['gamma_factor'], 1), image)


class Blur(nn.Module):
    """Gaussian blur, by a kernel of 7x7 pixels."""

    def __init__(self, sigma: tuple[float, float], p: float) -> None:
        """Initialize a new Blur instance.

        Args:
            sigma: Narrowest and widest in pixels.
            p: Probability for each image.
        """
        super().__init__()
        self.draw = K.RandomGaussianBlur((7, 7), sigma, p=p).forward_parameters

    def forward(
        self, image: Float[Tensor, 'batch bands height width']
    ) -> Float[Tensor, 'batch bands height width']:
        """Blur some of the images."""
        drawn = self.draw(image.shape)
        # Of width 0 the kernel is 1 at the pixel itself
        sigma = _chosen(drawn, drawn['sigma'], 0).to(image.dtype)
        kernels = get_gaussian_kernel1d(7, sigma[:, None])
        # Each band of each image is a channel with a kernel of its own
        kernels = send(kernels.repeat_interleave(image.shape[1], 0), image)
        channels = F.pad(image, (3, 3, 3, 3), 'reflect').flatten(0, 1)[None]
        rows, cols = kernels[:, None, :, None], kernels[:, None, None]
        channels = F.conv2d(channels, rows, groups=len(kernels))
        return F.conv2d(channels, cols, groups=len(kernels)).view_as(image)


class Noise(nn.Module):
    """Gaussian noise whose strength is drawn for each image; Kornia's has one strength."""

    def __init__(self, std: tuple[float, float], p: float) -> None:
        """Initialize a new Noise instance.

        Args:
            std: Smallest and largest standard deviation, in units of the image.
            p: Probability for each image.
        """
        super().__init__()
        self.std, self.p = std, p

    def forward(
        self, image: Float[Tensor, 'batch bands height width']
    ) -> Float[Tensor, 'batch bands height width']:
        """Add noise to some of the images, in [0, 1]."""
        chosen = torch.rand(len(image)) < self.p
        strength = torch.empty(len(image), dtype=image.dtype).uniform_(*self.std)
        strength = _column(strength.where(chosen, 0), image)
        return torch.randn_like(image).mul_(strength).add_(image).clamp_(0, 1)


class Solarize(nn.Module):
    """Inversion of all values above 0.5."""

    def __init__(self, p: float) -> None:
        """Initialize a new Solarize instance.

        Args:
            p: Probability for each image.
        """
        super().__init__()
        # Kornia adds up to 0.1 unless told not to
        drawer = K.RandomSolarize(thresholds=(0.5, 0.5), additions=(0.0, 0.0), p=p)
        self.draw = drawer.forward_parameters

    def forward(
        self, image: Float[Tensor, 'batch bands height width']
    ) -> Float[Tensor, 'batch bands height width']:
        """Change some of the images, in [0, 1]."""
        drawn = self.draw(image.shape)
        # Inverted from 1, the smaller of both is what solarizing leaves; from 2, the image itself
        top = _column(_chosen(drawn, torch.ones(len(image)), 2), image)
        return torch.minimum(image, top - image)


class Grey(nn.Module):
    """Greyscale: all bands become one."""

    def __init__(self, rgb: bool, p: float) -> None:
        """Initialize a new Grey instance.

        Args:
            rgb: Whether the bands are red, green and blue; the grey of others is their mean.
            p: Probability for each image.
        """
        super().__init__()
        self.rgb, self.p = rgb, p

    def forward(
        self, image: Float[Tensor, 'batch bands height width']
    ) -> Float[Tensor, 'batch bands height width']:
        """Change some of the images."""
        chosen = _column(torch.rand(len(image)) < self.p, image)
        grey = luma(image) if self.rgb else image.mean(1, keepdim=True)
        return torch.lerp(image, grey, chosen)


def luma(
    image: Float[Tensor, 'batch bands height width'],
) -> Float[Tensor, 'batch 1 height width']:
    """Grey of red, green and blue; of other numbers of bands, their mean."""
    if image.shape[1] != 3:
        return image.mean(1, keepdim=True)
    red, green, blue = image.split(1, 1)
    grey = (red * LUMA[0]).add_(green, alpha=LUMA[1])
    return grey.add_(blue, alpha=LUMA[2])


def rotate_hue(
    image: Float[Tensor, 'batch 3 height width'], angle: Float[Tensor, 'batch 1 1 1']
) -> Float[Tensor, 'batch 3 height width']:
    """Rotate the hue; saturation and value in HSV stay.

    Args:
        image: Red, green and blue.
        angle: As a fraction of the circle.

    Returns:
        The image.
    """
    high, low = image.amax(1, keepdim=True), image.amin(1, keepdim=True)
    chroma = high - low
    red, green, blue = image.split(1, 1)
    # The hue in sixths of the circle, times the chroma
    hue = (red - green).add_(chroma, alpha=4)
    hue = (blue - red).add_(chroma, alpha=2).where(high == green, hue)
    hue = (green - blue).where(high == red, hue)
    # Grey has no hue: 0 / tiny
    hue = hue.div_(chroma.clamp_min(torch.finfo(image.dtype).tiny)).add_(6 * angle)
    # A band is lowest within a sixth of its complement, highest beyond two
    start = torch.arange(5, 0, -2, device=image.device, dtype=image.dtype)
    away = (hue + start[:, None, None]).remainder_(6).sub_(2).abs_()
    return torch.addcmul(low, away.sub_(1).clamp_(0, 1), chroma)


def _brighten(image: Tensor, factor: Tensor) -> Tensor:
    """Multiply by a factor."""
    return (image * factor).clamp_(0, 1)


def _stretch(image: Tensor, factor: Tensor) -> Tensor:
    """Multiply the distance from the mean of the grey."""
    # The grey of the means is the mean of the grey
    mean = luma(image.mean((2, 3), keepdim=True))
    return torch.lerp(mean, image, factor).clamp_(0, 1)


def _saturate(image: Tensor, factor: Tensor) -> Tensor:
    """Multiply the distance from each pixel's grey."""
    return torch.lerp(luma(image), image, factor).clamp_(0, 1)


def _chosen(drawn: dict[str, Any], values: Tensor, same: float) -> Tensor:
    """What was drawn for the chosen images, and what changes nothing for the others."""
    return values.where(drawn['batch_prob'] > 0.5, same)


def _column(values: Tensor, image: Tensor) -> Tensor:
    """One value an image, ready to be applied to it."""
    return send(values.to(image.dtype), image)[:, None, None, None]
