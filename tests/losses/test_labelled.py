# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

import pytest
import torch
import torch.nn.functional as F

from cmid_geo.losses.labelled import LabelledBinaryCrossEntropy, LabelledCrossEntropy


@pytest.mark.parametrize('weight', [None, [0.2, 1.0, 3.0]])
@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_equals_torchs_where_something_is_labelled(
    weight: list[float] | None, smoothing: float
) -> None:
    scores, labels = torch.randn(4, 3, 8, 8), torch.randint(3, (4, 8, 8))
    labels[:2, :4] = 255
    loss = LabelledCrossEntropy(weight, 255, smoothing)
    given = None if weight is None else torch.tensor(weight)
    expected = F.cross_entropy(
        scores, labels, given, ignore_index=255, label_smoothing=smoothing
    )
    torch.testing.assert_close(loss(scores, labels), expected)


def test_shares_of_classes() -> None:
    scores, labels = torch.randn(6, 5), torch.randint(5, (6,))
    loss = LabelledCrossEntropy()
    shares = F.one_hot(labels, 5).float()
    torch.testing.assert_close(loss(scores, shares), loss(scores, labels))


def test_binary_equals_torchs_of_what_is_labelled() -> None:
    scores, labels = torch.randn(4, 8), torch.randint(2, (4, 8))
    labels[0] = 255
    loss = LabelledBinaryCrossEntropy(2.0, 255)
    expected = F.binary_cross_entropy_with_logits(
        scores[1:], labels[1:].float(), pos_weight=torch.tensor(2.0)
    )
    torch.testing.assert_close(loss(scores, labels), expected)


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
    scores = torch.randn((2, 4, 4) if binary else (2, 2, 4, 4), requires_grad=True)
    value = loss(scores, torch.full((2, 4, 4), 255))
    value.backward()
    assert value == 0 and scores.grad is not None and not scores.grad.any()
