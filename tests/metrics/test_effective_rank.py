# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

import pytest
import torch

from cmid_geo.losses import fresh_rank
from cmid_geo.metrics.effective_rank import lidar, rank_me


def test_rank_me_counts_directions() -> None:
    spread = torch.eye(16).repeat(4, 1)
    assert rank_me(spread) == pytest.approx(16, rel=1e-3)
    assert rank_me(spread[:, :4] @ torch.randn(4, 32)) < 4.01
    assert rank_me(torch.ones(64, 16)) == pytest.approx(1, abs=1e-2)


def test_rank_me_is_its_formula() -> None:
    embedding = torch.randn(20, 6)
    p = torch.linalg.svdvals(embedding)
    p = p / p.sum() + 1e-7
    torch.testing.assert_close(rank_me(embedding), torch.exp(-(p * p.log()).sum()))


def test_lidar_is_its_formula() -> None:
    embedding = torch.randn(9, 4, 5, dtype=torch.float64) + 2 * torch.randn(9, 1, 5)
    means = embedding.mean(1)
    between = torch.cov(means.T)
    within = torch.stack([torch.cov(image.T) for image in embedding]).mean(0)
    values, vectors = torch.linalg.eigh(within + 1e-4 * torch.eye(5))
    half = vectors @ torch.diag(values**-0.5) @ vectors.T
    p = torch.linalg.eigvalsh(half @ between @ half)
    p = p / p.sum() + 1e-8
    expected = torch.exp(-(p * p.log()).sum())
    assert lidar(embedding) == pytest.approx(float(expected), rel=1e-5)


def test_lidar_sees_what_rank_me_does_not() -> None:
    # Noise of the views alone fills all directions; images differ along one
    images = torch.zeros(32, 1, 16)
    images[:, 0, 0] = 10 * torch.randn(32)
    embedding = images + 0.1 * torch.randn(32, 8, 16)
    assert lidar(embedding) < 2 < rank_me(0.1 * torch.randn(256, 16))


def test_lidar_needs_views() -> None:
    with pytest.raises(ValueError, match='3 images with 1 views'):
        lidar(torch.randn(3, 1, 4))


def test_fresh_rank() -> None:
    key = torch.eye(4)
    assert fresh_rank(key, key) == 0
    assert fresh_rank(-key, key) == 1
    query = torch.nn.functional.normalize(torch.randn(200, 8), dim=1)
    random = torch.nn.functional.normalize(torch.randn(200, 8), dim=1)
    assert fresh_rank(query, random) == pytest.approx(0.5, abs=0.05)
    assert fresh_rank(key[:1], key[:1]) == 0
