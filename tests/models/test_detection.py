# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

from typing import Any

import pytest
import timm
import torch
from torch import nn

from cmid_geo.models import create_detector, load_backbone
from cmid_geo.models.detection import ANCHOR_SIZES, FPNBackbone, PadOnly
from cmid_geo.models.freezing import freeze_parts
from cmid_geo.models.pyramid import Pyramid

TARGETS = [
    {'boxes': torch.tensor([[10.0, 10, 40, 50]]), 'labels': torch.tensor([1])},
    {'boxes': torch.zeros(0, 4), 'labels': torch.zeros(0, dtype=torch.long)},
]


@pytest.mark.parametrize('model', ANCHOR_SIZES)
def test_every_detector_learns_and_detects(model: Any) -> None:
    detector = create_detector(
        model, 'resnet_test', 4, 3, score_thresh=0.0, fpn_channels=64
    )
    images = torch.rand(2, 4, 80, 100)
    losses = detector.train()(images, TARGETS)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert detector.backbone.body.network.conv1.weight.grad.abs().sum() > 0
    found = detector.eval()(images)
    boxes = torch.cat([each['boxes'] for each in found])
    # Not beyond the image into the padding
    assert len(boxes) and boxes.min() >= 0
    assert boxes[:, 2].max() <= 100 and boxes[:, 3].max() <= 80
    assert all(set(each['labels'].tolist()) <= {0, 1, 2} for each in found)


@pytest.mark.parametrize('model', ANCHOR_SIZES)
def test_images_without_boxes_are_background(model: Any) -> None:
    detector = create_detector(model, 'resnet_test', 3, 2).train()
    losses = detector(torch.rand(2, 3, 64, 64), TARGETS[1:] * 2)
    total = sum(losses.values())
    assert total.isfinite() and total > 0
    box_losses = [
        each for name, each in losses.items() if 'box' in name or 'bbox' in name
    ]
    assert sum(box_losses) == 0


@pytest.mark.parametrize(
    'name',
    ('resnet_test', 'swin_test', 'vit_test', 'convnext_atto'),
)  # fmt: skip
def test_levels_of_any_backbone(name: str) -> None:
    backbone = FPNBackbone(name, 5, extra_levels=2)
    levels = backbone(torch.rand(1, 5, 128, 96))
    assert [tuple(level.shape[1:]) for level in levels.values()] == [
        (256, 32, 24), (256, 16, 12), (256, 8, 6), (256, 4, 3), (256, 2, 2), (256, 1, 1)
    ]  # fmt: skip
    assert list(levels)[:4] == ['0', '1', '2', '3']


def test_images_are_padded_and_else_left() -> None:
    images = torch.rand(2, 3, 33, 64) * 9 - 4
    listed, targets = PadOnly()(images, TARGETS)
    assert listed.tensors.shape == (2, 3, 64, 64)
    assert listed.image_sizes == [(33, 64)] * 2
    assert torch.equal(listed.tensors[:, :, :33], images)
    assert listed.tensors[:, :, 33:].abs().sum() == 0
    assert targets is TARGETS


@pytest.mark.parametrize('model', ('faster-rcnn', 'retinanet'))
def test_anchors_are_of_the_size_asked_for(model: Any) -> None:
    sizes = tuple(2 * size for size in ANCHOR_SIZES[model])
    detector = create_detector(model, 'resnet_test', anchor_sizes=sizes)
    anchors = (
        detector.rpn.anchor_generator
        if model == 'faster-rcnn'
        else detector.anchor_generator
    )
    for cells, size in zip(anchors.cell_anchors, sizes, strict=True):
        sides = (cells[:, 2:] - cells[:, :2]).prod(1).sqrt()
        # torchvision rounds the corners
        assert sides.min() == pytest.approx(size, abs=1.5)
        top = size if model == 'faster-rcnn' else size * 2 ** (2 / 3)
        assert sides.max() == pytest.approx(top, abs=1.5)


@pytest.mark.parametrize('model', ANCHOR_SIZES)
def test_options_of_detection_reach_the_detector(model: Any) -> None:
    detector = create_detector(
        model, 'resnet_test', score_thresh=0.0, nms_thresh=1.0, detections_per_img=7
    )
    found = detector.eval()(torch.rand(1, 3, 64, 64))
    assert len(found[0]['boxes']) == 7


