# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

import pytest
import torch
import torch.nn.functional as F

from cmid_geo.losses import DenseLoss
from cmid_geo.losses.masked import (
    LabelledBinaryCrossEntropy,
    LabelledCrossEntropy,
    WhereLabelled,
    cross_entropy,
    focal,
    overlap_loss,
)

NAMES = ('ce', 'bce', 'dice', 'jaccard', 'focal', 'ce+dice')


def batch(maps: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    logits = torch.randn(2, maps, 6, 5, requires_grad=True)
    labels = torch.randint(max(maps, 2), (2, 6, 5))
    return logits, labels, torch.rand(2, 6, 5) > 0.3


def test_cross_entropy_is_torch_s() -> None:
    logits, labels, known = batch()
    weights = torch.tensor([1.0, 5.0, 0.5])
    expected = F.cross_entropy(
        logits, labels.where(known, -100), weights, ignore_index=-100
    )
    found = DenseLoss('ce', class_weights=weights)(logits, labels, known)
    torch.testing.assert_close(found, expected)


def test_binary_cross_entropy_is_torch_s() -> None:
    logits, labels, known = batch(1)
    weight = torch.tensor(7.0)
    expected = F.binary_cross_entropy_with_logits(
        logits[:, 0][known], labels[known].float(), pos_weight=weight
    )
    for name in ('bce', 'ce'):
        found = DenseLoss(name, pos_weight=weight)(logits, labels, known)
        torch.testing.assert_close(found, expected)


def test_focal_without_gamma_is_cross_entropy() -> None:
    logits, labels, _ = batch()
    torch.testing.assert_close(
        focal(logits, labels, gamma=0.0), cross_entropy(logits, labels)
    )
    assert (focal(logits, labels) < cross_entropy(logits, labels)).all()


def test_overlap_by_hand() -> None:
    # Probabilities of change 1, 1, 0, 0 (to rounding); truth 1, 0, 1, 0; the last not known
    logits = torch.tensor([50.0, 50.0, -50.0, 50.0]).view(1, 1, 2, 2)
    labels = torch.tensor([1, 0, 1, 0]).view(1, 2, 2)
    known = torch.tensor([True, True, True, False]).view(1, 2, 2)
    assert overlap_loss(logits, labels, known).item() == pytest.approx(1 - 2 / 4)
    assert overlap_loss(logits, labels, known, True).item() == pytest.approx(1 - 1 / 3)
    both = torch.cat([-logits, logits], dim=1)
    # Of the two classes this one is met by nothing
    assert overlap_loss(both, labels, known).item() == pytest.approx(1 - (0.5 + 0) / 2)


@pytest.mark.parametrize('maps', [1, 3])
@pytest.mark.parametrize('name', NAMES)
def test_what_is_not_known_counts_nowhere(name: str, maps: int) -> None:
    logits, labels, known = batch(maps)
    loss = DenseLoss(name)
    first = loss(logits, labels, known)
    first.backward()
    assert (logits.grad.movedim(1, -1)[~known] == 0).all()
    assert (logits.grad.movedim(1, -1)[known] != 0).any()
    spoilt = logits.detach().where(known[:, None], 9.0)
    torch.testing.assert_close(loss(spoilt, labels.where(known, -1), known), first)


@pytest.mark.parametrize('maps', [1, 3])
@pytest.mark.parametrize('name', NAMES)
def test_nothing_known_is_nothing_lost(name: str, maps: int) -> None:
    logits, labels, known = batch(maps)
    loss = DenseLoss(name)(logits, labels, torch.zeros_like(known))
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize('name', NAMES)
def test_no_change_is_learned_from(name: str) -> None:
    logits, labels, known = batch(1)
    loss = DenseLoss(name)(logits, torch.zeros_like(labels), known)
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all()
    # An overlap needs something to overlap with; all others lower the logits
    lowered = (logits.grad[:, 0][known] > 0).all()
    assert lowered == (name not in ('dice', 'jaccard'))


def test_weights_move_with_the_loss() -> None:
    loss = DenseLoss('ce', torch.ones(2), torch.tensor(3.0)).double()
    assert loss.class_weights.dtype == loss.pos_weight.dtype == torch.float64
    assert not loss.state_dict()


@pytest.mark.parametrize('weight', [None, [0.2, 1.0, 3.0]])
@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_equals_torchs_where_something_is_labelled(
    weight: list[float] | None, smoothing: float
) -> None:
    logits, labels = torch.randn(4, 3, 8, 8), torch.randint(3, (4, 8, 8))
    labels[:2, :4] = 255
    loss = LabelledCrossEntropy(weight, 255, smoothing)
    given = None if weight is None else torch.tensor(weight)
    expected = F.cross_entropy(
        logits, labels, given, ignore_index=255, label_smoothing=smoothing
    )
    torch.testing.assert_close(loss(logits, labels), expected)


def test_probabilities_of_classes() -> None:
    logits, labels = torch.randn(6, 5), torch.randint(5, (6,))
    loss = LabelledCrossEntropy()
    probabilities = F.one_hot(labels, 5).float()
    torch.testing.assert_close(loss(logits, probabilities), loss(logits, labels))


def test_binary_equals_torchs_of_what_is_labelled() -> None:
    logits, labels = torch.randn(4, 8), torch.randint(2, (4, 8))
    labels[0] = 255
    loss = LabelledBinaryCrossEntropy(2.0, 255)
    expected = F.binary_cross_entropy_with_logits(
        logits[1:], labels[1:].float(), pos_weight=torch.tensor(2.0)
    )
    torch.testing.assert_close(loss(logits, labels), expected)


@pytest.mark.parametrize(
    'loss',
    [
        LabelledCrossEntropy(None, 255),
        LabelledCrossEntropy([1.0, 2.0], 255),
        LabelledBinaryCrossEntropy(None, 255),
    ],
)
def test_nothing_labelled_costs_nothing(loss: torch.nn.Module) -> None:
    binary = isinstance(loss, LabelledBinaryCrossEntropy)
    logits = torch.randn((2, 4, 4) if binary else (2, 2, 4, 4), requires_grad=True)
    value = loss(logits, torch.full((2, 4, 4), 255))
    value.backward()
    assert value == 0 and logits.grad is not None and not logits.grad.any()


def test_another_loss_is_asked_only_where_something_is_labelled() -> None:
    loss = WhereLabelled(torch.nn.CrossEntropyLoss(ignore_index=255), 255)
    logits, labels = torch.randn(4, 3), torch.tensor([0, 2, 255, 1])
    expected = F.cross_entropy(logits, labels, ignore_index=255)
    torch.testing.assert_close(loss(logits, labels), expected)
    assert loss(logits, torch.full((4,), 255)) == 0


def test_half_precision_is_widened() -> None:
    logits, labels, known = batch()
    with torch.autocast('cpu', torch.bfloat16):
        found = DenseLoss('ce+dice')(logits.bfloat16(), labels, known)
    assert found.dtype == torch.float32
    expected = DenseLoss('ce+dice')(logits.bfloat16().float(), labels, known)
    torch.testing.assert_close(found, expected)
