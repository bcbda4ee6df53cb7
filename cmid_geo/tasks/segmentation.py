# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Semantic segmentation on CMID's backbones."""

from collections.abc import Sequence
from typing import Any, Literal

import torch.nn.functional as F
import torchgeo.tasks
from torch import Tensor
from torchvision.models import WeightsEnum

from ..losses.masked import DenseLossName, is_known
from ..models.segmentation import Decoder, FCNHead, create_segmenter
from .checks import check_classes, check_labelling, check_masks
from .downstream import Downstream, dense_loss
from .optimization import OptimizerName, Schedule
from .types import Batch, Stage


class SemanticSegmentation(Downstream, torchgeo.tasks.SemanticSegmentation):
    """Semantic segmentation by any decoder on any backbone, with any weights.

    Batches hold ``image`` (B, C, H, W) in [0, 1], with sides that are multiples of 32, and
    ``mask`` (B, H, W) or (B, 1, H, W) of whole numbers.

    Logs TorchGeo's metrics: ``AverageJaccardIndex`` is the mIoU, ``OverallAccuracy`` the OA, and
    ``F1Score`` and ``JaccardIndex`` come for each class as well.
    """

    def __init__(
        self,
        model: Decoder = 'upernet',
        backbone: str = 'resnet50',
        weights: WeightsEnum | str | bool | None = None,
        in_channels: int = 3,
        task: Literal['binary', 'multiclass', 'multilabel'] = 'multiclass',
        num_classes: int | None = None,
        num_labels: int | None = None,
        labels: list[str] | None = None,
        num_filters: int = 3,
        pos_weight: Tensor | float | None = None,
        loss: DenseLossName = 'ce',
        class_weights: Tensor | Sequence[float] | None = None,
        ignore_index: int | None = None,
        lr: float = 1e-3,
        patience: int = 10,
        freeze_backbone: bool = False,
        freeze_decoder: bool = False,
        decoder_options: dict[str, Any] | None = None,
        auxiliary_weight: float | None = None,
        auxiliary_channels: int = 256,
        drop_path_rate: float = 0.0,
        optimizer: OptimizerName = 'adamw',
        weight_decay: float = 0.01,
        momentum: float = 0.9,
        schedule: Schedule = 'cosine',
        lr_end: float = 1e-6,
        warmup_epochs: float = 0.0,
        warmup_steps: int | None = None,
        bands: Sequence[str | int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        """Initialize a new SemanticSegmentation instance.

        Args:
            model: Name of the decoder: 'upernet', 'unet', 'unet++', 'fpn', 'deeplabv3+',
                'segformer', 'manet', 'linknet', or 'dpt' for a ViT.
            backbone: timm's name of the backbone.
            weights: Where the backbone starts from, see :func:`~cmid_geo.models.load_backbone`: a
                weights enum or its name, the path of a file, True for timm's ImageNet weights, or
                None for random ones.
            in_channels: Number of bands.
            task: One of 'binary', 'multiclass', or 'multilabel'.
            num_classes: Number of classes (only for ``task='multiclass'``).
            num_labels: Number of labels (only for ``task='multilabel'``).
            labels: Names of the classes.
            num_filters: Not used; has its place for TorchGeo's sake, whose 'fcn' alone has it.
            pos_weight: Weight of what is true, for the 'bce' loss.
            loss: One of 'ce', 'bce', 'jaccard', 'focal', 'dice', or 'ce+dice'.
            class_weights: Weight of each class, for the 'ce' loss.
            ignore_index: Label that is neither learned nor counted, such as 255.
            lr: Learning rate.
            patience: Epochs without progress, for ``schedule='plateau'``.
            freeze_backbone: Whether to train only what is behind the backbone, on features of fixed
                statistics.
            freeze_decoder: Whether not to train the decoder.
            decoder_options: Of the decoder's class, such as ``{'decoder_channels': 512}``.
            auxiliary_weight: Weight of the loss of an FCN head on the map of stride 16; by
                default 0.4 for 'upernet' as in the paper, and 0 for others.
            auxiliary_channels: Width of that head.
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
        super(torchgeo.tasks.SemanticSegmentation, self).__init__()

    def configure_models(self) -> None:
        """Build backbone, decoder and the auxiliary head, and load the weights."""
        given = self.hparams
        check_labelling(given)
        classes = given['num_classes'] or given['num_labels'] or 1
        self.model = create_segmenter(
            given['model'],
            given['backbone'],
            given['in_channels'],
            classes,
            self.weights is True,
            given['drop_path_rate'],
            **(given['decoder_options'] or {}),
        )
        self.adopt(self.model.encoder)
        auxiliary = given['auxiliary_weight']
        if auxiliary is None:
            auxiliary = 0.4 if given['model'] == 'upernet' else 0.0
        if auxiliary and given['model'] == 'dpt':
            raise ValueError(
                f"auxiliary_weight={auxiliary}: model='dpt' has no map of stride 16, set it to 0"
            )
        self.auxiliary_weight = auxiliary
        if auxiliary:
            # Beside the model's parts: its forward pass is SMP's own
            channels = self.model.encoder.out_channels[-2]
            head = FCNHead(channels, classes, given['auxiliary_channels'])
            self.model.auxiliary_head = head

    def configure_losses(self) -> None:
        """Build the loss, which is 0 where nothing has a label."""
        if self.hparams['task'] == 'multilabel':
            super().configure_losses()
        else:
            self.criterion = dense_loss(self.hparams)

    def shared_step(self, batch: Batch, batch_idx: int, stage: Stage) -> Tensor:
        """Compute the loss, in training with that of the auxiliary head, and update the metrics.

        Args:
            batch: ``image`` and ``mask``, see the class.
            batch_idx: Index of the batch in its epoch.
            stage: 'train', 'val' or 'test'.

        Returns:
            The loss.
        """
        image, mask = batch['image'], _flat(batch['mask'], self.hparams['task'])
        if stage == 'train' and self.auxiliary_weight:
            features = self.model.encoder(self.normalize(image))
            logits = self.model.segmentation_head(self.model.decoder(list(features)))
            coarse = self.model.auxiliary_head(features[-2])
            coarse = F.interpolate(coarse, mask.shape[-2:], mode='bilinear')
            loss = self.measure(logits, mask)
            loss = loss + self.auxiliary_weight * self.measure(coarse, mask)
        else:
            logits = self(image)
            loss = self.measure(logits, mask)
        self.record(stage, loss, logits, mask)
        if stage == 'val':
            self.show_sample(batch, batch_idx, prediction=self.decide(logits)[0])
        return loss

    def measure(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Compute the loss of what has a label.

        Args:
            logits: (B, classes, H, W).
            mask: (B, H, W), or (B, labels, H, W).

        Returns:
            The loss.
        """
        if self.hparams['task'] == 'multilabel':
            return self.criterion(logits, mask.to(logits))
        known = is_known(mask, self.hparams['ignore_index'])
        return self.criterion(logits, mask, known)

    def decide(self, logits: Tensor) -> Tensor:
        """Turn logits into classes.

        Args:
            logits: (B, classes, H, W).

        Returns:
            Classes (B, H, W); for several labels 0 or 1, (B, labels, H, W).
        """
        if self.hparams['task'] == 'multiclass':
            return logits.argmax(1)
        return (logits > 0).long().squeeze(1)

    def check_labels(self, batch: Batch) -> None:
        """Refuse masks that are missing, do not fit the images, or hold what is no class."""
        super().check_labels(batch)
        given, mask = self.hparams, batch['mask']
        check_masks(batch['image'], mask, given['num_labels'] or 1)
        classes = given['num_classes'] if given['task'] == 'multiclass' else 2
        check_classes(mask, classes, given['ignore_index'], 'mask')


def _flat(mask: Tensor, task: str) -> Tensor:
    """Masks without a dimension for the one band they have."""
    one = mask.ndim == 4 and mask.shape[1] == 1 and task != 'multilabel'
    return (mask[:, 0] if one else mask).long()
