# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Reconstruction of hidden pixels, in space and in frequency."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..ops.cells import expand_mask
from .autocast import in_full_precision


@in_full_precision
def focal_l1(
    prediction: Float[Tensor, '*shape'],
    target: Float[Tensor, '*shape'],
    alpha: float = 0.2,
    gamma: float = 1.0,
) -> Float[Tensor, '*shape']:
    r"""L1 distance that cares less for what is almost right.

    .. math::

        a \, (2 \sigma(\alpha a) - 1)^\gamma, \qquad a = |p - x|

    Args:
        prediction: :math:`p`.
        target: :math:`x`, of the same shape.
        alpha: How fast the weight grows with the distance.
        gamma: Power of the weight; 0 gives the plain L1 distance.

    Returns:
        The distance of each element.
    """
    distance = (prediction - target).abs()
    # 2 sigmoid(z) - 1 = tanh(z / 2), which keeps its digits near 0; the floor keeps the
    # slope of a power below 1 finite there
    floor = torch.finfo(distance.dtype).tiny
    return distance * torch.tanh(alpha / 2 * distance).clamp_min(floor) ** gamma


@in_full_precision
def focal_frequency(
    prediction: Float[Tensor, 'batch bands height width'],
    target: Float[Tensor, 'batch bands height width'],
) -> Float[Tensor, '']:
    r"""Distance of the batch's mean spectra that cares most for the worst frequencies.

    With orthonormal two-dimensional spectra :math:`F` of each band, averaged over the
    batch,

    .. math::

        d^2 = |F(p) - F(x)|^2, \qquad
        W = \frac{\log(1 + \sqrt{d^2})}{\max \log(1 + \sqrt{d^2})}, \qquad
        \mathrm{mean}(W d^2)

    without a gradient through :math:`W`. After the focal frequency loss of
    https://arxiv.org/abs/2012.12821.

    Args:
        prediction: :math:`p`.
        target: :math:`x`.

    Returns:
        The mean over bands and frequencies.
    """
    # The spectrum is linear: the mean of the spectra's differences is one spectrum, of
    # the mean difference
    difference = torch.fft.fft2((prediction - target).mean(dim=0), norm='ortho')
    distance = difference.real.square() + difference.imag.square()
    with torch.no_grad():
        weight = torch.log1p(distance.sqrt())
        largest = weight.max().clamp_min(torch.finfo(weight.dtype).tiny)
        weight = (weight / largest).clamp(0, 1)
    return (weight * distance).mean()


class ReconstructionLoss(nn.Module):
    """Distance of rebuilt views from the whole ones, in space and in frequency."""

    def __init__(
        self,
        alpha: float = 0.2,
        gamma: float = 1.0,
        spectral_weight: float = 1.0,
        visible_weight: float = 0.001,
    ) -> None:
        """Initialize a new ReconstructionLoss instance.

        Args:
            alpha: How fast the weight of :func:`focal_l1` grows with the distance.
            gamma: Power of that weight; 0 gives the plain L1 distance.
            spectral_weight: Weight of the spectral part beside the spatial one.
            visible_weight: Fraction of the prediction among the visible pixels whose
                spectrum is taken; the rest is blended from prediction and truth.
        """
        super().__init__()
        self.alpha, self.gamma = alpha, gamma
        self.spectral_weight, self.visible_weight = spectral_weight, visible_weight

    @in_full_precision
    def forward(
        self,
        prediction: Float[Tensor, 'batch bands height width'],
        target: Float[Tensor, 'batch bands height width'],
        mask: Bool[Tensor, 'batch rows cols'],
        valid: Bool[Tensor, 'batch height width'] | None = None,
    ) -> Float[Tensor, '']:
        """Compare rebuilt views with the whole ones.

        Args:
            prediction: Decoder's output.
            target: The whole, normalized views.
            mask: True where a cell was hidden from the student.
            valid: True where a pixel holds data; everywhere by default.

        Returns:
            Spatial part plus *spectral_weight* times the spectral part.
        """
        bands, height, width = target.shape[1:]
        hidden = expand_mask(mask, height, width)[:, None].to(target.dtype)
        counted = hidden
        if valid is not None:
            # 0 in both: no distance, no spectrum, no gradient
            prediction = prediction.where(valid[:, None], 0)
            target = target.where(valid[:, None], 0)
            counted = hidden * valid[:, None]

        distance = focal_l1(prediction, target, self.alpha, self.gamma)
        spatial = (counted * distance).sum() / (counted.sum() + 1e-5) / bands
        # Not multiplied by 0: a weight of 0 also saves the spectra
        if not self.spectral_weight:
            return spatial

        # Of what is visible mostly the truth enters, and only the fraction of the
        # prediction below carries a gradient
        fraction = hidden + self.visible_weight * (1 - hidden)
        blend = 0.5 * prediction.detach() + 0.5 * target
        mixed = fraction * prediction + (1 - fraction) * blend
        spectral = focal_frequency(mixed, target)
        return spatial + self.spectral_weight * spectral
