# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

import math
from itertools import pairwise

import numpy as np
import pytest
import shapely
import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_iou

from cmid_geo.ops.box_coder import (
    decode_midpoints,
    decode_rotated,
    encode_midpoints,
    encode_rotated,
)
from cmid_geo.ops.rotated_boxes import (
    PAIRS,
    boxes_from_corners,
    canonical,
    corners,
    external_boxes,
    rotated_iou,
    rotated_nms,
    wrap_angle,
)

QUARTER = math.pi / 2


def some_boxes(
    number: int, far: float = 30, dtype: torch.dtype = torch.float64
) -> Tensor:
    centre = torch.rand(number, 2, dtype=dtype) * far
    sides = torch.rand(number, 2, dtype=dtype) * 30 + 1
    angle = (torch.rand(number, 1, dtype=dtype) - 0.5) * 8
    return torch.cat([centre, sides, angle], 1)


def polygons(boxes: Tensor) -> np.ndarray:
    """By hand: four corners from cosines and sines, in float64."""
    found = []
    for x, y, w, h, a in boxes.double().tolist():
        u, v = (math.cos(a) * w / 2, math.sin(a) * w / 2), (-math.sin(a) * h / 2, math.cos(a) * h / 2)  # fmt: skip
        signs = ((-1, -1), (1, -1), (1, 1), (-1, 1))
        found.append(
            [(x + s * u[0] + t * v[0], y + s * u[1] + t * v[1]) for s, t in signs]
        )
    return shapely.polygons(np.array(found))


def slow_iou(first: Tensor, second: Tensor) -> Tensor:
    a, b = polygons(first)[:, None], polygons(second)[None]
    common = shapely.area(shapely.intersection(a, b))
    whole = shapely.area(a) + shapely.area(b) - common
    return torch.from_numpy(
        np.where(whole > 0, common / np.where(whole > 0, whole, 1), 0)
    )


def same(first: Tensor, second: Tensor, atol: float = 1e-6) -> bool:
    """Whether boxes cover the same ground, in whatever form."""
    return bool(((corners(canonical(first)) - corners(canonical(second))).abs().amax((1, 2)) < atol).all())  # fmt: skip


class TestForms:
    def test_canonical_covers_the_same_ground(self) -> None:
        boxes = some_boxes(300)
        found = canonical(boxes)
        assert (found[:, 2] >= found[:, 3]).all()
        assert ((found[:, 4] >= -QUARTER) & (found[:, 4] < QUARTER)).all()
        common = shapely.intersection(polygons(boxes), polygons(found))
        areas = shapely.area(polygons(boxes))
        assert np.allclose(shapely.area(common), areas, rtol=1e-9)
        assert torch.equal(canonical(found), found)

    @pytest.mark.parametrize('angle', [-1e-9, 1e-9, math.pi, -QUARTER, QUARTER])
    def test_wrap_stays_in_its_range(self, angle: float) -> None:
        found = wrap_angle(torch.tensor([angle, angle + 7 * math.pi]))
        assert ((found >= -QUARTER) & (found < QUARTER)).all()

    def test_positive_angles_turn_clockwise_on_the_screen(self) -> None:
        box = torch.tensor([[0.0, 0.0, 2.0, 0.0, math.pi / 6]])
        right = corners(box)[0, 1]
        # The end of w that pointed right points down, where y is larger
        torch.testing.assert_close(right, torch.tensor([math.cos(math.pi / 6), 0.5]))

    def test_corners_are_those_by_hand(self) -> None:
        boxes = some_boxes(50)
        by_hand = shapely.get_coordinates(polygons(boxes)).reshape(50, 5, 2)[:, :4]
        assert np.allclose(corners(boxes), by_hand)

    @pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
    def test_boxes_come_back_from_their_corners(self, dtype: torch.dtype) -> None:
        boxes = some_boxes(200, dtype=dtype)
        order = torch.tensor([2, 0, 3, 1])
        atol = 1e-4 if dtype == torch.float32 else 1e-9
        for points in (
            corners(boxes),
            corners(boxes)[:, order],
            corners(boxes).flip(1),
        ):
            found = boxes_from_corners(points)
            assert np.allclose(
                shapely.area(shapely.symmetric_difference(polygons(found), polygons(boxes))), 0,
                atol=60 * 4 * atol,
            )  # fmt: skip

    def test_quadrilaterals_get_the_smallest_rectangle(self) -> None:
        points = torch.rand(200, 4, 2, dtype=torch.float64) * 50
        found = boxes_from_corners(points)
        hulls = shapely.convex_hull(shapely.multipoints(points.numpy()))
        smallest = [
            min(
                # Turn each edge of the hull level and take the bounds
                np.ptp(turned[:, 0]) * np.ptp(turned[:, 1])
                for (ax, ay), (bx, by) in pairwise(ring)
                for a in [math.atan2(by - ay, bx - ax)]
                for turned in [ring @ np.array([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]])]
            )
            for ring in (shapely.get_coordinates(hull) for hull in hulls)
        ]  # fmt: skip
        assert np.allclose(found[:, 2] * found[:, 3], smallest, rtol=1e-9)
        around = shapely.buffer(polygons(found), 1e-7)
        assert shapely.covers(around, hulls).all()

    def test_no_area_gives_no_nan(self) -> None:
        line = torch.tensor([[[1.0, 1], [4, 5], [4, 5], [1, 1]]])
        point = torch.ones(1, 4, 2)
        x, y, w, h, angle = boxes_from_corners(line)[0].tolist()
        assert (x, y, w) == pytest.approx((2.5, 3, 5)) and h == pytest.approx(
            0, abs=1e-6
        )
        assert angle == pytest.approx(math.atan2(4, 3))
        assert boxes_from_corners(point)[0, :4].tolist() == [1, 1, 0, 0]

    def test_external_boxes_are_the_bounds(self) -> None:
        boxes = some_boxes(100)
        assert np.allclose(external_boxes(boxes), shapely.bounds(polygons(boxes)))


