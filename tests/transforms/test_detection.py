# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

import pytest
import torch
from torch import Tensor

from cmid_geo.transforms.detection import (
    BoxAugmentation,
    check_boxes,
    keep_visible,
    resize,
)


def drawn(boxes: Tensor, height: int, width: int) -> Tensor:
    """An image that is 1 inside of boxes of whole pixels."""
    image = torch.zeros(1, height, width)
    for x1, y1, x2, y2 in boxes.int().tolist():
        image[:, y1:y2, x1:x2] = 1
    return image


@pytest.mark.parametrize('size, positions', (((16, 16), 8), ((16, 12), 4)))
def test_rotations_and_flips_move_boxes_exactly(
    size: tuple[int, int], positions: int
) -> None:
    boxes = torch.tensor([[2.0, 3.0, 9.0, 5.0], [10.0, 0.0, 11.0, 16.0]])
    image, seen = drawn(boxes, *size)[None].expand(80, 1, *size), set()
    labels = torch.tensor([1, 2])
    augment = BoxAugmentation(contrast=0.0, brightness=0.0)
    images, moved, _ = augment(image, [boxes] * 80, [labels] * 80)
    for one, each in zip(images, moved, strict=True):
        assert torch.equal(one, drawn(each, *size))
        seen.add(tuple(each.flatten().tolist()))
    assert len(seen) == positions


@pytest.mark.parametrize('flips, turns, positions', ((1, 0, 2), (0, 1, 4), (0, 0, 1)))
def test_only_what_is_wanted_is_drawn(flips: int, turns: int, positions: int) -> None:
    boxes = torch.tensor([[1.0, 2.0, 5.0, 4.0]])
    augment = BoxAugmentation(bool(flips), bool(turns))
    _, moved, _ = augment(
        torch.rand(40, 1, 8, 8), [boxes] * 40, [torch.tensor([1])] * 40
    )
    assert len({tuple(each[0].tolist()) for each in moved}) == positions


@pytest.mark.parametrize('scale', (0.5, 0.8, 1.3, 2.0))
@pytest.mark.parametrize('left, top', ((0.0, 0.0), (0.3, 0.9), (1.0, 1.0)))
def test_scaled_boxes_fit_what_is_scaled(scale: float, left: float, top: float) -> None:
    boxes = torch.tensor([[30.0, 20.0, 60.0, 50.0]])
    image, moved = resize(drawn(boxes, 80, 100), boxes, scale, left, top)
    inside, kept = keep_visible(moved, 80, 100)
    rows, cols = (image[0] > 0.5).nonzero().unbind(1)
    if not len(kept):
        assert not len(rows)
        return
    edges = torch.stack([cols.min(), rows.min(), cols.max() + 1, rows.max() + 1])
    assert (edges - inside[0]).abs().max() <= 1
    assert (moved[0, 2] - moved[0, 0]) == pytest.approx(30 * scale, abs=0.5)


def test_random_changes_keep_the_object_in_its_box() -> None:
    augment = BoxAugmentation(scale=(0.5, 1.5), min_visible=0.0)
    boxes = torch.tensor([[20.0, 24.0, 44.0, 40.0]])
    image, seen = drawn(boxes, 64, 64)[None].expand(40, 1, 64, 64), []
    images, moved, labels = augment(image, [boxes] * 40, [torch.tensor([2])] * 40)
    for one, box, label in zip(images, moved, labels, strict=True):
        rows, cols = (one[0] > 0.55 * one.max()).nonzero().unbind(1)
        assert label.tolist() == [2] * len(box)
        if len(box):
            x1, y1, x2, y2 = box[0].tolist()
            assert x1 - 1 <= cols.min() and cols.max() + 1 <= x2 + 1
            assert y1 - 1 <= rows.min() and rows.max() + 1 <= y2 + 1
            seen.append(tuple(box[0].tolist()))
    assert len(set(seen)) > 25


