# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""The first stage of Oriented R-CNN: rotated proposals from upright anchors."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, Matcher
from torchvision.ops import batched_nms, box_iou

from ..ops.box_coder import decode_midpoints, encode_midpoints
from ..ops.rotated_boxes import external_boxes
from .detection import anchors_of

#: Heights by widths of anchors.
ASPECT_RATIOS = (0.5, 1.0, 2.0)

#: IoU of an anchor with the external box of an object from which, and below which, it counts.
OBJECT, NOTHING = 0.7, 0.3

#: Anchors of an image that are learned from, and how many of them may be objects.
SAMPLES, SHARE = 256, 0.5

#: IoU of external boxes above which the proposal of lower score goes.
OVERLAP = 0.8

#: Least side of a proposal in pixels.
LEAST = 1.0


class OrientedRPN(nn.Module):
    """Scores and six numbers for every anchor (Xie et al. 2021, section 3.1)."""

    def __init__(
        self, channels: int, anchor_sizes: Sequence[float], proposals: int
    ) -> None:
        """Initialize a new OrientedRPN instance.

        Args:
            channels: Of each level.
            anchor_sizes: Side in pixels of the anchors of each level.
            proposals: Most proposals of an image, and of a level before they compete.
        """
        super().__init__()
        self.proposals = proposals
        self.anchors = anchors_of(anchor_sizes, ASPECT_RATIOS)
        kinds = len(ASPECT_RATIOS)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.score = nn.Conv2d(channels, kinds, 1)
        self.code = nn.Conv2d(channels, kinds * 6, 1)
        layers: tuple[Any, ...] = (self.conv, self.score, self.code)
        for layer in layers:
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(
        self, levels: list[Tensor]
    ) -> tuple[Float[Tensor, 'batch anchors'], Float[Tensor, 'batch anchors 6']]:
        """Scores and codes of all anchors.

        Args:
            levels: Maps of equal width, from fine to coarse.

        Returns:
            Logits, and numbers as of :func:`~cmid_geo.ops.box_coder.encode_midpoints`;
            level by level, row by row, column by column, anchor by anchor.
        """
        scores, codes = [], []
        for level in levels:
            hidden = F.relu(self.conv(level))
            scores.append(self.score(hidden).permute(0, 2, 3, 1).flatten(1))
            code = self.code(hidden).permute(0, 2, 3, 1)
            codes.append(code.reshape(len(code), -1, 6))
        return torch.cat(scores, 1).float(), torch.cat(codes, 1).float()

    def propose(self, levels: list[Tensor], size: tuple[int, int]) -> list[Tensor]:
        """Propose boxes.

        Args:
            levels: Maps of equal width, from fine to coarse.
            size: Height and width of the images without what fills them up.

        Returns:
            For each image (cx, cy, w, h, angle) of the best.
        """
        scores, codes = self(levels)
        return self._select(scores, codes, levels, size)

    def learn(
        self, levels: list[Tensor], size: tuple[int, int], boxes: list[Tensor]
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Propose boxes, and compute the losses.

        Args:
            levels: Maps of equal width, from fine to coarse.
            size: Height and width of the images without what fills them up.
            boxes: Of the objects of each image, (N, 5).

        Returns:
            Proposals as of :meth:`propose`, and the losses ``loss_objectness`` (binary
            cross-entropy) and ``loss_rpn_box`` (smooth L1, beta 1/9), both means over the
            sampled anchors.
        """
        scores, codes = self(levels)
        with torch.no_grad():
            proposals = self._select(scores, codes, levels, size)
            anchors = self._anchors(levels)
            matches = torch.stack([match_anchors(anchors, each) for each in boxes])
            sampler = BalancedPositiveNegativeSampler(SAMPLES, SHARE)
            # The sampler reads 1 and above as objects, 0 as nothing, -1 as neither
            drawn = sampler(list((matches + 1).clamp(-1, 1)))
            objects, others = (torch.stack(each).bool() for each in drawn)
            goals = torch.cat([
                encode_midpoints(each[match[chosen]], anchors[chosen])
                for each, match, chosen in zip(boxes, matches, objects, strict=True)
            ])  # fmt: skip
        sampled = objects | others
        number = max(int(sampled.sum()), 1)
        loss_box = F.smooth_l1_loss(codes[objects], goals, reduction='sum', beta=1 / 9)
        loss_score = F.binary_cross_entropy_with_logits(
            scores[sampled], objects[sampled].to(scores), reduction='sum'
        )
        losses = {
            'loss_objectness': loss_score / number,
            'loss_rpn_box': loss_box / number,
        }
        return proposals, losses

    def _anchors(self, levels: list[Tensor]) -> Float[Tensor, 'anchors 4']:
        """(x1, y1, x2, y2) of all anchors, centred on the cells of their level."""
        generator, device = self.anchors, levels[0].device
        generator.set_cell_anchors(torch.float32, device)
        found = []
        for place, (level, kinds) in enumerate(
            zip(levels, generator.cell_anchors, strict=True)
        ):
            stride = 4 * 2**place
            rows, cols = (
                (torch.arange(n, device=device) + 0.5) * stride for n in level.shape[2:]
            )
            y, x = torch.meshgrid(rows, cols, indexing='ij')
            centres = torch.stack([x, y, x, y], -1)
            found.append((centres[:, :, None] + kinds).flatten(0, 2))
        return torch.cat(found)

    @torch.no_grad()
    def _select(
        self, scores: Tensor, codes: Tensor, levels: list[Tensor], size: tuple[int, int]
    ) -> list[Tensor]:
        """The best proposals of each image that do not repeat a better one."""
        anchors = self._anchors(levels)
        end = anchors.new_tensor([size[1], size[0]])
        counts = [
            level.shape[2] * level.shape[3] * len(ASPECT_RATIOS) for level in levels
        ]
        found = []
        for score, code in zip(scores, codes, strict=True):
            picks, places, start = [], [], 0
            for place, count in enumerate(counts):
                best = score[start : start + count].topk(min(self.proposals, count))
                picks.append(best.indices + start)
                places.append(torch.full_like(best.indices, place))
                start += count
            pick, place = torch.cat(picks), torch.cat(places)
            boxes = decode_midpoints(code[pick], anchors[pick])
            around = external_boxes(boxes)
            # Of those wholly outside, or where the image was filled up, nothing can be seen
            seen = (around[:, 2:] > 0).all(1) & (around[:, :2] < end).all(1)
            fit = seen & (boxes[:, 3] >= LEAST)
            boxes, rank, place = boxes[fit], score[pick][fit], place[fit]
            kept = batched_nms(around[fit], rank, place, OVERLAP)
            found.append(boxes[kept[: self.proposals]])
        return found


def match_anchors(
    anchors: Float[Tensor, 'anchors 4'], boxes: Float[Tensor, 'n 5']
) -> Tensor:
    """Which object each anchor shall find, by the objects' external boxes.

    Args:
        anchors: (x1, y1, x2, y2).
        boxes: (cx, cy, w, h, angle) of the objects of an image; there may be none.

    Returns:
        (anchors) The index of the object; -1 for nothing, -2 where it is not clear. The best
        anchors of an object are its own, however little they overlap.
    """
    if not len(boxes):
        return torch.full((len(anchors),), -1, device=anchors.device)
    matcher = Matcher(OBJECT, NOTHING, allow_low_quality_matches=True)
    return matcher(box_iou(external_boxes(boxes), anchors))
