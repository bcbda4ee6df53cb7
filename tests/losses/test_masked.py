# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

import pytest
import torch
import torch.nn.functional as F

from cmid_geo.losses import DenseLoss
from cmid_geo.losses.masked import cross_entropy, focal, overlap_loss

NAMES = ('ce', 'bce', 'dice', 'jaccard', 'focal', 'ce+dice')


def batch(maps: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    scores = torch.randn(2, maps, 6, 5, requires_grad=True)
    labels = torch.randint(max(maps, 2), (2, 6, 5))
    return scores, labels, torch.rand(2, 6, 5) > 0.3


def test_cross_entropy_is_torch_s() -> None:
    scores, labels, known = batch()
    weights = torch.tensor([1.0, 5.0, 0.5])
    expected = F.cross_entropy(
        scores, labels.where(known, -100), weights, ignore_index=-100
    )
    found = DenseLoss('ce', class_weights=weights)(scores, labels, known)
    torch.testing.assert_close(found, expected)


def test_binary_cross_entropy_is_torch_s() -> None:
    scores, labels, known = batch(1)
    weight = torch.tensor(7.0)
    expected = F.binary_cross_entropy_with_logits(
        scores[:, 0][known], labels[known].float(), pos_weight=weight
    )
    for name in ('bce', 'ce'):
        found = DenseLoss(name, pos_weight=weight)(scores, labels, known)
        torch.testing.assert_close(found, expected)


def test_focal_without_gamma_is_cross_entropy() -> None:
    scores, labels, _ = batch()
    torch.testing.assert_close(
        focal(scores, labels, gamma=0.0), cross_entropy(scores, labels)[0]
    )
    assert (focal(scores, labels) < cross_entropy(scores, labels)[0]).all()


def test_overlap_by_hand() -> None:
    # Probabilities of change 1, 1, 0, 0 (to rounding); truth 1, 0, 1, 0; the last not known
    scores = torch.tensor([50.0, 50.0, -50.0, 50.0]).view(1, 1, 2, 2)
    labels = torch.tensor([1, 0, 1, 0]).view(1, 2, 2)
    known = torch.tensor([True, True, True, False]).view(1, 2, 2)
    assert overlap_loss(scores, labels, known).item() == pytest.approx(1 - 2 / 4)
    assert overlap_loss(scores, labels, known, True).item() == pytest.approx(1 - 1 / 3)
    both = torch.cat([-scores, scores], dim=1)
    # Of the two classes this one is met by nothing
    assert overlap_loss(both, labels, known).item() == pytest.approx(1 - (0.5 + 0) / 2)


@pytest.mark.parametrize('maps', [1, 3])
@pytest.mark.parametrize('name', NAMES)
def test_what_is_not_known_counts_nowhere(name: str, maps: int) -> None:
    scores, labels, known = batch(maps)
    loss = DenseLoss(name)
    first = loss(scores, labels, known)
    first.backward()
    assert (scores.grad.movedim(1, -1)[~known] == 0).all()
    assert (scores.grad.movedim(1, -1)[known] != 0).any()
    spoilt = scores.detach().where(known[:, None], 9.0)
    torch.testing.assert_close(loss(spoilt, labels.where(known, -1), known), first)


@pytest.mark.parametrize('maps', [1, 3])
@pytest.mark.parametrize('name', NAMES)
def test_nothing_known_is_nothing_lost(name: str, maps: int) -> None:
    scores, labels, known = batch(maps)
    loss = DenseLoss(name)(scores, labels, torch.zeros_like(known))
    loss.backward()
    assert loss.item() == 0
    assert (scores.grad == 0).all()


@pytest.mark.parametrize('name', NAMES)
def test_no_change_is_learned_from(name: str) -> None:
    scores, labels, known = batch(1)
    loss = DenseLoss(name)(scores, torch.zeros_like(labels), known)
    loss.backward()
    assert loss.isfinite() and scores.grad.isfinite().all()
    # An overlap needs something to overlap with; all others lower the scores
    lowered = (scores.grad[:, 0][known] > 0).all()
    assert lowered == (name not in ('dice', 'jaccard'))


def test_weights_move_with_the_loss() -> None:
    loss = DenseLoss('ce', torch.ones(2), torch.tensor(3.0)).double()
    assert loss.class_weights.dtype == loss.pos_weight.dtype == torch.float64
    assert not loss.state_dict()