class TestIoU:
    @pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
    def test_equals_shapely(self, dtype: torch.dtype) -> None:
        first, second = some_boxes(60, dtype=dtype), some_boxes(50, dtype=dtype)
        found, expected = rotated_iou(first, second), slow_iou(first, second)
        assert (expected > 0).sum() > 500 and (expected == 0).sum() > 50
        atol = 2e-7 if dtype == torch.float32 else 1e-12
        torch.testing.assert_close(found.double(), expected, atol=atol, rtol=0)

    def test_thin_boxes(self) -> None:
        boxes = some_boxes(80)
        boxes[:, 2], boxes[:, 3] = 50, 1
        torch.testing.assert_close(rotated_iou(boxes, boxes), slow_iou(boxes, boxes), atol=1e-10, rtol=0)  # fmt: skip

    @pytest.mark.parametrize('far', [0.0, 1e5])
    def test_identical_in_each_form(self, far: float) -> None:
        boxes = some_boxes(100, dtype=torch.float32)
        boxes[:, :2] += far
        turned = boxes[:, [0, 1, 3, 2, 4]] + torch.tensor([0, 0, 0, 0, QUARTER])
        for other in (boxes, turned):
            assert torch.allclose(rotated_iou(boxes, other).diagonal(), torch.ones(100), atol=1e-5)  # fmt: skip

    def test_far_from_the_origin_nothing_is_lost(self) -> None:
        boxes = some_boxes(40).float().double()
        expected = rotated_iou(boxes, boxes)
        boxes[:, :2] = (boxes[:, :2] * 64).round() / 64
        near = rotated_iou(boxes, boxes)
        far = boxes + torch.tensor([2.0**17, 2.0**17, 0, 0, 0])
        # 2^17 + n/64 is exact in float32
        found = rotated_iou(far.float(), far.float())
        torch.testing.assert_close(found.double(), near, atol=2e-6, rtol=0)
        assert (near - expected).abs().max() < 0.05

    @pytest.mark.parametrize('angle', [0.0, 0.3, math.pi / 4, QUARTER, -1.2])
    @pytest.mark.parametrize(
        ('other', 'expected'),
        [
            ((0, 0, 10, 4), 1.0),
            ((10, 0, 10, 4), 0.0),  # touch along a side
            ((10, 4, 10, 4), 0.0),  # touch at a corner
            ((0, 0, 5, 2), 0.25),  # inside
            ((2.5, 0, 5, 4), 0.5),  # inside, three sides shared
            ((5, 0, 10, 4), 1 / 3),  # two sides in line
            ((0, 0, 4, 10), 16 / 64),  # a cross
            ((0, 0, 0, 4), 0.0),
            ((0, 0, 0, 0), 0.0),
        ],
    )
    def test_closed_forms(self, angle: float, other: tuple, expected: float) -> None:
        box = torch.tensor([[0.0, 0.0, 10.0, 4.0, angle]])
        x, y, w, h = other
        cos, sin = math.cos(angle), math.sin(angle)
        moved = torch.tensor([[x * cos - y * sin, x * sin + y * cos, w, h, angle]])
        there = torch.tensor([1000.25, -37.5, 0, 0, 0])
        for shift in (torch.zeros(5), there):
            for a, b in ((box + shift, moved + shift), (moved + shift, box + shift)):
                assert rotated_iou(a, b).item() == pytest.approx(expected, abs=2e-5)

    def test_a_square_turned_by_an_eighth(self) -> None:
        square, turned = (
            torch.tensor([[5.0, 5, 2, 2, 0]]),
            torch.tensor([[5.0, 5, 2, 2, math.pi / 4]]),
        )
        octagon = 8 * (math.sqrt(2) - 1)
        assert rotated_iou(square, turned).item() == pytest.approx(octagon / (8 - octagon), abs=1e-6)  # fmt: skip

    def test_nothing_at_all(self) -> None:
        empty, some = torch.zeros(0, 5), some_boxes(3, dtype=torch.float32)
        assert rotated_iou(empty, some).shape == (0, 3)
        assert rotated_iou(some, empty).shape == (3, 0)
        point = torch.zeros(2, 5)
        assert not rotated_iou(point, point).any()

    def test_chunks_change_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        boxes = some_boxes(40)
        expected = rotated_iou(boxes, boxes)
        assert PAIRS > 1600
        monkeypatch.setattr('cmid_geo.ops.rotated_boxes.PAIRS', 100)
        torch.testing.assert_close(rotated_iou(boxes, boxes), expected)

    def test_upright_boxes_as_torchvision(self) -> None:
        boxes = some_boxes(50)
        boxes[:, 4] = QUARTER * torch.randint(-3, 4, (50,)).double()
        around = external_boxes(boxes)
        torch.testing.assert_close(rotated_iou(boxes, boxes), box_iou(around, around))


