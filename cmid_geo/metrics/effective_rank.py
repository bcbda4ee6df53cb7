# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Effective rank of embeddings: RankMe and LiDAR."""

import torch
from jaxtyping import Float
from torch import Tensor


@torch.no_grad()
def rank_me(embedding: Float[Tensor, 'samples dim']) -> Float[Tensor, '']:
    r"""Number of directions that embeddings use: RankMe (https://arxiv.org/abs/2210.02885).

    With singular values :math:`\sigma` and :math:`p = \sigma / \sum \sigma + 10^{-7}` it is
    :math:`\exp(-\sum p \log p)`. It compares runs of one method, not methods.

    Args:
        embedding: One vector a sample; neither centred nor of unit length.

    Returns:
        From 1 (all vectors on one line) to about the smaller of *samples* and *dim*.
    """
    with torch.autocast(embedding.device.type, enabled=False):
        return _spread(torch.linalg.svdvals(embedding.float()), 1e-7)


@torch.no_grad()
def lidar(
    embedding: Float[Tensor, 'images views dim'], delta: float = 1e-4
) -> Float[Tensor, '']:
    r"""Number of directions in which images differ more than views of one image: LiDAR (https://arxiv.org/abs/2312.04000).

    With the covariance between the images' means, :math:`\Sigma_b`, and the mean covariance of an image's
    views, :math:`\Sigma_w + \delta I`, and the eigenvalues :math:`\lambda` of
    :math:`\Sigma_w^{-1/2} \Sigma_b \Sigma_w^{-1/2}`, it is the exponential of the entropy of
    :math:`\lambda / \sum \lambda + 10^{-8}`.

    Args:
        embedding: One vector a view, at least two views of at least two images.
        delta: Added to the covariance within.

    Returns:
        From 1 to about the smaller of *images* - 1 and *dim*.

    Raises:
        ValueError: If there are fewer images or views.
    """
    images, views, dim = embedding.shape
    if images < 2 or views < 2:
        raise ValueError(
            f'{images} images with {views} views each: LiDAR compares at least 2 of both'
        )
    with torch.autocast(embedding.device.type, enabled=False):
        embedding = embedding.double()
        means = embedding.mean(dim=1)
        within = (embedding - means[:, None]).flatten(0, 1)
        within = within.mT @ within / (images * (views - 1))
        within = within + delta * torch.eye(dim, device=within.device)
        between = means - means.mean(dim=0)
        # The eigenvalues sought are those of the smaller product, (images, images)
        whitened = torch.linalg.solve_triangular(
            torch.linalg.cholesky(within), between.mT, upper=False
        )
        values = torch.linalg.svdvals(whitened).square() / (images - 1)
        return _spread(values, 1e-8).float()


def _spread(values: Tensor, least: float) -> Tensor:
    """Exponential of the entropy of values that are brought to a sum of 1."""
    probabilities = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
    probabilities = probabilities + least
    return torch.exp(-(probabilities * probabilities.log()).sum())
