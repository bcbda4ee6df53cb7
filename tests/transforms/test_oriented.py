# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

import math

import pytest
import torch
from torch import Tensor

from cmid_geo.transforms.oriented import RandomTurns, rotate

BOX = torch.tensor([[20.0, 31, 22, 9, 0.4]])


def draw(box: Tensor, height: int = 64, width: int = 64) -> Tensor:
    """1 where the centre of a pixel is in the box, and 2 in the half that w points to."""
    x, y, w, h, angle = box[0]
    down, right = torch.meshgrid(
        torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing='ij'
    )
    u = (right - x) * angle.cos() + (down - y) * angle.sin()
    v = (down - y) * angle.cos() - (right - x) * angle.sin()
    inside = (u.abs() <= w / 2) & (v.abs() <= h / 2)
    return (inside.float() + (inside & (u > 0)).float())[None]


@pytest.mark.parametrize('angle', [0.0, 0.3, math.pi / 2, -2.0])
@pytest.mark.parametrize('size', [(64, 64), (64, 48)])
def test_a_rotated_drawing_stays_in_its_box(
    angle: float, size: tuple[int, int]
) -> None:
    box = torch.tensor([[23.0, 30, 18, 9, 0.4]])
    image, boxes = rotate(draw(box, *size), box, angle)
    drawn = draw(boxes, *size)
    # Only pixels on edges are interpolated
    assert (image - drawn).abs().mean() < 0.03 and drawn.sum() > 150
    assert ((image - drawn).abs() > 0.9).float().mean() < 0.012
    assert boxes[0, 4] == pytest.approx(0.4 + angle, abs=1e-5)
    if angle == 0:
        torch.testing.assert_close(image, drawn)


def test_clockwise_on_the_screen() -> None:
    image = torch.zeros(1, 5, 5)
    image[0, 2, 4] = 1
    turned, boxes = rotate(image, torch.tensor([[4.5, 2.5, 1, 1, 0]]), math.pi / 2)
    assert turned[0, 4, 2] == pytest.approx(1, abs=1e-5)
    assert boxes[0, :2].tolist() == pytest.approx([2.5, 4.5], abs=1e-5)


class TestRandomTurns:
    def batch(self) -> dict:
        boxes = [BOX, BOX[:0], torch.cat([BOX, BOX + 3])]
        return {
            'image': torch.stack([draw(BOX), torch.rand(1, 64, 64), draw(BOX)]),
            'bbox': boxes, 'label': [torch.ones(len(each)) for each in boxes],
        }  # fmt: skip

    def test_images_and_boxes_go_together(self) -> None:
        batch, seen = self.batch(), set()
        for _ in range(20):
            found = RandomTurns()(batch)
            assert torch.equal(found['image'][0], draw(found['bbox'][0]))
            assert torch.equal(found['image'][2], draw(found['bbox'][2][:1]))
            assert found['label'] is batch['label'] and found['bbox'][1].shape == (0, 5)
            seen.add(tuple(found['bbox'][0][0].tolist()))
        assert len(seen) > 4
        assert torch.equal(batch['bbox'][0], BOX)

    def test_any_angle(self) -> None:
        found = RandomTurns(rotate=1.0)(self.batch())
        angle = found['bbox'][0][0, 4] - 0.4
        assert (angle / (math.pi / 2)).frac().abs() > 1e-3

    def test_oblong_images_keep_their_shape(self) -> None:
        image, seen = draw(BOX, 64, 48).expand(30, 1, 64, 48), set()
        found = RandomTurns()({'image': image, 'bbox': [BOX] * 30})
        for one, boxes in zip(found['image'], found['bbox'], strict=True):
            assert torch.equal(one, draw(boxes, 64, 48))
            seen.add(tuple(boxes[0].tolist()))
        assert len(seen) == 4

    def test_images_without_boxes(self) -> None:
        found = RandomTurns()({'image': torch.rand(4, 3, 8, 8)})
        assert set(found) == {'image'}

    def test_bad_fractions_are_refused(self) -> None:
        with pytest.raises(ValueError, match='rotate=2 is a fraction'):
            RandomTurns(rotate=2)
