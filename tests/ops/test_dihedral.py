# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Rotations and flips: what is true of the image is true of all that lies on it."""

import math

import pytest
import torch
from torch import Tensor

from cmid_geo.ops.dihedral import (
    ALL,
    Dihedral,
    dihedral_group,
    draw_dihedral,
    draw_rotations,
)
from cmid_geo.ops.rotated_boxes import (
    boxes_from_corners,
    corners,
    move_boxes,
    rotated_iou,
)

each = pytest.mark.parametrize('dihedral', ALL, ids=str)
HEIGHT, WIDTH = 6, 9


def drawn(boxes: Tensor, height: int, width: int) -> Tensor:
    """An image that holds the number of each upright box of whole pixels."""
    image = torch.zeros(height, width)
    for number, (x1, y1, x2, y2) in enumerate(boxes.int().tolist(), 1):
        image[y1:y2, x1:x2] = number
    return image


def shape(dihedral: Dihedral) -> tuple[int, int]:
    return (WIDTH, HEIGHT) if dihedral.quarters % 2 else (HEIGHT, WIDTH)


@each
def test_points_move_as_pixels_do(dihedral: Dihedral) -> None:
    image = torch.arange(HEIGHT * WIDTH).view(HEIGHT, WIDTH)
    moved = dihedral.image(image)
    assert moved.shape == shape(dihedral)
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing='ij')
    # The middle of a pixel stays the middle of a pixel
    places = dihedral.points(torch.stack([x, y], -1) + 0.5, HEIGHT, WIDTH)
    col, row = places.floor().long().unbind(-1)
    assert torch.equal(moved[row, col], image)
    assert torch.equal(places, places.floor() + 0.5)


@each
def test_boxes_move_as_pixels_do(dihedral: Dihedral) -> None:
    boxes = torch.tensor([[0.0, 0, 2, 1], [3, 1, 8, 4], [8, 5, 9, 6]])
    moved = dihedral.boxes(boxes, HEIGHT, WIDTH)
    expected = dihedral.image(drawn(boxes, HEIGHT, WIDTH))
    assert torch.equal(drawn(moved, *shape(dihedral)), expected)
    assert (moved[:, 2:] > moved[:, :2]).all()


@each
def test_the_three_forms_of_boxes_agree(dihedral: Dihedral) -> None:
    rotated = torch.tensor([[3.0, 4.0, 4.0, 2.0, 0.4], [7.0, 2.0, 1.0, 3.0, -1.2]])
    moved = dihedral.boxes(rotated, HEIGHT, WIDTH)
    points = dihedral.boxes(corners(rotated).flatten(1), HEIGHT, WIDTH).view(-1, 4, 2)
    assert (rotated_iou(moved, boxes_from_corners(points)).diag() > 0.9999).all()
    # An upright box, as a rotated one
    upright = torch.tensor([[1.0, 2.0, 5.0, 3.0]])
    told = torch.tensor([[3.0, 2.5, 4.0, 1.0, 0.0]])
    x1, y1, x2, y2 = dihedral.boxes(upright, HEIGHT, WIDTH)[0].tolist()
    around = corners(dihedral.boxes(told, HEIGHT, WIDTH))[0]
    assert around.amin(0).tolist() == pytest.approx([x1, y1], abs=1e-5)
    assert around.amax(0).tolist() == pytest.approx([x2, y2], abs=1e-5)


@each
def test_the_inverse_undoes(dihedral: Dihedral) -> None:
    image = torch.rand(2, 3, HEIGHT, WIDTH)
    assert torch.equal(dihedral.inverse.image(dihedral.image(image)), image)
    points = torch.rand(5, 2) * 6
    there = dihedral.points(points, HEIGHT, WIDTH)
    back = dihedral.inverse.points(there, *shape(dihedral))
    torch.testing.assert_close(back, points)


def test_all_eight_are_different_and_the_first_does_nothing() -> None:
    image = torch.arange(9.0).view(3, 3)
    assert len({tuple(way.image(image).flatten().tolist()) for way in ALL}) == 8
    assert ALL[0] == Dihedral() and ALL[0].image(image) is image


def test_counter_clockwise_then_a_flip() -> None:
    image = torch.tensor([[1, 2], [3, 4]])
    assert Dihedral(1).image(image).tolist() == [[2, 4], [1, 3]]
    assert Dihedral(1, True).image(image).tolist() == [[4, 2], [3, 1]]
    box = torch.tensor([[5.0, 3, 4, 2, 0.0]])
    angle = Dihedral(1).boxes(box, HEIGHT, WIDTH)[0, 4]
    assert angle.item() == pytest.approx(-math.pi / 2)


def test_groups() -> None:
    assert len(ALL) == 8
    assert {way.quarters for way in dihedral_group(square=False)} == {0, 2}
    assert dihedral_group(quarters=False) == (Dihedral(), Dihedral(flip=True))
    assert dihedral_group(flip=False) == tuple(map(Dihedral, range(4)))
    assert dihedral_group(True, False, False) == (Dihedral(),)


def test_draws_are_all_of_a_group() -> None:
    assert {draw_dihedral() for _ in range(200)} == set(ALL)
    for options in ((False, True, True), (True, False, True), (True, True, False)):
        group = dihedral_group(*options)
        assert {draw_dihedral(*options) for _ in range(100)} == set(group)
        matrices = draw_rotations(100, group)
        expected = {tuple(way.matrix(0, 0)[0].flatten().tolist()) for way in group}
        assert {tuple(each.flatten().tolist()) for each in matrices} == expected
        assert matrices.dtype == torch.float64


def test_boxes_of_another_form_are_refused() -> None:
    with pytest.raises(ValueError, match='boxes of 6 values'):
        move_boxes(torch.zeros(2, 6), torch.eye(2), torch.zeros(2))
