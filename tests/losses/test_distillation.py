# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

import math

import pytest
import torch

from cmid_geo.losses import PrototypeLoss, entropy


def scores(cells: int = 6, prototypes: int = 5) -> torch.Tensor:
    return torch.rand(cells, prototypes, dtype=torch.float64) * 2 - 1


def slow(student, teacher, center, student_temp, teacher_temp):
    total = 0.0
    for u, t in zip(student.tolist(), teacher.tolist()):
        top = [
            math.exp((value - c) / teacher_temp) for value, c in zip(t, center.tolist())
        ]
        bottom = [math.exp(value / student_temp) for value in u]
        for p, q in zip(top, bottom):
            total -= p / sum(top) * math.log(q / sum(bottom))
    return total / len(student)


def test_equals_slow_loop() -> None:
    loss = PrototypeLoss(5).double()
    loss.center.uniform_(-0.5, 0.5)
    student, teacher = scores(), scores()
    value = loss(student, teacher, 0.05)
    assert value.dtype == torch.float64
    assert value.item() == pytest.approx(slow(student, teacher, loss.center, 0.1, 0.05))


def test_zero_centre_and_equal_temperatures_are_soft_cross_entropy() -> None:
    student, teacher = scores(), scores()
    loss = PrototypeLoss(5, student_temp=0.1).double()(student, teacher, 0.1)
    expected = torch.nn.functional.cross_entropy(
        student / 0.1, torch.softmax(teacher / 0.1, 1)
    )
    torch.testing.assert_close(loss, expected)


def test_bounded_below_by_the_teachers_entropy() -> None:
    teacher = scores()
    loss = PrototypeLoss(5, student_temp=0.1).double()
    floor = entropy(loss.assign(teacher, 0.1)).mean()
    torch.testing.assert_close(loss(teacher, teacher, 0.1), floor)
    assert loss(scores(), teacher, 0.1) > floor


def test_weights_drop_cells() -> None:
    student, teacher = scores(), scores()
    weight = torch.tensor([1.0, 0, 1, 0, 1, 1], dtype=torch.float64)
    loss = PrototypeLoss(5).double()
    kept = weight > 0
    torch.testing.assert_close(
        loss(student, teacher, 0.05, weight), loss(student[kept], teacher[kept], 0.05)
    )
    assert loss(student, teacher, 0.05, torch.zeros_like(weight)) == 0


def test_calling_changes_nothing_and_no_gradient_reaches_the_teacher() -> None:
    loss = PrototypeLoss(5).double()
    student, teacher = scores().requires_grad_(), scores().requires_grad_()
    loss(student, teacher, 0.05).backward()
    assert student.grad is not None and teacher.grad is None
    assert not loss.center.any()


def test_centre_is_a_moving_average() -> None:
    loss = PrototypeLoss(5, center_momentum=0.9).double()
    first, second = scores(), scores()
    loss.update_center(first)
    loss.update_center(second)
    expected = 0.9 * 0.1 * first.mean(0) + 0.1 * second.mean(0)
    torch.testing.assert_close(loss.center, expected)


def test_centre_of_parts_is_the_centre_of_the_whole() -> None:
    rows = scores(10)
    whole, parts = PrototypeLoss(5).double(), PrototypeLoss(5).double()
    whole.update_center(rows)
    means = torch.stack([rows[:7].mean(0), rows[7:].mean(0)])
    parts.update_center(means, torch.tensor([7.0, 3.0]))
    torch.testing.assert_close(whole.center, parts.center)
    parts.update_center(means, torch.zeros(2))
    torch.testing.assert_close(whole.center, parts.center)


def test_entropy() -> None:
    assert entropy(torch.tensor([[1.0, 0, 0, 0]])) == 0
    assert entropy(torch.full((1, 4), 0.25)).item() == pytest.approx(math.log(4))
