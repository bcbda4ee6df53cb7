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
from .detection import ASPECT_RATIOS, anchors_of

#: IoU of an anchor with the external box of an object from which, and below which, it counts.
OBJECT, NOTHING = 0.7, 0.3

#: Anchors of an image that are learned from, and how many of them may be objects.
SAMPLES, OBJECTS = 256, 0.5

#: IoU of external boxes above which the proposal of lower logit goes.
OVERLAP = 0.8

#: Least side of a proposal in pixels.
LEAST = 1.0


class OrientedRPN(nn.Module):
    """Logits and six deltas for every anchor (Xie et al. 2021, section 3.1)."""

    def __init__(
        self, channels: int, anchor_sizes: Sequence[float], proposals: int
    ) -> None:
        """Initialize a new OrientedRPN instance.

        Args:
            channels: Channels of each level.
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
        """Logits and deltas of all anchors.

        Args:
            levels: Maps of equal width, from fine to coarse.

        Returns:
            Logits, and deltas as of :func:`~cmid_geo.ops.box_coder.encode_midpoints`;
            level by level, row by row, column by column, anchor by anchor.
        """
        logits, deltas = [], []
        for level in levels:
            hidden = F.relu(self.conv(level))
            logits.append(self.score(hidden).permute(0, 2, 3, 1).flatten(1))
            delta = self.code(hidden).permute(0, 2, 3, 1)
            deltas.append(delta.reshape(len(delta), -1, 6))
        return torch.cat(logits, 1).float(), torch.cat(deltas, 1).float()

    def propose(self, levels: list[Tensor], size: tuple[int, int]) -> list[Tensor]:
        """Propose boxes.

        Args:
            levels: Maps of equal width, from fine to coarse.
            size: Height and width of the images without padding.

        Returns:
            For each image (cx, cy, w, h, angle) of the best.
        """
        return self._select(*self(levels), levels, size)

    def learn(
        self, levels: list[Tensor], size: tuple[int, int], boxes: list[Tensor]
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Propose boxes, and compute the losses.

        Args:
            levels: Maps of equal width, from fine to coarse.
            size: Height and width of the images without padding.
            boxes: Boxes of the objects of each image, (N, 5).

        Returns:
            Proposals as of :meth:`propose`, and the losses ``loss_objectness`` (binary
            cross-entropy) and ``loss_rpn_box`` (smooth L1, beta 1/9), both means over the
            sampled anchors.
        """
        logits, deltas = self(levels)
        with torch.no_grad():
            proposals = self._select(logits, deltas, levels, size)
            anchors = self._anchors(levels)
            matches = torch.stack([match_anchors(anchors, each) for each in boxes])
            sampler = BalancedPositiveNegativeSampler(SAMPLES, OBJECTS)
            # The sampler reads 1 and above as objects, 0 as nothing, -1 as neither
            drawn = sampler(list((matches + 1).clamp(-1, 1)))
            objects, others = (torch.stack(each).bool() for each in drawn)
            goals = torch.cat([
                encode_midpoints(each[match[chosen]], anchors[chosen])
                for each, match, chosen in zip(boxes, matches, objects, strict=True)
            ])  # fmt: skip
        sampled = objects | others
        number = max(int(sampled.sum()), 1)
        loss_box = F.smooth_l1_loss(deltas[objects], goals, reduction='sum', beta=1 / 9)
        given, truth = logits[sampled], objects[sampled].to(logits)
        loss_score = F.binary_cross_entropy_with_logits(given, truth, reduction='sum')
        losses = {'loss_objectness': loss_score, 'loss_rpn_box': loss_box}
        return proposals, {name: loss / number for name, loss in losses.items()}

    def _anchors(self, levels: list[Tensor]) -> Float[Tensor, 'anchors 4']:
        """(x1, y1, x2, y2) of all anchors, centred on the cells of their level."""
        generator: Any = self.anchors
        generator.set_cell_anchors(torch.float32, levels[0].device)
        strides = [4 * 2**place for place in range(len(levels))]
        sizes = [level.shape[2:] for level in levels]
        grids = generator.grid_anchors(sizes, [(each, each) for each in strides])
        # torchvision centres them on the upper left corners of the cells
        return torch.cat([grid + stride / 2 for grid, stride in zip(grids, strides)])

    @torch.no_grad()
    def _select(
        self,
        logits: Tensor,
        deltas: Tensor,
        levels: list[Tensor],
        size: tuple[int, int],
    ) -> list[Tensor]:
        """The best proposals of each image that do not repeat a better one."""
        anchors = self._anchors(levels)
        end = anchors.new_tensor([size[1], size[0]])
        counts = [level[0, 0].numel() * len(ASPECT_RATIOS) for level in levels]
        rows = torch.arange(len(anchors), device=anchors.device).split(counts)
        # The best of each level
        picks = [
            row[each.topk(min(self.proposals, len(row))).indices]
            for row, each in zip(rows, logits.split(counts, 1), strict=True)
        ]
        places = torch.cat([torch.full_like(p[0], i) for i, p in enumerate(picks)])
        found = []
        for logit, delta, pick in zip(logits, deltas, torch.cat(picks, 1), strict=True):
            boxes = decode_midpoints(delta[pick], anchors[pick])
            around = external_boxes(boxes)
            # Of those wholly outside, or in the padding, nothing can be seen
            seen = (around[:, 2:] > 0).all(1) & (around[:, :2] < end).all(1)
            fit = seen & (boxes[:, 3] >= LEAST)
            kept = batched_nms(around[fit], logit[pick][fit], places[fit], OVERLAP)
            found.append(boxes[fit][kept[: self.proposals]])
        return found


def match_anchors(
    anchors: Float[Tensor, 'anchors 4'], boxes: Float[Tensor, 'n 5']
) -> Tensor:
    """Match each anchor with the object it shall find, by the objects' external boxes.

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