class TestNMS:
    def test_equals_the_slow_loop(self) -> None:
        boxes, labels = some_boxes(150, 60), torch.randint(0, 3, (150,))
        scores = torch.rand(150)
        iou = slow_iou(boxes, boxes)
        expected: list[int] = []
        for i in scores.argsort(descending=True).tolist():
            if all(iou[i, j] <= 0.2 or labels[i] != labels[j] for j in expected):
                expected.append(i)
        found = rotated_nms(boxes, scores, labels, 0.2)
        assert found.tolist() == expected and 20 < len(expected) < 140

    def test_upright_as_torchvision(self) -> None:
        boxes = some_boxes(100, 60, torch.float32)
        boxes[:, 4] = 0
        scores, labels = torch.rand(100), torch.randint(0, 4, (100,))
        expected = batched_nms(external_boxes(boxes), scores, labels, 0.3)
        assert torch.equal(rotated_nms(boxes, scores, labels, 0.3), expected)

    def test_a_chain(self) -> None:
        # Each overlaps the next by a third: the first goes in, the second out, the third in ...
        boxes = torch.zeros(9, 5)
        boxes[:, 0], boxes[:, 2], boxes[:, 3] = torch.arange(9) * 5, 10, 4
        scores, labels = (
            torch.arange(9, 0, -1).float(),
            torch.zeros(9, dtype=torch.long),
        )
        assert rotated_nms(boxes, scores, labels, 0.3).tolist() == [0, 2, 4, 6, 8]
        assert rotated_nms(boxes, scores, labels, 0.4).tolist() == list(range(9))
        assert rotated_nms(boxes[:0], scores[:0], labels[:0], 0.3).tolist() == []


