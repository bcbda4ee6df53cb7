# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Detection of rotated boxes on pretrained backbones."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.models._api import WeightsEnum

from ..metrics.rotated_mean_average_precision import RotatedMAP
from ..models.oriented import ANCHOR_SIZES, OrientedRCNN
from ..ops.rotated_boxes import corners
from .downstream import Downstream
from .optimization import OptimizerName, Schedule
from .oriented_targets import check_boxes, targets_of


class OrientedDetection(Downstream):
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
    mode = 'max'

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
            weights: What :func:`~cmid_geo.models.load_backbone` reads; True for timm's own, None
                or False for random ones.
            in_channels: Number of bands.
            num_classes: Number of classes, the background, which is class 0, included: 16 for
                DOTA 1.0, 17 for 1.5, 19 for 2.0.
            trainable_layers: Parts of the backbone to train, counted from the last: 5 for all, 3
                for all but the stem and the first stage, as the paper's ResNets.
            lr: Learning rate.
            patience: Of the schedule 'plateau', in epochs.
            freeze_backbone: Whether to train feature pyramid, proposals and head only.
            freeze_bn: Whether the backbone's batch norms stay as the weights have them. Random
                ones need to learn.
            optimizer: 'adamw', 'adan' or 'sgd'.
            weight_decay: On all parameters but biases and norms.
            momentum: Of 'sgd'.
            schedule: 'step' falls to a tenth after 8/12 of the run and again after 11/12,
                'cosine' and 'linear' fall to *lr_end*, 'plateau' when ``val_map_50`` stays.
            lr_end: Learning rate at the end.
            warmup_epochs: Epochs of the linear warm-up.
            warmup_steps: Optimizer steps of the warm-up, instead.
            drop_path_rate: Stochastic depth of the backbone, in [0, 1).
            bands: Names of the bands, to copy filters by name where the weights know them; by default
                the datamodule's, by which maps choose.
            mean: Of each band in [0, 1], or of all; by default the weights'.
            std: Likewise.
            anchor_sizes: Side in pixels of the anchors of the levels of strides 4 to 64.
            proposals: Most proposals of an image.
            score_thresh: Least score of a detection, in [0, 1].
            nms_thresh: Rotated IoU above which the lower score of a class goes, in [0, 1].
            detections_per_img: Most detections of an image.
            fpn_channels: Channels of each level.
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
        self.model = OrientedRCNN(
            given['backbone'],
            pretrained=self.weights is True,
            **{n: given[n] for n in names},
        )
        self.adopt(self.model.encoder)
        if given['freeze_backbone']:
            self.backbone_module().requires_grad_(False)
        # Lightning keeps the modes that it finds and does not call train()
        self.train()

    def configure_metrics(self) -> None:
        """Initialize the measures of validation and test."""
        self.val_metrics = RotatedMAP(self.hparams['num_classes'])
        self.test_metrics = RotatedMAP(self.hparams['num_classes'])

    def backbone_module(self) -> nn.Module:
        """The part that ``freeze_backbone`` freezes; a ViT's new maps still learn."""
        return self.model.encoder.network

    # ------------------------------------------------------------------ steps

    def forward(
        self, image: Tensor, targets: Sequence[dict[str, Tensor]] | None = None
    ) -> Any:
        """Detect, or compute losses.

        Args:
            image: (B, C, H, W) in [0, 1].
            targets: In training, ``boxes`` (N, 5) and ``labels`` (N) of each image.

        Returns:
            See :class:`~cmid_geo.models.oriented.OrientedRCNN`.
        """
        return self.model(self.standardise(image), targets)

    def training_step(
        self, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> Tensor:
        """Compute the loss: the sum of four.

        Args:
            batch: See the class.
            batch_idx: Index of the batch in its epoch.
            dataloader_idx: Not used.

        Returns:
            The loss.
        """
        losses = self(batch['image'], targets_of(batch))
        loss = torch.stack(list(losses.values())).sum()
        size = len(batch['image'])
        self.log('train_loss', loss, batch_size=size, prog_bar=True)
        self.log_dict({f'train_{k}': v for k, v in losses.items()}, batch_size=size)
        return loss

    def validation_step(
        self, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Detect, and remember what was found.

        Args:
            batch: See the class.
            batch_idx: Index of the batch in its epoch.
            dataloader_idx: Not used.
        """
        self.val_metrics.update(self(batch['image']), targets_of(batch))

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Detect, and remember what was found.

        Args:
            batch: See the class.
            batch_idx: Index of the batch in its epoch.
            dataloader_idx: Not used.
        """
        self.test_metrics.update(self(batch['image']), targets_of(batch))

    def predict_step(
        self, batch: Any, batch_idx: int, dataloader_idx: int = 0
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

    def on_validation_epoch_end(self) -> None:
        """Log the measures."""
        self._log_measures('val', self.val_metrics)

    def on_test_epoch_end(self) -> None:
        """Log the measures, and map_50 of each class that there is."""
        found = self._log_measures('test', self.test_metrics)
        for label, value in enumerate(found.tolist(), 1):
            if not math.isnan(value):
                self.log(f'test_map_50_class_{label}', value, sync_dist=True)

    def _log_measures(self, stage: str, metrics: RotatedMAP) -> Tensor:
        """Log all but the classes, which are returned, and begin anew."""
        found = metrics.compute()
        metrics.reset()
        # torchmetrics makes a number of the one class
        of_classes = found.pop('map_50_per_class').reshape(-1)
        bar = {'map_50': True, 'map_50_11_points': True}
        for name, value in found.items():
            self.log(
                f'{stage}_{name}', value, prog_bar=bar.get(name, False), sync_dist=True
            )
        return of_classes

    # ------------------------------------------------------------------ data

    def check_labels(self, batch: dict[str, Any]) -> None:
        """Refuse boxes and labels that cannot be.

        Args:
            batch: On the CPU.

        Raises:
            ValueError: If a box is not finite, has no area or neither 5 nor 8 values, if there are
                not as many labels, or if a label is no class.
        """
        if 'bbox' not in batch:
            return
        boxes, labels = batch['bbox'], batch.get('label')
        if labels is None or not len(labels) == len(boxes) == len(batch['image']):
            found = {'image': len(batch['image']), 'bbox': len(boxes)}
            found |= {} if labels is None else {'label': len(labels)}
            raise ValueError(
                f"entries of the batch: {found}; 'bbox' and 'label' need one each for every image"
            )
        for own, wanted in zip(boxes, labels, strict=True):
            check_boxes(own, wanted, self.hparams['num_classes'])