@pytest.mark.parametrize('frozen', (False, True))
def test_batch_norm_frozen_or_not(frozen: bool) -> None:
    detector = create_detector('fcos', 'resnet_test', freeze_bn=frozen).eval().train()
    network = detector.backbone.body.network
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [norm.running_mean.clone() for norm in norms]
    sum(detector(torch.rand(2, 3, 64, 64), TARGETS).values()).backward()
    for norm, mean in zip(norms, before, strict=True):
        assert torch.equal(norm.running_mean, mean) == frozen
        assert norm.weight.requires_grad != frozen
    assert network.conv1.weight.grad is not None


@pytest.mark.parametrize(
    'name, stem, first, second',
    (
        ('resnet_test', 'conv1', 'layer1', 'layer2'),
        ('swin_test', 'patch_embed', 'layers_0', 'layers_1'),
        ('vit_tiny_patch16_224', 'pos_embed', 'blocks.2', 'blocks.3'),
        ('convnext_atto', 'stem_0', 'stages_0', 'stages_1'),
    ),
)
def test_first_parts_frozen(name: str, stem: str, first: str, second: str) -> None:
    pyramid = Pyramid(name)
    still = freeze_parts(pyramid, 3)
    learned = {
        key: parameter.requires_grad
        for key, parameter in pyramid.network.named_parameters()
    }
    for key, expected in ((stem, False), (first, False), (second, True)):
        found = {
            value for each, value in learned.items() if f'{each}.'.startswith(f'{key}.')
        }
        assert found == {expected}, key
    assert {id(module) for module in still} <= {
        id(m) for m in pyramid.network.modules()
    }
    freeze_parts(pyramid, 0)
    assert not any(
        parameter.requires_grad for parameter in pyramid.network.parameters()
    )


def test_frozen_parts_stay_in_evaluation() -> None:
    backbone = FPNBackbone('resnet_test', trainable_layers=3).train()
    network: Any = backbone.body.network
    assert not network.bn1.training and not network.layer1[0].bn1.training
    assert network.layer2[0].bn1.training and network.layer4.training
    before = network.layer1[0].bn1.running_mean.clone()
    backbone(torch.rand(1, 3, 64, 64))
    assert torch.equal(network.layer1[0].bn1.running_mean, before)
    assert not any('_still' in name for name in backbone.state_dict())


@pytest.mark.parametrize('name', ('resnet_test', 'swin_test', 'vit_test'))  # fmt: skip
def test_weights_reach_the_backbone_of_a_detector(name: str) -> None:
    given = timm.create_model(name, num_classes=0)
    detector = create_detector('faster-rcnn', name)
    report = load_backbone(detector, given.state_dict())
    assert len(report.loaded) == report.total
    own = detector.backbone.body.network.state_dict()
    pairs = {key: value for key, value in given.state_dict().items() if key.replace('layers.', 'layers_') in own}  # fmt: skip
    assert len(pairs) > 0.9 * len(own)
    for key, value in pairs.items():
        assert torch.equal(own[key.replace('layers.', 'layers_')], value), key


def test_more_bands_take_the_weights_too() -> None:
    given = timm.create_model('resnet_test', num_classes=0).state_dict()
    detector = create_detector('fcos', 'resnet_test', in_channels=6)
    report = load_backbone(detector, given)
    assert 'conv1.weight' in report.adapted
    assert detector.backbone.body.network.conv1.weight.shape[1] == 6


def test_stochastic_depth() -> None:
    detector = create_detector('fcos', 'convnext_atto', drop_path_rate=0.3)
    blocks = detector.backbone.body.network.stages_3.blocks
    assert blocks[-1].drop_path.drop_prob == pytest.approx(0.3)


@pytest.mark.parametrize(
    'options, message',
    (
        ({'fpn_channels': 40}, 'fpn_channels=40.*multiple of 32'),
        ({'num_classes': 1}, 'counts the background.*plus 1'),
        ({'anchor_sizes': (8, 16)}, 'faster-rcnn has 5 levels'),
        ({'anchor_sizes': (0, 1, 2, 3, 4)}, 'one positive side'),
        ({'trainable_layers': 6}, 'trainable_layers=6.*0 to 5'),
        ({'backbone': 'resnet19'}, 'did you mean'),
        ({'backbone': 'efficientnet_b0', 'trainable_layers': 3}, 'set trainable_layers=5'),
    ),
)  # fmt: skip
def test_bad_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_detector(
            **({'model': 'faster-rcnn', 'backbone': 'resnet_test'} | options)
        )