def test_labels_go_with_their_boxes() -> None:
    augment = BoxAugmentation(scale=(1.6, 1.6), min_visible=0.5)
    boxes = torch.tensor([[0.0, 0.0, 24.0, 24.0], [40.0, 40.0, 64.0, 64.0]])
    image = drawn(boxes[1:], 64, 64)
    found = []
    for _ in range(40):
        images, moved, labels = augment(image[None], [boxes], [torch.tensor([5, 7])])
        for box, label in zip(moved[0].int().tolist(), labels[0].tolist(), strict=True):
            x1, y1, x2, y2 = box
            bright = images[0, 0, y1:y2, x1:x2].mean() > 0.4
            assert bright == (label == 7)
            found.append(label)
    assert set(found) == {5, 7} and len(found) < 80


def test_images_without_boxes_stay_without() -> None:
    empty = torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)
    _, boxes, labels = BoxAugmentation(scale=(0.5, 2.0))(
        torch.rand(1, 3, 32, 32), [empty[0]], [empty[1]]
    )
    assert boxes[0].shape == (0, 4) and labels[0].shape == (0,)


def test_colours_change_each_image_within_its_range() -> None:
    nothing = [torch.zeros(0, 4)] * 20, [torch.zeros(0, dtype=torch.long)] * 20
    image = torch.rand(1, 5, 8, 8).expand(20, 5, 8, 8)
    options = {'flips': False, 'turns': False}
    found, _, _ = BoxAugmentation(**options)(image, *nothing)
    assert len({float(each.mean()) for each in found}) > 15
    assert found.min() >= 0 and found.max() <= 1
    same, _, _ = BoxAugmentation(**options, contrast=0.0, brightness=0.0)(image, *nothing)  # fmt: skip
    torch.testing.assert_close(same, image)


def test_keep_visible() -> None:
    boxes = torch.tensor([
        [-10.0, -10.0, 10.0, 10.0],  # a quarter is left
        [4.0, 4.0, 8.0, 9.0],
        [20.0, 0.0, 30.0, 5.0],  # touches from outside
        [5.0, 5.0, 5.0, 9.0],  # no area
    ])  # fmt: skip
    clipped, kept = keep_visible(boxes, 20, 20)
    assert kept.tolist() == [0, 1]
    assert clipped.tolist() == [[0, 0, 10, 10], [4, 4, 8, 9]]
    assert keep_visible(boxes, 20, 20, 0.3)[1].tolist() == [1]
    assert keep_visible(boxes, 20, 20, 0.25)[1].tolist() == [0, 1]


@pytest.mark.parametrize(
    'boxes, labels, message',
    (
        ([[0.0, 0, 4, float('nan')]], [1], 'is not finite: correct or remove it'),
        ([[0.0, 0, float('inf'), 4]], [1], 'is not finite'),
        ([[9.0, 9, 4, 5]], [1], 'ends before it begins.*convert them'),
        ([[0.0, 0, 4, 4]], [0], 'label 0 but num_classes=3 knows objects 1 to 2'),
        ([[0.0, 0, 4, 4]], [3], 'label 3 .*raise num_classes=, or correct'),
        ([[0.0, 0, 4, 4]], [1, 2], r'boxes of shape \(1, 4\) with labels of shape \(2,\)'),
        ([0.0, 0, 4, 4], [1], r'give \(N, 4\) and \(N\)'),
    ),
)  # fmt: skip
def test_what_is_no_box_is_refused(boxes: list, labels: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_boxes(torch.tensor(boxes), torch.tensor(labels), 3)


def test_boxes_at_the_limits_pass() -> None:
    boxes = torch.tensor([[-5.0, 0, 900, 0]])
    given = boxes.clone()
    check_boxes(boxes, torch.tensor([2]), 3)
    check_boxes(boxes[:0], torch.zeros(0, dtype=torch.long), 3)
    assert torch.equal(boxes, given)


@pytest.mark.parametrize(
    'options', ({'scale': (2.0, 1.0)}, {'scale': (0.0, 1.0)}, {'contrast': 1.5})
)
def test_bad_numbers_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        BoxAugmentation(**options)
