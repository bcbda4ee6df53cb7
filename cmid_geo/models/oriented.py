# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Oriented R-CNN on any timm backbone."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from ..ops.rotated_boxes import rotated_iou, rotated_nms
from .detection import check_anchors
from .freezing import PARTS, KeepFrozen
from .oriented_head import OrientedHead
from .oriented_rpn import OrientedRPN
from .pyramid import STRIDES, Pyramid, levels_of, pad

#: Boxes, confidences (``scores``) and labels of an image, or boxes and labels to learn.
Boxes = dict[str, Tensor]

#: Side in pixels of the anchors of the levels of strides 4, 8, 16, 32 and 64.
ANCHOR_SIZES = (32, 64, 128, 256, 512)


class OrientedRCNN(KeepFrozen):
    """A detector of rotated boxes in two stages.

    Xie et al. 2021, https://arxiv.org/abs/2108.05699: a region proposal network turns upright
    anchors into rotated proposals by six deltas each; a head looks at features of the rotated
    proposals, classifies and mends them. Boxes are (cx, cy, w, h, angle), see
    :mod:`~cmid_geo.ops.rotated_boxes`.

    Attributes:
        encoder: The backbone and its maps.
        fpn: Levels of equal width, strides 4 to 64.
        rpn: From anchors to proposals.
        head: From proposals to boxes.
    """

    def __init__(
        self,
        backbone: str,
        in_channels: int = 3,
        num_classes: int = 2,
        pretrained: bool = False,
        drop_path_rate: float = 0.0,
        trainable_layers: int = PARTS,
        freeze_bn: bool = False,
        anchor_sizes: Sequence[float] = ANCHOR_SIZES,
        proposals: int = 2000,
        score_thresh: float = 0.05,
        nms_thresh: float = 0.1,
        detections_per_img: int = 2000,
        fpn_channels: int = 256,
        head_channels: int = 1024,
    ) -> None:
        """Initialize a new OrientedRCNN instance.

        Args:
            backbone: timm's name of the backbone.
            in_channels: Number of bands.
            num_classes: Number of classes, the background, which is class 0, included.
            pretrained: Whether to start from timm's weights.
            drop_path_rate: Stochastic depth of the backbone, in [0, 1).
            trainable_layers: Parts of the backbone to train, see
                :func:`~cmid_geo.models.freezing.freeze_parts`.
            freeze_bn: Whether the backbone's batch norms keep statistics, scale and shift.
            anchor_sizes: Side in pixels of the anchors of the five levels, strides 4 to 64.
            proposals: Most proposals of an image, and of a level before they compete.
            score_thresh: Least confidence of a detection, in [0, 1].
            nms_thresh: Rotated IoU above which the detection of lower confidence goes, of one class, in [0, 1].
            detections_per_img: Most detections of an image.
            fpn_channels: Channels of each level.
            head_channels: Width of the head.

        Raises:
            ValueError: If the backbone is not known, or a number is off.
        """
        super().__init__()
        check_anchors('Oriented R-CNN', num_classes, anchor_sizes, ANCHOR_SIZES)
        for name, value in {'score': score_thresh, 'nms': nms_thresh}.items():
            if not 0 <= value <= 1:
                raise ValueError(f'{name}_thresh={value}: give one in [0, 1]')
        self.num_classes = num_classes
        self.score_thresh, self.nms_thresh = score_thresh, nms_thresh
        self.detections_per_img = detections_per_img
        self.encoder = Pyramid(backbone, in_channels, pretrained, drop_path_rate)
        widths = self.encoder.out_channels[-len(STRIDES) :]
        self.fpn = FeaturePyramidNetwork(widths, fpn_channels, LastLevelMaxPool())
        self.rpn = OrientedRPN(fpn_channels, anchor_sizes, proposals)
        self.head = OrientedHead(fpn_channels, head_channels, num_classes)
        self.freeze(self.encoder, trainable_layers, freeze_bn)

    def forward(
        self,
        image: Float[Tensor, 'batch bands height width'],
        targets: Sequence[Boxes] | None = None,
    ) -> Any:
        """Detect, or compute losses.

        Args:
            image: Normalized, of any size.
            targets: In training, for each image ``boxes`` (N, 5) and ``labels`` (N), from 1 to
                *num_classes* - 1. N may be 0. Boxes wholly outside of the image are left out,
                others are learned whole.

        Returns:
            With *targets* the four losses by name. Without, for each image ``boxes`` (N, 5) in
            canonical form, ``scores`` (N) falling, and ``labels`` (N).
        """
        size = (image.shape[2], image.shape[3])
        levels = self._levels(image)
        if targets is None:
            proposals = self.rpn.propose(levels, size)
            logits, deltas = self.head(levels, proposals)
            return self._detections(proposals, logits, deltas)
        targets = [_inside(target, size) for target in targets]
        proposals, losses = self.rpn.learn(levels, size, [t['boxes'] for t in targets])
        return losses | self.head.learn(levels, proposals, targets)

    def _levels(self, image: Tensor) -> list[Tensor]:
        """Maps of strides 4 to 64 of the padded image."""
        return list(levels_of(self.encoder, self.fpn, pad(image)).values())

    def _detections(
        self, proposals: list[Tensor], logits: Tensor, deltas: Tensor
    ) -> list[Boxes]:
        """The best boxes of each image."""
        counts = [len(each) for each in proposals]
        scores = logits.float().softmax(1).split(counts)
        boxes = self.head.decode(deltas.float(), torch.cat(proposals)).split(counts)
        return [self._best(b, s) for b, s in zip(boxes, scores, strict=True)]

    def _best(self, boxes: Tensor, scores: Tensor) -> Boxes:
        """Boxes of one image that are sure enough and do not repeat a better one."""
        # All classes share the box of a proposal; the background, class 0, is no detection
        rows, classes = (scores[:, 1:] > self.score_thresh).nonzero(as_tuple=True)
        labels, boxes = classes + 1, boxes[rows]
        scores = scores[rows, labels]
        kept = rotated_nms(boxes, scores, labels, self.nms_thresh)
        kept = kept[: self.detections_per_img]
        return {'boxes': boxes[kept], 'scores': scores[kept], 'labels': labels[kept]}


def _inside(target: Boxes, size: tuple[int, int]) -> Boxes:
    """Leave out boxes of which nothing is in the image."""
    height, width = size
    boxes = target['boxes']
    image = boxes.new_tensor([[width / 2, height / 2, width, height, 0.0]])
    seen = rotated_iou(boxes, image)[:, 0] > 0
    return {'boxes': boxes[seen], 'labels': target['labels'][seen]}
