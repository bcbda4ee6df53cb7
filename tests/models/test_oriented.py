# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

import math

import pytest
import torch
from torch import Tensor

from cmid_geo.models import load_backbone
from cmid_geo.models.oriented import OrientedRCNN
from cmid_geo.models.oriented_head import CELLS, draw, rotated_features
from cmid_geo.models.oriented_rpn import OrientedRPN, match_anchors
from cmid_geo.ops.box_coder import decode_midpoints, encode_midpoints
from cmid_geo.ops.rotated_boxes import external_boxes, rotated_iou

SMALL = {'fpn_channels': 16, 'head_channels': 32, 'proposals': 50}
# ResNet-50 too is trained by the tests of the task
BACKBONES = ('resnet_test', 'swin_test', 'vit_test')


def a_target(*boxes: tuple[float, ...]) -> dict[str, Tensor]:
    return {
        'boxes': torch.tensor(boxes, dtype=torch.float32).reshape(-1, 5),
        'labels': torch.ones(len(boxes), dtype=torch.long),
    }


def maps(size: int = 64, channels: int = 2) -> list[Tensor]:
    """Maps that hold the x and y of the image at their vectors' centres."""
    levels = []
    for stride in (4, 8, 16, 32):
        at = (torch.arange(size // stride) + 0.5) * stride
        y, x = torch.meshgrid(at, at, indexing='ij')
        levels.append(torch.stack([x, y])[None])
    return levels


class TestFeatures:
    @pytest.mark.parametrize('side', [20.0, 130.0, 250.0])
    def test_coordinates_are_where_they_should_be(self, side: float) -> None:
        # What is interpolated linearly from coordinates are coordinates
        box = torch.tensor([[256.0, 240, side, side / 2, 0.5]])
        found = rotated_features(maps(512), [box])[0]
        u = ((torch.arange(CELLS) + 0.5) / CELLS - 0.5) * side
        v = u / 2
        cos, sin = math.cos(0.5), math.sin(0.5)
        x = 256 + u[None] * cos - v[:, None] * sin
        y = 240 + u[None] * sin + v[:, None] * cos
        torch.testing.assert_close(found, torch.stack([x, y]), atol=1e-3, rtol=0)

    def test_a_turned_scene_has_the_same_features(self) -> None:
        level = torch.rand(1, 3, 32, 32)
        turned = level.rot90(-1, (2, 3))
        box = torch.tensor([[40.0, 60, 50, 20, 0.4]])
        # Clockwise by a quarter: (x, y) goes to (side - y, x)
        other = torch.tensor([[128.0 - 60, 40, 50, 20, 0.4 + math.pi / 2]])
        first, second = (
            rotated_features([level], [box]),
            rotated_features([turned], [other]),
        )
        torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)

    def test_larger_boxes_are_seen_coarser(self) -> None:
        levels = [
            torch.full((1, 1, 2048 // s, 2048 // s), float(s)) for s in (4, 8, 16, 32)
        ]
        sides = (5.0, 111, 113, 223, 225, 447, 449, 1000)
        boxes = torch.tensor(
            [[1024.0, 1024, side * 2, side / 2, 0.3] for side in sides]
        )
        found = rotated_features(levels, [boxes])[:, 0, 3, 3]
        assert found.tolist() == pytest.approx([4, 4, 8, 8, 16, 16, 32, 32])

    def test_boxes_stay_with_their_images_and_in_their_order(self) -> None:
        levels = [torch.stack([torch.full((1, 512 // s, 512 // s), float(i)) for i in range(3)]) for s in (4, 8, 16, 32)]  # fmt: skip
        small, large = [256.0, 256, 20, 20, 0], [256.0, 256, 300, 200, 1]
        boxes = [
            torch.tensor([large, small]),
            torch.zeros(0, 5),
            torch.tensor([small, large, small]),
        ]
        found = rotated_features(levels, boxes)[:, 0].mean((1, 2))
        assert found.tolist() == pytest.approx([0, 0, 2, 2, 2])

    def test_outside_is_zero(self) -> None:
        far = torch.tensor([[-100.0, 20, 10, 10, 0.3]])
        assert not rotated_features(maps(), [far]).any()
        assert rotated_features(maps(), [torch.zeros(0, 5)]).shape == (0, 2, 7, 7)


class TestStages:
    def test_anchors_are_centred_on_cells(self) -> None:
        rpn = OrientedRPN(8, (32, 64, 128, 256, 512), 100)
        levels = [torch.zeros(1, 8, 128 // s, 64 // s) for s in (4, 8, 16, 32, 64)]
        anchors = rpn._anchors(levels)
        centres = (anchors[:, :2] + anchors[:, 2:]) / 2
        assert len(anchors) == 3 * sum(128 * 64 // s**2 for s in (4, 8, 16, 32, 64))
        assert centres[:4].tolist() == [[2, 2]] * 3 + [[6, 2]]
        assert centres[-1].tolist() == [32, 96]
        sides = anchors[:3, 2:] - anchors[:3, :2]
        assert sides.tolist() == [[46, 22], [32, 32], [22, 46]]

    def test_matches(self) -> None:
        anchors = torch.tensor(
            [[0.0, 0, 10, 10], [0, 0, 10, 16], [20, 0, 30, 9], [50, 50, 60, 60]]
        )
        boxes = torch.tensor([[5.0, 5, 10, 10, 0], [25, 2, 4, 4, 0.1]])
        # Its own; 0.625 is not clear; the best of the second though small; nothing
        assert match_anchors(anchors, boxes).tolist() == [0, -2, 1, -1]
        assert match_anchors(anchors, boxes[:0]).tolist() == [-1] * 4

    def test_proposals_are_what_the_numbers_say(self) -> None:
        rpn = OrientedRPN(8, (32, 64, 128, 256, 512), 100)
        levels = [torch.zeros(1, 8, 128 // s, 128 // s) for s in (4, 8, 16, 32, 64)]
        anchors = rpn._anchors(levels)
        scores, codes = (
            torch.full((1, len(anchors)), -9.0),
            torch.zeros(1, len(anchors), 6),
        )
        box = torch.tensor([[40.0, 50, 40, 12, 0.6]])
        scores[0, 100] = 9.0
        codes[0, 100] = encode_midpoints(box, anchors[100:101])[0]
        found = rpn._select(scores, codes, levels, (128, 128))[0]
        assert rotated_iou(found[:1], box).item() > 0.999
        assert 1 < len(found) <= 100

    def test_of_proposals_none_is_where_the_image_was_filled_up(self) -> None:
        rpn = OrientedRPN(8, (32, 64, 128, 256, 512), 3000)
        levels = [torch.zeros(1, 8, 128 // s, 128 // s) for s in (4, 8, 16, 32, 64)]
        found = rpn.propose(levels, (100, 70))[0]
        around = external_boxes(found)
        assert around[:, 0].max() < 70 and around[:, 1].max() < 100 and len(found) > 100
        # The centre of an object that is cut by the border may be outside
        assert found[:, 0].max() > 70

    def test_drawn_proposals(self) -> None:
        target = a_target((50, 50, 40, 10, 0.5), (20, 80, 10, 10, 0))
        target['labels'] = torch.tensor([2, 1])
        near = target['boxes'] + torch.tensor([1.0, 0, 0, 0, 0.02])
        crossed = target['boxes'][:1] + torch.tensor([0, 0, 0, 0, 1.5])
        boxes, labels, goals = draw(torch.cat([near, crossed]), target)
        assert labels.tolist() == [2, 1, 0, 2, 1]
        assert goals[3:].abs().max() < 1e-5 and goals[0, 4].item() == pytest.approx(
            -0.2, abs=1e-5
        )
        assert len(boxes) == 5
        boxes, labels, _ = draw(near, a_target())
        assert labels.tolist() == [0, 0] and len(boxes) == 2

    def test_the_rpn_learns_the_six_numbers(self) -> None:
        torch.manual_seed(0)
        rpn = OrientedRPN(8, (16, 32, 64, 128, 256), 200)
        levels = [torch.randn(1, 8, 64 // s, 64 // s) for s in (4, 8, 16, 32, 64)]
        box = torch.tensor([[30.0, 34, 24, 9, 0.7]])
        optimizer = torch.optim.Adam(rpn.parameters(), 0.01)
        for _ in range(80):
            _, losses = rpn.learn(levels, (64, 64), [box])
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
        found = rpn.propose(levels, (64, 64))[0]
        assert rotated_iou(found[:1], box).item() > 0.8


class TestDetector:
    @pytest.mark.parametrize('backbone', BACKBONES)
    def test_each_family_learns_detects_and_reloads(self, backbone: str) -> None:
        detector = OrientedRCNN(backbone, num_classes=3, score_thresh=0.0, **SMALL)
        image = torch.rand(2, 3, 64, 64)
        losses = detector(image, [a_target((30, 30, 20, 8, 0.5)), a_target()])
        assert set(losses) == {'loss_objectness', 'loss_rpn_box', 'loss_classifier', 'loss_box'}  # fmt: skip
        assert all(loss.isfinite() and loss.item() > 0 for loss in losses.values())
        sum(losses.values()).backward()
        still = [n for n, p in detector.named_parameters() if p.grad is None]
        assert not still
        other = OrientedRCNN(backbone, num_classes=3, score_thresh=0.0, **SMALL)
        other.load_state_dict(detector.state_dict())
        for first, second in zip(
            detector.eval()(image), other.eval()(image), strict=True
        ):
            assert first['boxes'].shape[1] == 5 and len(first['boxes']) > 0
            assert set(first['labels'].tolist()) <= {1, 2}
            assert (first['scores'].diff() <= 0).all()
            torch.testing.assert_close(first, second)

    def test_background_alone_is_learned(self) -> None:
        detector = OrientedRCNN('resnet_test', **SMALL)
        losses = detector(torch.rand(1, 3, 64, 64), [a_target()])
        assert losses['loss_box'] == 0 and losses['loss_rpn_box'] == 0
        sum(losses.values()).backward()
        assert detector.head.classes.bias.grad.abs().sum() > 0

    def test_boxes_wholly_outside_are_as_none(self) -> None:
        detector = OrientedRCNN('resnet_test', **SMALL).eval()
        image = torch.rand(1, 3, 64, 64)
        results = []
        for target in (
            a_target(),
            a_target((-30, 30, 20, 8, 0.5), (80, 80, 30, 9, -0.7)),
        ):
            torch.manual_seed(0)
            results.append(detector(image, [target]))
        torch.testing.assert_close(*results)
        torch.manual_seed(0)
        part = detector(image, [a_target((-5, 30, 20, 8, 0.5))])
        assert part['loss_rpn_box'] > 0

    def test_half_precision_keeps_places(self) -> None:
        detector = OrientedRCNN('resnet_test', score_thresh=0.0, **SMALL).eval()
        image, target = torch.rand(1, 3, 64, 64), a_target((30, 30, 20, 8, 0.5))
        with torch.autocast('cpu', torch.bfloat16):
            found = detector(image)[0]
            losses = detector.train()(image, [target])
        assert found['boxes'].dtype == found['scores'].dtype == torch.float32
        sum(losses.values()).backward()
        assert detector.rpn.code.weight.grad.abs().sum() > 0
        # At 1000 pixels bfloat16 knows only every fourth
        level = torch.arange(256.0).expand(1, 1, 256, 256).bfloat16()
        box = torch.tensor([[1000.0, 500, 8, 8, 0]])
        centre = rotated_features([level], [box])[0, 0, 3, 3]
        assert centre.item() == pytest.approx(1000 / 4 - 0.5, abs=1.0)

    def test_without_any_proposal(self) -> None:
        detector = OrientedRCNN('resnet_test', **SMALL)
        levels, none = maps(64), [torch.zeros(0, 5)]
        levels = [each.mean(1, keepdim=True).expand(1, 16, -1, -1) for each in levels]
        losses = detector.head.learn(levels, none, [a_target()])
        assert losses['loss_classifier'] == 0 and losses['loss_box'] == 0
        logits, codes = detector.head(levels, none)
        found = detector._detections(none, logits, codes)
        assert len(found) == 1 and found[0]['boxes'].shape == (0, 5)

    def test_any_size(self) -> None:
        detector = OrientedRCNN('resnet_test', score_thresh=0.0, **SMALL).eval()
        image = torch.rand(1, 3, 50, 70)
        filled = torch.zeros(1, 3, 64, 96)
        filled[..., :50, :70] = image
        for a, b in zip(detector._levels(image), detector._levels(filled), strict=True):
            torch.testing.assert_close(a, b)
        found = detector(image)[0]['boxes']
        assert len(found) and external_boxes(found).isfinite().all()

    def test_detections_do_not_repeat_and_score_enough(self) -> None:
        detector = OrientedRCNN('resnet_test', num_classes=3, score_thresh=0.2, **SMALL)
        boxes = torch.tensor(
            [[20.0, 20, 10, 4, 0.3], [20, 20, 10, 4.2, 0.3], [50, 50, 9, 9, 0]]
        )
        scores = torch.tensor([[0.1, 0.9, 0.0], [0.1, 0.65, 0.25], [0.8, 0.1, 0.1]])
        found = detector._best(boxes, scores)
        # The second's first class repeats the first; the third is background
        assert found['labels'].tolist() == [1, 2]
        assert found['scores'].tolist() == pytest.approx([0.9, 0.25])
        detector.detections_per_img = 1
        assert len(detector._best(boxes, scores)['boxes']) == 1

    def test_weights_load_into_the_backbone(self) -> None:
        source = OrientedRCNN('resnet_test', **SMALL)
        target = OrientedRCNN('resnet_test', **SMALL)
        report = load_backbone(target, source.encoder.network.state_dict())
        assert len(report.loaded) == report.total > 50
        key = 'layer3.0.conv1.weight'
        assert torch.equal(
            target.encoder.network.state_dict()[key],
            source.encoder.network.state_dict()[key],
        )

    def test_frozen_parts_stay(self) -> None:
        detector = OrientedRCNN(
            'resnet_test', trainable_layers=3, freeze_bn=True, **SMALL
        ).train()
        before = {k: v.clone() for k, v in detector.state_dict().items()}
        losses = detector(
            torch.rand(2, 3, 64, 64), [a_target((30, 30, 20, 8, 0.5))] * 2
        )
        sum(losses.values()).backward()
        torch.optim.SGD(detector.parameters(), 0.1).step()
        changed = {
            k for k, v in detector.state_dict().items() if not torch.equal(v, before[k])
        }
        network = {
            k.removeprefix('encoder.network.')
            for k in changed
            if k.startswith('encoder')
        }
        # Residual branches end in zeros at first and pass no gradient on
        assert 'layer2.0.downsample.0.weight' in network
        assert not [k for k in network if k.startswith(('conv1', 'layer1')) or 'bn' in k or 'running' in k]  # fmt: skip

    @pytest.mark.parametrize(
        ('options', 'message'),
        [
            ({'num_classes': 1}, 'num_classes=1 counts the background'),
            (
                {'anchor_sizes': (8, 16)},
                r'anchor_sizes=\(8, 16\): Oriented R-CNN has 5',
            ),
            ({'score_thresh': 5.0}, r'score_thresh=5.0: give one'),
            ({'nms_thresh': -1.0}, r'nms_thresh=-1.0: give one'),
        ],
    )
    def test_bad_numbers_are_refused(self, options: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            OrientedRCNN('resnet_test', **options)

    def test_decode_is_the_inverse_for_proposals_of_the_rpn(self) -> None:
        box, anchor = (
            torch.tensor([[40.0, 50, 40, 12, 0.6]]),
            torch.tensor([[20.0, 20, 60, 80]]),
        )
        found = decode_midpoints(encode_midpoints(box, anchor), anchor)
        torch.testing.assert_close(found, box, atol=1e-4, rtol=0)
