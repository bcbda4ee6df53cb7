# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

import pytest
import torch

from cmid_geo.metrics.bootstrap import bootstrap_interval
from cmid_geo.metrics.clusters import cluster_agreement, k_means


def test_clusters_apart_are_found() -> None:
    labels = torch.arange(3).repeat(20)
    centers = 10 * torch.eye(3)
    features = centers[labels] + 0.1 * torch.randn(60, 3)
    before = torch.get_rng_state()
    found = k_means(features, 3)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(torch.stack([found, labels], 1).unique(dim=0)) == 3
    assert cluster_agreement(features, labels) == pytest.approx(1)
    with pytest.raises(ValueError, match='clusters=61 of 60 samples: ask for 1 to 60'):
        k_means(features, 61)


def test_one_dimension_has_a_closed_form() -> None:
    # The best two clusters of 0, 1, 2, 9, 10 are cut at the gap
    found = k_means(torch.tensor([[0.0], [1.0], [2.0], [9.0], [10.0]]), 2)
    assert len(set(found[:3].tolist())) == 1 == len(set(found[3:].tolist()))
    assert found[0] != found[3]
    assert k_means(torch.ones(4, 2), 2).shape == (4,), 'all alike'


def test_all_is_on_the_device_of_the_features() -> None:
    features = torch.tensor([[0.0], [1.0], [9.0], [10.0]])
    # What names no device would be on this one, where there are no values
    with torch.device('meta'):
        found = k_means(features, 2)
    assert found.device == features.device
    assert torch.equal(found, k_means(features, 2))


def test_agreement_of_independent_classes_is_0() -> None:
    features = torch.tensor([[1.0, 0.0], [1.0, 0.01], [0.0, 1.0], [0.01, 1.0]])
    assert cluster_agreement(features, torch.tensor([0, 1, 0, 1])) == pytest.approx(0, abs=1e-6)  # fmt: skip


def test_the_interval_is_that_of_a_binomial() -> None:
    right = torch.arange(1000) < 700
    low, high = bootstrap_interval(right, draws=2000)
    spread = 1.96 * (0.7 * 0.3 / 1000) ** 0.5
    assert low == pytest.approx(0.7 - spread, abs=0.004)
    assert high == pytest.approx(0.7 + spread, abs=0.004)
    assert bootstrap_interval(right) == bootstrap_interval(right)
    assert bootstrap_interval(torch.ones(5, dtype=torch.bool)) == (1, 1)
