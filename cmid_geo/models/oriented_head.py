# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""The second stage of Oriented R-CNN: features of rotated proposals, classes and boxes."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

from ..ops.box_coder import decode_rotated, encode_rotated
from ..ops.rotated_boxes import rotate, rotated_iou
from .pyramid import STRIDES

#: Cells of a proposal's features on a side, and points that each is the mean of, on a side.
CELLS, POINTS = 7, 2

#: Side in pixels (the root of the area) from which on proposals are seen at stride 8.
COARSER = 112

#: Rotated IoU with an object from which a proposal is one.
OBJECT = 0.5

#: Proposals of an image that are learned from, and how many of them may be objects.
SAMPLES, OBJECTS = 512, 0.25


class OrientedHead(nn.Module):
    """Two layers on a proposal's features, then classes and one box for all of them."""

    def __init__(self, channels: int, width: int, num_classes: int) -> None:
        """Initialize a new OrientedHead instance.

        Args:
            channels: Channels of each level.
            width: Width of the layers.
            num_classes: Number of classes, the background, which is class 0, included.
        """
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(channels * CELLS**2, width), nn.ReLU(inplace=True),
            nn.Linear(width, width), nn.ReLU(inplace=True),
        )  # fmt: skip
        self.classes, self.code = nn.Linear(width, num_classes), nn.Linear(width, 5)
        for layer, std in ((self.classes, 0.01), (self.code, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(
        self, levels: list[Tensor], proposals: list[Tensor]
    ) -> tuple[Float[Tensor, 'proposals classes'], Float[Tensor, 'proposals 5']]:
        """Logits and deltas of proposals.

        Args:
            levels: Maps of equal width, from fine to coarse; those of strides 4 to 32 are read.
            proposals: (cx, cy, w, h, angle) of each image.

        Returns:
            Logits, and deltas as of :func:`~cmid_geo.ops.box_coder.encode_rotated`, of
            the proposals of all images.
        """
        hidden = self.layers(rotated_features(levels[: len(STRIDES)], proposals))
        return self.classes(hidden), self.code(hidden)

    def decode(
        self, deltas: Float[Tensor, 'n 5'], proposals: Float[Tensor, 'n 5']
    ) -> Float[Tensor, 'n 5']:
        """Boxes that deltas mean.

        Args:
            deltas: As from :meth:`forward`.
            proposals: (cx, cy, w, h, angle) of all images.

        Returns:
            (cx, cy, w, h, angle) in canonical form.
        """
        return decode_rotated(deltas, proposals)

    def learn(
        self,
        levels: list[Tensor],
        proposals: list[Tensor],
        targets: list[dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        """Compute the losses on a sample of proposals and the objects themselves.

        Args:
            levels: Maps of equal width, from fine to coarse.
            proposals: (cx, cy, w, h, angle) of each image.
            targets: ``boxes`` and ``labels`` of each image.

        Returns:
            ``loss_classifier`` (cross-entropy) and ``loss_box`` (smooth L1 of objects), both
            means over the sampled proposals.
        """
        drawn = list(map(draw, proposals, targets))
        boxes = [each[0] for each in drawn]
        labels, goals = (torch.cat([each[i] for each in drawn]) for i in (1, 2))
        logits, deltas = self(levels, boxes)
        objects, number = labels > 0, max(len(labels), 1)
        # Sums, since the mean over no proposals at all would be no number
        logits, deltas = logits.float(), deltas.float()
        loss_class = F.cross_entropy(logits, labels, reduction='sum')
        loss_box = F.smooth_l1_loss(deltas[objects], goals[objects], reduction='sum')
        return {'loss_classifier': loss_class / number, 'loss_box': loss_box / number}


@torch.no_grad()
def draw(
    proposals: Float[Tensor, 'n 5'], target: dict[str, Tensor]
) -> tuple[
    Float[Tensor, 'drawn 5'], Int[Tensor, 'drawn'], Float[Tensor, 'drawn 5']
]:  # fmt: skip
    """Draw proposals of an image to learn from.

    Args:
        proposals: (cx, cy, w, h, angle).
        target: ``boxes`` (M, 5) and ``labels`` (M) of the image's objects; M may be 0.

    Returns:
        Boxes, the objects' own among them; their labels, 0 where no object overlaps by half;
        and deltas of the object that each overlaps most, zeros where there is none.
    """
    objects, labels = target['boxes'].to(proposals), target['labels']
    candidates = torch.cat([proposals, objects])
    wanted, goals = labels.new_zeros(len(candidates)), torch.zeros_like(candidates)
    if len(objects):
        best, match = rotated_iou(candidates, objects).max(1)
        wanted = torch.where(best >= OBJECT, labels[match], 0)
        goals = encode_rotated(objects[match], candidates)
    found, others = BalancedPositiveNegativeSampler(SAMPLES, OBJECTS)([wanted])
    drawn = (found[0] | others[0]).bool()
    return candidates[drawn], wanted[drawn], goals[drawn]


def rotated_features(
    levels: list[Tensor], boxes: list[Tensor]
) -> Float[Tensor, 'boxes channels rows cols']:
    """Features of rotated boxes, on a grid that is rotated with each.

    A box is seen on one level, a coarser one the larger it is. Its sides are divided into 7
    cells, each the mean of 2 by 2 points, interpolated bilinearly; beyond the image is 0.
    torchvision's MultiScaleRoIAlign does so with upright boxes only.

    Args:
        levels: Maps of equal width, strides 4, 8, 16 and 32.
        boxes: (cx, cy, w, h, angle) of each image.

    Returns:
        Features of the boxes of all images; columns go along w, rows along h.
    """
    everything = torch.cat(boxes)
    owners = torch.cat([
        torch.full((len(each),), image, device=each.device) for image, each in enumerate(boxes)
    ])  # fmt: skip
    side = everything[:, 2:4].prod(1).clamp(min=1).sqrt()
    places = (side / COARSER).log2().floor().add(1).clamp(0, len(levels) - 1)
    features, rows = [], []
    for place, level in enumerate(levels):
        for image in range(len(boxes)):
            row = ((places == place) & (owners == image)).nonzero()[:, 0]
            if len(row):
                features.append(_sample(level[image], STRIDES[place], everything[row]))
                rows.append(row)
    if not rows:
        return levels[0].new_zeros(0, levels[0].shape[1], CELLS, CELLS)
    return torch.cat(features)[torch.cat(rows).argsort()]


def _sample(
    level: Float[Tensor, 'channels rows cols'], stride: int, boxes: Float[Tensor, 'n 5']
) -> Float[Tensor, 'n channels _ _']:
    """Features of boxes on one map."""
    number = CELLS * POINTS
    at = (torch.arange(number, device=boxes.device) + 0.5) / number - 0.5
    v, u = torch.meshgrid(at, at, indexing='ij')
    inner = torch.stack([u, v], -1).reshape(-1, 2)
    points = boxes[:, None, :2] + rotate(inner * boxes[:, None, 2:4], boxes[:, 4:])
    # grid_sample counts from the left edge, -1, to the right edge, 1, of the whole map
    sides = points.new_tensor([level.shape[2] * stride, level.shape[1] * stride])
    grid = (2 * points / sides - 1).unflatten(0, (1, -1))
    # Half precision could not tell neighbouring pixels apart
    found = F.grid_sample(level[None].float(), grid, align_corners=False)[0]
    found = found.transpose(0, 1).unflatten(2, (number, number))
    return F.avg_pool2d(found, POINTS).to(level.dtype)