class TestCodes:
    def anchors(self, number: int, dtype: torch.dtype = torch.float64) -> Tensor:
        boxes = some_boxes(number, dtype=dtype)
        return external_boxes(boxes * boxes.new_tensor([1, 1, 1, 1, 0]))

    @pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
    def test_midpoints_come_back(self, dtype: torch.dtype) -> None:
        boxes, anchors = some_boxes(300, dtype=dtype), self.anchors(300, dtype)
        boxes[:20, 4] = QUARTER * torch.randint(-3, 4, (20,)).double()
        boxes[20:30, 3] = boxes[20:30, 2]
        boxes[30:40, 2], boxes[30:40, 3] = 50, 1
        codes = encode_midpoints(boxes, anchors)
        assert (codes[:, 4:].abs() <= 0.5 + 1e-6).all()
        found = decode_midpoints(codes, anchors)
        common = torch.stack(
            [rotated_iou(a[None], b[None])[0, 0] for a, b in zip(found, boxes)]
        )
        # 1e-5 radians count as upright
        assert common.min() > 1 - (2e-4 if dtype == torch.float64 else 1e-3)
        assert ((found[:, 2:4].prod(1) / boxes[:, 2:4].prod(1)) - 1).abs().max() < 1e-3

    def test_midpoints_of_the_paper(self) -> None:
        # A square on its corner touches in the middle; an upright box at its corners
        anchor = torch.tensor([[0.0, 0, 10, 20]])
        codes = encode_midpoints(torch.tensor([[5.0, 10, 4, 4, math.pi / 4]]), anchor)
        side = 4 * math.sqrt(2)
        expected = [0, 0, math.log(side / 10), math.log(side / 20), 0, 0]
        assert codes[0].tolist() == pytest.approx(expected, abs=1e-6)
        upright = encode_midpoints(torch.tensor([[10.0, 15, 10, 20, 0]]), anchor)
        assert upright[0].tolist() == pytest.approx(
            [0.5, 0.25, 0, 0, -0.5, -0.5], abs=1e-6
        )

    @pytest.mark.parametrize('rounding', [-1e-7, 0.0, 1e-7])
    def test_rounding_does_not_flip_upright_boxes(self, rounding: float) -> None:
        for angle in (0.0, QUARTER, -QUARTER):
            box = torch.tensor([[5.0, 5, 8, 4, angle + rounding]])
            codes = encode_midpoints(box, torch.tensor([[0.0, 0, 10, 10]]))
            assert codes[0, 4:].tolist() == pytest.approx([-0.5, -0.5], abs=1e-4)

    def test_any_midpoints_become_rectangles(self) -> None:
        codes = torch.randn(200, 6, dtype=torch.float64)
        found, anchors = decode_midpoints(codes, self.anchors(200)), self.anchors(200)
        assert found.isfinite().all() and anchors.isfinite().all()
        huge = decode_midpoints(codes * 1e4, anchors)
        assert huge.isfinite().all()

    def test_the_shorter_diagonal_grows(self) -> None:
        # Half diagonals (0, -5) and (10, 0) become (0, -10) and (10, 0): a square on its corner
        anchor = torch.tensor([[0.0, 0, 20, 10]])
        found = decode_midpoints(torch.zeros(1, 6), anchor)
        expected = torch.tensor(
            [[10.0, 5, 10 * math.sqrt(2), 10 * math.sqrt(2), math.pi / 4]]
        )
        assert rotated_iou(found, expected).item() == pytest.approx(1, abs=1e-5)

    @pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
    def test_rotated_come_back(self, dtype: torch.dtype) -> None:
        boxes, proposals = some_boxes(300, dtype=dtype), some_boxes(300, dtype=dtype)
        codes = encode_rotated(boxes, proposals)
        assert (codes[:, 4].abs() <= 10 * math.pi / 4 + 1e-4).all()
        found = decode_rotated(codes, proposals)
        common = torch.stack(
            [rotated_iou(a[None], b[None])[0, 0] for a, b in zip(found, boxes)]
        )
        assert common.min() > 1 - (1e-9 if dtype == torch.float64 else 1e-4)

    def test_the_same_box_has_no_code(self) -> None:
        boxes = some_boxes(50)
        turned = boxes[:, [0, 1, 3, 2, 4]] - torch.tensor(
            [0, 0, 0, 0, QUARTER], dtype=torch.float64
        )
        for other in (boxes, canonical(boxes), turned):
            assert encode_rotated(other, boxes).abs().max() < 1e-9

    def test_codes_turn_with_the_scene(self) -> None:
        boxes, proposals = some_boxes(50), some_boxes(50)
        expected = encode_rotated(boxes, proposals)
        cos, sin = math.cos(0.7), math.sin(0.7)
        matrix = torch.tensor([[cos, -sin], [sin, cos]], dtype=torch.float64)
        moved = [
            torch.cat([b[:, :2] @ matrix.T, b[:, 2:4], b[:, 4:] + 0.7], 1)
            for b in (boxes, proposals)
        ]
        # Near an eighth of a turn either form of the box may be taken
        settled = (expected[:, 4].abs() - 10 * math.pi / 4).abs() > 1e-6
        torch.testing.assert_close(encode_rotated(*moved)[settled], expected[settled])

    def test_gradients_reach_the_codes(self) -> None:
        codes = torch.randn(20, 5, dtype=torch.float64, requires_grad=True)
        proposals = canonical(some_boxes(20))
        assert torch.autograd.gradcheck(
            lambda c: corners(decode_rotated(c, proposals)), codes
        )
