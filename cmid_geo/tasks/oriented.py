# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Detection of rotated boxes on pretrained backbones."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor
from torchvision.models._api import WeightsEnum

from ..metrics.rotated_mean_average_precision import RotatedMAP
from ..models.oriented import ANCHOR_SIZES, OrientedRCNN
from ..ops.rotated_boxes import boxes_from_corners, canonical, corners
from .detection import Detection
from .optimization import OptimizerName, Schedule
from .types import Batch, Stage

#: Sides in pixels up to which a box has no area: corners on a line are not exactly so.
NOTHING = 1e-3


class OrientedDetection(Detection):
    """Oriented object detection by Oriented R-CNN.

    Batches hold ``image`` (B, C, H, W) in [0, 1], and two lists with an entry an image: ``bbox``,
    (N, 8) of four corners x1, y1, ..., x4, y4 as of TorchGeo's DOTA, or (N, 5) of (cx, cy, w, h,
    angle); and ``label`` (N), from 1 to *num_classes* - 1. Of four corners the smallest rectangle
    is learned. N may be 0. Boxes partly outside of the image are learned whole, those wholly
    outside are left out. ``difficult`` (N) bool, where given, are boxes that do not count in
    measures; they are learned like all others.

    Validation and test measure ``map_50``, ``map_75`` and ``map``, areas under the curve, and
    ``map_50_11_points``, DOTA's own figure and that to compare with papers (CMID's 76.63), by the IoU
    of the rotated boxes, see :class:`~cmid_geo.metrics.rotated_mean_average_precision.RotatedMAP`, on images as they come:
    on chips, an object in two of them counts twice.
    """

    monitor = 'val_map_50'
    learns_from = ('bbox', 'label')
    shapes = 'lists over the images of (N, 8) or (N, 5), and (N)'
    shown = ('map_50', 'map_50_11_points')

    def __init__(
        self,
        model: Literal['oriented-rcnn'] = 'oriented-rcnn',
        backbone: str = 'resnet50',
        weights: WeightsEnum | str | bool | None = None,
        in_channels: int = 3,
        num_classes: int = 16,
        trainable_layers: int = 5,
        lr: float = 1e-4,
        patience: int = 10,
        freeze_backbone: bool = False,
        *,
        freeze_bn: bool = False,
        optimizer: OptimizerName = 'adamw',
        weight_decay: float = 0.05,
        momentum: float = 0.9,
        schedule: Schedule = 'step',
        lr_end: float = 0.0,
        warmup_epochs: float = 0.5,
        warmup_steps: int | None = None,
        drop_path_rate: float = 0.0,
        bands: Sequence[str | int] | None = None,
        mean: Sequence[float] | float | None = None,
        std: Sequence[float] | float | None = None,
        anchor_sizes: Sequence[float] = ANCHOR_SIZES,
        proposals: int = 2000,
        score_thresh: float = 0.05,
        nms_thresh: float = 0.1,
        detections_per_img: int = 2000,
        fpn_channels: int = 256,
        head_channels: int = 1024,
    ) -> None:
        """Initialize a new OrientedDetection instance.

        Args:
            model: Name of the model; there is one.
            backbone: timm's name of the backbone.
            weights: Where the backbone starts from, see :func:`~cmid_geo.models.load_backbone`: a
                weights enum or its name, the path of a file, True for timm's ImageNet weights, or
                None for random ones.
            in_channels: Number of bands.
            num_classes: Number of classes, the background, which is class 0, included: 16 for
                DOTA 1.0, 17 for 1.5, 19 for 2.0.
            trainable_layers: Parts of the backbone to train, counted from its end: four stages and
                the stem. 5 trains all, the paper's ResNets 3. With random weights train all.
            lr: Learning rate.
            patience: Epochs without progress, for ``schedule='plateau'``.
            freeze_backbone: Whether to train only what is behind the backbone, on features of fixed
                statistics.
            freeze_bn: Whether the backbone's batch norms keep statistics, scale and shift of the
                weights, as small batches want; not for random weights.
            optimizer: One of 'adamw', 'adan', or 'sgd'.
            weight_decay: On all parameters but biases and norms.
            momentum: Of 'sgd'.
            schedule: 'cosine' or 'linear' fall to *lr_end*, 'step' falls to a tenth after 8/12 and
                11/12 of the run, 'plateau' when the monitored metric stays.
            lr_end: Learning rate at the end.
            warmup_epochs: Epochs over which the learning rate rises.
            warmup_steps: Steps of that rise, instead of epochs.
            drop_path_rate: Stochastic depth of the backbone, in [0, 1).
            bands: Names of the bands, to copy filters by name where the weights know them; by default
                the datamodule's, by which maps choose.
            mean: Mean of each band in [0, 1]; the weights' by default.
            std: Standard deviation of each band in [0, 1]; the weights' by default.
            anchor_sizes: Side in pixels of the anchors of the levels of strides 4 to 64.
            proposals: Most proposals of an image.
            score_thresh: Least score of a detection, in [0, 1].
            nms_thresh: Rotated IoU above which the lower score of a class goes, in [0, 1].
            detections_per_img: Most detections of an image.
            fpn_channels: Channels of the feature pyramid's levels, a multiple of 32.
            head_channels: Width of the head.

        Raises:
            ValueError: If model or backbone are not known, weights do not fit, or a number is off.
        """
        self.weights = weights
        super().__init__()

    # ------------------------------------------------------------------ build

    def configure_models(self) -> None:
        """Build the detector and load the backbone's weights."""
        given = self.hparams
        if given['model'] != 'oriented-rcnn':
            raise ValueError(
                f"model={given['model']!r} is no detector of rotated boxes: use 'oriented-rcnn'"
            )
        names = (
            'in_channels', 'num_classes', 'drop_path_rate', 'trainable_layers', 'freeze_bn',
            'anchor_sizes', 'proposals', 'score_thresh', 'nms_thresh', 'detections_per_img',
            'fpn_channels', 'head_channels',
        )  # fmt: skip
        options = {name: given[name] for name in ('backbone', *names)}
        self.model = OrientedRCNN(pretrained=self.weights is True, **options)
        self.adopt(self.model.encoder)

    def make_metric(self) -> RotatedMAP:
        """Make the metric of rotated boxes."""
        return RotatedMAP(self.hparams['num_classes'])

    def targets(self, batch: Batch) -> list[dict[str, Tensor]]:
        """Rotated boxes, labels and, where given, which are difficult, of each image."""
        targets = [
            {'boxes': rectangles(boxes), 'labels': labels}
            for boxes, labels in zip(batch['bbox'], batch['label'], strict=True)
        ]
        for target, hard in zip(targets, batch.get('difficult', ())):
            target['difficult'] = hard
        return targets

    def predict_step(
        self, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> list[dict[str, Tensor]]:
        """Detect.

        Args:
            batch: With ``image``.
            batch_idx: Index of the batch.
            dataloader_idx: Not used.

        Returns:
            For each image ``boxes`` (N, 5), their ``corners`` (N, 8), ``scores`` (N) falling and
            ``labels`` (N).
        """
        found = self(batch['image'])
        return [each | {'corners': corners(each['boxes']).flatten(1)} for each in found]

    def corners_of(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        """Four corners of each box, as batches hold them."""
        return found | {'boxes': corners(found['boxes']).flatten(1)}

    def measures(self, found: dict[str, Tensor], stage: Stage) -> dict[str, Tensor]:
        """The metric's numbers, and at a test map_50 of each class that there is."""
        # torchmetrics makes a number of the one class
        of_classes = found.pop('map_50_per_class').reshape(-1)
        if stage == 'test':
            named = {f'map_50_class_{n}': each for n, each in enumerate(of_classes, 1)}
            found |= {name: each for name, each in named.items() if not each.isnan()}
        return found

    def check_boxes(self, boxes: Tensor, labels: Tensor) -> None:
        """Refuse boxes and labels of an image that cannot be."""
        check_boxes(boxes, labels, self.hparams['num_classes'])


def check_boxes(boxes: Tensor, labels: Tensor, num_classes: int) -> None:
    """Refuse boxes and labels of an image that cannot be.

    Args:
        boxes: (N, 5) or (N, 8).
        labels: (N).
        num_classes: Number of classes, the background included.

    Raises:
        ValueError: If a box is not finite, has no area or neither 5 nor 8 values, if there are
            not as many labels, or if a label is no class.
    """
    if boxes.ndim != 2 or boxes.shape[1] not in (5, 8) or len(labels) != len(boxes):
        raise ValueError(
            f'bbox of shape {tuple(boxes.shape)} with label of shape {tuple(labels.shape)}: give (N, 8) '
            'corners or (N, 5) of (cx, cy, w, h, angle), and N labels; (0, 8) where there is nothing'
        )
    if not boxes.isfinite().all():
        bad = boxes[~boxes.isfinite().all(1)][0].tolist()
        raise ValueError(
            f'bbox holds {bad}: all numbers must be finite, correct the labels'
        )
    sides = rectangles(boxes)[:, 2:4] if boxes.shape[1] == 8 else boxes[:, 2:4]
    if (sides <= NOTHING).any():
        bad = boxes[(sides <= NOTHING).any(1)][0].tolist()
        raise ValueError(f'bbox holds {bad}, of no area: leave such boxes out')
    off = (labels < 1) | (labels >= num_classes)
    if off.any():
        raise ValueError(
            f'label holds {sorted(set(labels[off].tolist()))[:5]} but num_classes={num_classes} knows 1 '
            f'to {num_classes - 1}, 0 is the background: raise num_classes=, or count labels from 1'
        )


def rectangles(boxes: Tensor) -> Tensor:
    """Bring boxes to their canonical form.

    Args:
        boxes: (N, 8) of four corners, or (N, 5) of (cx, cy, w, h, angle).

    Returns:
        (N, 5).
    """
    if boxes.shape[1] == 5:
        return canonical(boxes.float())
    return boxes_from_corners(boxes.float().reshape(-1, 4, 2))
