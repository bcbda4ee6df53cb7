# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

import math

import pytest
import torch
import torch.nn.functional as F

from cmid_geo.losses import info_nce, key_rank, pairwise_cosine, standard_deviation


def unit(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


def slow(query, key, queue, temperature, weight=None):
    losses = []
    for q, k in zip(query, key):
        positive = math.exp(q @ k / temperature)
        negative = sum(math.exp(q @ n / temperature) for n in queue)
        losses.append(-math.log(positive / (positive + negative)))
    losses = torch.tensor(losses, dtype=torch.float64)
    if weight is None:
        return losses.mean()
    return (losses * weight).sum() / weight.sum()


def test_equals_slow_loop() -> None:
    query, key, queue = unit(5, 8), unit(5, 8), unit(11, 8)
    loss = info_nce(query, key, queue, 0.2)
    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss, slow(query, key, queue, 0.2))


def test_negatives_that_tell_nothing_cost_log_of_their_number() -> None:
    # All orthogonal to the query, as is its own key: nothing to go by
    axes = torch.eye(12, dtype=torch.float64)
    loss = info_nce(axes[:1], axes[1:2], axes[2:], 0.2)
    assert loss.item() == pytest.approx(math.log(11))


def test_perfect_key_among_orthogonal_ones() -> None:
    axes = torch.eye(12, dtype=torch.float64)
    loss = info_nce(axes[:1], axes[:1], axes[1:], 0.2)
    assert loss.item() == pytest.approx(math.log(1 + 11 * math.exp(-5)))


def test_only_the_filled_part_of_the_queue_counts() -> None:
    query, key, queue = unit(5, 8), unit(5, 8), unit(11, 8)
    part = info_nce(query, key, queue, 0.2, filled=torch.tensor(4))
    torch.testing.assert_close(part, info_nce(query, key, queue[:4], 0.2))
    assert info_nce(query, key, queue, 0.2, filled=torch.tensor(0)) == 0


def test_weights_drop_samples() -> None:
    query, key, queue = unit(4, 8), unit(4, 8), unit(11, 8)
    weight = torch.tensor([1.0, 0.0, 2.0, 0.0], dtype=torch.float64)
    loss = info_nce(query, key, queue, 0.2, weight)
    torch.testing.assert_close(loss, slow(query, key, queue, 0.2, weight))
    changed = query.clone()
    changed[1] = -changed[1]
    torch.testing.assert_close(info_nce(changed, key, queue, 0.2, weight), loss)
    assert info_nce(query, key, queue, 0.2, torch.zeros(4, dtype=torch.float64)) == 0


def test_no_gradient_reaches_teacher_or_queue() -> None:
    query, key, queue = (
        unit(*shape).requires_grad_() for shape in ((5, 8), (5, 8), (11, 8))
    )
    info_nce(query, key, queue, 0.2).backward()
    assert query.grad is not None and query.grad.abs().sum() > 0
    assert key.grad is None and queue.grad is None


def test_half_precision_is_computed_in_float32() -> None:
    query, key, queue = (unit(*shape).float() for shape in ((5, 8), (5, 8), (11, 8)))
    with torch.autocast('cpu', torch.bfloat16):
        loss = info_nce(query, key, queue, 0.2)
    torch.testing.assert_close(loss, info_nce(query, key, queue, 0.2), rtol=0, atol=0)
    assert info_nce(query.bfloat16(), key.bfloat16(), queue, 0.2).dtype == torch.float32


def test_rank_counts_better_keys() -> None:
    axes = torch.eye(4)
    query = F.normalize(torch.tensor([[3.0, 2.0, 1.0, 0.5]]), dim=1)
    assert key_rank(query, axes[:1], axes[1:]) == 1
    assert key_rank(query, axes[2:3], axes) == 3
    assert key_rank(query, axes[2:3], axes, torch.tensor(1)) == 2
    assert key_rank(query, axes[3:], axes, torch.tensor(0)) == 1


def test_signs_of_collapse() -> None:
    same = unit(1, 64).expand(32, 64).float()
    assert standard_deviation(same) < 1e-6
    assert pairwise_cosine(same) == pytest.approx(1, abs=1e-5)
    spread = unit(4096, 64).float()
    assert standard_deviation(spread) == pytest.approx(1 / 8, rel=0.02)
    assert abs(pairwise_cosine(spread)) < 0.01
    # The identity that the alarm's threshold rests on: dim * std^2 = 1 - |mean|^2
    some = F.normalize(unit(64, 16).float() + 0.5, dim=1)
    left = some.std(dim=0, unbiased=False).square().sum()
    torch.testing.assert_close(left, 1 - some.mean(0).square().sum())
