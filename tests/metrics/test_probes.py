# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

import pytest
import torch
from torch import Tensor

from cmid_geo.metrics.probes import (
    linear_probe,
    nearest_neighbours,
    split_classes,
    standardize,
)


def clouds(number: int, spread: float = 0.5) -> tuple[Tensor, Tensor]:
    """Samples around the corners of a triangle, in 8 dimensions of which 6 tell nothing."""
    labels = torch.arange(number) % 3
    features = torch.randn(number, 8)
    corners = torch.tensor([[0.0, 3.0], [3.0, -2.0], [-3.0, -2.0]])
    features[:, :2] = corners[labels] + spread * features[:, :2]
    return features, labels


def test_both_find_classes_that_lie_apart_and_guess_where_they_do_not() -> None:
    known, labels = clouds(120)
    asked, truth = clouds(60)
    noise = torch.randn(60, 8)
    for probe in (linear_probe, nearest_neighbours):
        assert (probe(known, labels, asked) == truth).float().mean() > 0.95
        assert (probe(known, labels, noise) == truth).float().mean() < 0.7


def test_neighbours_are_those_of_the_smallest_angle() -> None:
    known = torch.tensor([[1.0, 0.0], [9.0, 1.0], [0.0, 1.0], [1.0, 9.0], [0.1, 1.0]])
    labels = torch.tensor([1, 1, 0, 0, 0])
    asked = torch.tensor([[100.0, 1.0], [0.01, 1.0]])
    assert nearest_neighbours(known, labels, asked, k=3).tolist() == [1, 0]
    # More neighbours than there are samples: all vote
    assert nearest_neighbours(known, labels, asked, k=9).tolist() == [0, 0]


def test_standardizing_takes_away_a_difference_of_scales() -> None:
    known, labels = clouds(120)
    asked, truth = clouds(60)
    # What tells nothing is larger than what does
    loud = torch.tensor([1.0] * 2 + [100.0] * 6)
    plain = nearest_neighbours(known * loud, labels, asked * loud)
    better = nearest_neighbours(known * loud, labels, asked * loud, 5, True)
    assert (better == truth).float().mean() > (plain == truth).float().mean() + 0.2
    first, second = standardize(known, asked)
    torch.testing.assert_close(first.mean(0), torch.zeros(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(first.std(0, unbiased=False), torch.ones(8))
    torch.testing.assert_close(second, (asked - known.mean(0)) / known.std(0, False))


def test_a_probe_learns_the_penalty_that_held_out_samples_prefer() -> None:
    # More dimensions than samples: the least penalty learns them by heart
    torch.manual_seed(0)
    known, labels = torch.randn(60, 200), torch.arange(60) % 2
    asked, truth = torch.randn(400, 200), torch.arange(400) % 2
    known[:, 0] += 3 * (labels * 2 - 1)
    asked[:, 0] += 3 * (truth * 2 - 1)
    chosen = (linear_probe(known, labels, asked) == truth).float().mean()
    heart = (linear_probe(known, labels, asked, [1e-6]) == truth).float().mean()
    assert chosen > heart


def test_probes_touch_no_random_numbers_and_need_no_grad_mode() -> None:
    known, labels = clouds(30)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with torch.no_grad():
        linear_probe(known, labels, known)
        nearest_neighbours(known, labels, known)
    torch.testing.assert_close(torch.rand(3), expected)


@pytest.mark.parametrize('part', [0.01, 0.3, 0.99])
def test_a_split_holds_all_classes_on_both_sides(part: float) -> None:
    labels = torch.tensor([0] * 50 + [1] * 2 + [2])
    first, rest = split_classes(labels, part)
    assert sorted([*first.tolist(), *rest.tolist()]) == list(range(53))
    assert set(labels[first].tolist()) == {0, 1}
    assert set(labels[rest].tolist()) == {0, 1, 2}
    again, _ = split_classes(labels, part)
    assert torch.equal(first, again)
    assert not torch.equal(first, split_classes(labels, part, seed=1)[0])
