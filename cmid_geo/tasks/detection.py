# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Object detection on CMID's backbones."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torchgeo.tasks
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.detection.mean_ap import MeanAveragePrecision
from torchvision.models import WeightsEnum

from ..models.detection import ASPECT_RATIOS, Detector, create_detector
from ..transforms.detection import check_boxes, keep_visible
from .downstream import Downstream
from .optimization import OptimizerName, Schedule
from .types import Batch, Stage

#: What is logged of COCO's numbers.
LOGGED = ('map', 'map_50', 'map_75', 'map_small', 'map_medium', 'map_large', 'mar_100')


class Detection(Downstream):
    """Steps of detectors: losses in training, mean average precision over an epoch otherwise."""

    mode = 'max'
    #: Measures to show in the progress bar.
    shown: tuple[str, ...] = ()

    @abstractmethod
    def make_metric(self) -> Metric:
        """Make the metric of validation, or of test."""

    @abstractmethod
    def targets(self, batch: Batch) -> list[dict[str, Tensor]]:
        """Read what the detector learns and metrics compare with.

        Args:
            batch: See the class.

        Returns:
            ``boxes`` and ``labels`` of each image.
        """

    @abstractmethod
    def measures(self, found: dict[str, Tensor], stage: Stage) -> dict[str, Tensor]:
        """Name what is logged of a metric.

        Args:
            found: What the metric computed.
            stage: 'val' or 'test'.

        Returns:
            Values by name.
        """

    def configure_metrics(self) -> None:
        """Build the metrics of validation and test."""
        self.val_metrics, self.test_metrics = self.make_metric(), self.make_metric()

    def check_labels(self, batch: Batch) -> None:
        """Refuse boxes and labels that are missing, or are none."""
        super().check_labels(batch)
        images, boxes = batch['image'], batch[self.learns_from[0]]
        labels = batch['label']
        if not len(images) == len(boxes) == len(labels):
            raise ValueError(
                f'{len(images)} images with {len(boxes)} sets of boxes and {len(labels)} of labels: give '
                'one of each for each image, empty where there are no objects'
            )
        for own, wanted in zip(boxes, labels):
            self.check_boxes(own, wanted)

    @abstractmethod
    def check_boxes(self, boxes: Tensor, labels: Tensor) -> None:
        """Refuse boxes and labels of an image that are none.

        Args:
            boxes: (N, values).
            labels: (N).

        Raises:
            ValueError: If a shape is off, a box is not finite or has no area, or a label is no class.
        """

    def forward(self, x: Tensor, targets: list[dict[str, Tensor]] | None = None) -> Any:
        """Detect objects or, in training mode, compute the losses.

        Args:
            x: Images (B, C, H, W) in [0, 1].
            targets: ``boxes`` and ``labels`` of each image, in training mode.

        Returns:
            ``boxes``, ``labels`` and ``scores`` of each image, or losses by name.
        """
        return self.model(self.normalize(x), targets)

    def shared_step(self, batch: Batch, batch_idx: int, stage: Stage) -> Tensor | None:
        """Sum the detector's losses in training; else compare what is found with the targets.

        Args:
            batch: See the class.
            batch_idx: Index of the batch in its epoch.
            stage: 'train', 'val' or 'test'.

        Returns:
            In training the loss.
        """
        image, targets = batch['image'], self.targets(batch)
        if stage == 'train':
            losses = self(image, targets)
            loss = torch.stack(list(losses.values())).sum()
            self.log('train_loss', loss, prog_bar=True, batch_size=len(image))
            named = {f'train_{name}': each for name, each in losses.items()}
            self.log_dict(named, prog_bar=True, batch_size=len(image))
            return loss
        found = self(image)
        getattr(self, f'{stage}_metrics').update(found, targets)
        if stage == 'val' and batch_idx == 0:
            first, kind = self.corners_of(found[0]), self.learns_from[0]
            drawn = zip((kind, 'label', 'score'), ('boxes', 'labels', 'scores'))
            named = {f'prediction_{key}': first[name] for key, name in drawn}
            self.show_sample(batch, batch_idx, 'val/boxes', **named)
        return None

    def corners_of(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        """Bring the boxes that were found in an image to the form of those of batches.

        Args:
            found: ``boxes``, ``labels`` and ``scores``.

        Returns:
            The same.
        """
        return found

    def on_validation_epoch_end(self) -> None:
        """Log the precision over all validation images."""
        self.log_precision('val')

    def on_test_epoch_end(self) -> None:
        """Log the precision over all test images."""
        self.log_precision('test')

    def log_precision(self, stage: Stage) -> None:
        """Log the measures of an epoch, and begin anew.

        Args:
            stage: 'val' or 'test'.
        """
        metric = getattr(self, f'{stage}_metrics')
        found = self.measures(metric.compute(), stage)
        metric.reset()
        for name, value in found.items():
            bar = name in self.shown
            self.log(f'{stage}_{name}', value, prog_bar=bar, sync_dist=True)


class ObjectDetection(Detection, torchgeo.tasks.ObjectDetection):
    """Detection by Faster R-CNN, FCOS or RetinaNet on any backbone of timm, with any weights.

    Batches hold ``image`` (B, C, H, W) in [0, 1], and lists over the images of ``bbox_xyxy``
    (N, 4) in pixels and ``label`` (N). As in TorchGeo, class 0 is the background: objects have
    the labels 1 to ``num_classes - 1``. Images may have no boxes. Boxes are clipped to their
    image, and those of which no area is left are not learned or counted.

    Logs COCO's mean average precision over an epoch: ``val_map`` (overlaps 0.5 to 0.95),
    ``val_map_50``, ``val_map_75``, by size of the objects, and ``val_map_<class>``; -1 where
    there are no such objects.
    """

    monitor = 'val_map'
    learns_from = ('bbox_xyxy', 'label')
    shapes = 'lists over the images of (N, 4) and (N)'

    def __init__(
        self,
        model: Detector = 'faster-rcnn',
        backbone: str = 'resnet50',
        weights: WeightsEnum | str | bool | None = None,
        in_channels: int = 3,
        num_classes: int = 1000,
        trainable_layers: int = 5,
        lr: float = 1e-4,
        patience: int = 10,
        freeze_backbone: bool = False,
        freeze_bn: bool = False,
        fpn_channels: int = 256,
        labels: list[str] | None = None,
        anchor_sizes: Sequence[float] | None = None,
        aspect_ratios: Sequence[float] = ASPECT_RATIOS,
        score_thresh: float | None = None,
        nms_thresh: float | None = None,
        detections_per_img: int | None = None,
        drop_path_rate: float = 0.0,
        optimizer: OptimizerName = 'adamw',
        weight_decay: float = 0.05,
        momentum: float = 0.9,
        schedule: Schedule = 'step',
        lr_end: float = 0.0,
        warmup_epochs: float = 0.0,
        warmup_steps: int | None = None,
        bands: Sequence[str | int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        """Initialize a new ObjectDetection instance.

        Args:
            model: One of 'faster-rcnn', 'fcos', or 'retinanet'.
            backbone: timm's name of the backbone.
            weights: Where the backbone starts from, see :func:`~cmid_geo.models.load_backbone`: a
                weights enum or its name, the path of a file, True for timm's ImageNet weights, or
                None for random ones.
            in_channels: Number of bands.
            num_classes: Number of classes (including the background).
            trainable_layers: Parts of the backbone to train, counted from its end: four stages and
                the stem. 5 trains all, the paper's ResNets 3. With random weights train all.
            lr: Learning rate.
            patience: Epochs without progress, for ``schedule='plateau'``.
            freeze_backbone: Whether to train only what is behind the backbone, on features of fixed
                statistics.
            freeze_bn: Whether the backbone's batch norms keep statistics, scale and shift of the
                weights, as small batches want; not for random weights.
            fpn_channels: Channels of the feature pyramid's levels, a multiple of 32.
            labels: Names of the classes, background first, for the logs.
            anchor_sizes: Side in pixels of the anchors of each level, see
                ``cmid_geo.models.detection.ANCHOR_SIZES``.
            aspect_ratios: Heights of the anchors by their widths.
            score_thresh: Least score of a detection; torchvision's by default.
            nms_thresh: Overlap above which the lower score goes; torchvision's by default.
            detections_per_img: Most detections of an image; torchvision's by default. COCO
                counts the best 100.
            drop_path_rate: Stochastic depth of the backbone, in [0, 1).
            optimizer: One of 'adamw', 'adan', or 'sgd'.
            weight_decay: On all parameters but biases and norms.
            momentum: Of 'sgd'.
            schedule: 'cosine' or 'linear' fall to *lr_end*, 'step' falls to a tenth after 8/12 and
                11/12 of the run, 'plateau' when the monitored metric stays.
            lr_end: Learning rate at the end.
            warmup_epochs: Epochs over which the learning rate rises.
            warmup_steps: Steps of that rise, instead of epochs.
            bands: Names of the bands, to copy filters by name where the weights know them; by default
                the datamodule's, by which maps choose.
            mean: Mean of each band in [0, 1]; the weights' by default.
            std: Standard deviation of each band in [0, 1]; the weights' by default.

        Raises:
            ValueError: If arguments do not go together, or the weights do not fill the backbone.
        """
        self.weights = weights
        # Not TorchGeo's own constructor: its arguments would be saved as ours
        super(torchgeo.tasks.ObjectDetection, self).__init__()

    def configure_models(self) -> None:
        """Build the detector and load its backbone's weights."""
        given = self.hparams
        names = ('model', 'backbone', 'in_channels', 'num_classes', 'drop_path_rate', 'trainable_layers',
                 'freeze_bn', 'fpn_channels', 'anchor_sizes', 'aspect_ratios', 'score_thresh', 'nms_thresh',
                 'detections_per_img')  # fmt: skip
        labels = given['labels']
        if labels is not None and len(labels) != given['num_classes']:
            raise ValueError(
                f'{len(labels)} labels for num_classes={given["num_classes"]}: name the background first, '
                'then each class'
            )
        options = {name: given[name] for name in names}
        self.model = create_detector(pretrained=self.weights is True, **options)
        self.adopt(self.model.backbone.body)

    def make_metric(self) -> Metric:
        """Make COCO's metric, of all and of each class."""
        # Images with more than 100 objects are usual from above
        metric = MeanAveragePrecision(class_metrics=True, average='macro')
        metric.warn_on_many_detections = False
        return metric

    def backbone_module(self) -> nn.Module:
        """timm's network: the pyramid on it is new and always trained."""  # noqa: D403
        return self.model.backbone.body.network

    def check_boxes(self, boxes: Tensor, labels: Tensor) -> None:
        """Refuse boxes and labels of an image that are none."""
        check_boxes(boxes, labels, self.hparams['num_classes'])

    def targets(self, batch: Batch) -> list[dict[str, Tensor]]:
        """Boxes as detectors and metrics want them, clipped to their images."""
        height, width = batch['image'].shape[2:]
        targets = []
        for boxes, labels in zip(batch['bbox_xyxy'], batch['label']):
            inside, kept = keep_visible(boxes.float(), height, width)
            targets.append({'boxes': inside, 'labels': labels[kept].long()})
        return targets

    def measures(self, found: dict[str, Tensor], stage: Stage) -> dict[str, Tensor]:
        """COCO's numbers, of all and of each class."""
        values = {name: found[name] for name in LOGGED}
        labels, names = found['classes'].reshape(-1).tolist(), self.hparams['labels']
        for label, value in zip(labels, found['map_per_class'].reshape(-1)):
            if label > 0:
                values[f'map_{names[label] if names else label}'] = value
        return values
