# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Change detection with one shared encoder for both dates."""

from collections.abc import Sequence
from typing import Literal

import torch
import torchgeo.tasks
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from ..losses.masked import DenseLossName
from ..models.change import ChangeDecoder, Fusion, create_change_model
from .checks import check_classes
from .downstream import Downstream, dense_loss
from .optimization import OptimizerName, Schedule
from .types import Batch, Stage

#: Label of pixels that count in no metric.
IGNORED = -1


class ChangeDetection(Downstream, torchgeo.tasks.ChangeDetection):
    """Change between two dates, binary or multiclass, from any backbone.

    The encoder sees each date as an image of its own, so that weights of single images, such as
    CMID's, fit; TorchGeo's task stacks the dates as bands. Batches hold ``image``
    (B, 2, C, H, W) in [0, 1], ``mask`` (B, H, W) or (B, 1, H, W), and optionally ``valid``
    (B, H, W) or (B, 2, H, W): pixels that are not valid, or have *ignore_index*, count nowhere.

    Binary metrics are those of the class of change: ``val_OverallF1Score``,
    ``val_OverallJaccardIndex`` (the IoU), ``val_OverallPrecision``, ``val_OverallRecall``.
    Multiclass ones come also for each class, such as ``val_ClasswiseF1Score_1``.
    """

    def __init__(
        self,
        model: ChangeDecoder = 'unet',
        backbone: str = 'resnet50',
        weights: WeightsEnum | str | bool | None = None,
        in_channels: int = 3,
        task: Literal['binary', 'multiclass'] = 'binary',
        num_classes: int | None = None,
        num_labels: int | None = None,
        labels: list[str] | None = None,
        num_filters: int = 3,
        pos_weight: Tensor | float | None = None,
        loss: DenseLossName = 'ce+dice',
        class_weights: Tensor | Sequence[float] | None = None,
        ignore_index: int | None = None,
        lr: float = 1e-3,
        patience: int = 10,
        freeze_backbone: bool = False,
        freeze_decoder: bool = False,
        fusion: Fusion = 'difference',
        optimizer: OptimizerName = 'adamw',
        weight_decay: float = 0.01,
        momentum: float = 0.9,
        schedule: Schedule = 'linear',
        lr_end: float = 0.0,
        warmup_epochs: float = 0,
        warmup_steps: int | None = None,
        drop_path_rate: float = 0.0,
        bands: Sequence[str | int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        """Initialize a new ChangeDetection instance.

        Args:
            model: A decoder of segmentation_models_pytorch, or 'bit' for the bitemporal
                transformer of Chen, Qi and Shi (2021).
            backbone: timm's name of the backbone.
            weights: What it starts from: anything that
                :func:`~cmid_geo.models.load_backbone` reads, True for timm's weights, None or
                False for random ones.
            in_channels: Number of bands of a date.
            task: 'binary' gives one map of logits, 'multiclass' one a class.
            num_classes: Number of classes; for 'multiclass' only.
            num_labels: Has its place for TorchGeo's sake: there is no task='multilabel' here.
            labels: Names of the classes.
            num_filters: Not used; has its place for TorchGeo's sake, whose 'fcn' alone has it.
            pos_weight: How many times a pixel of change counts in the cross-entropy; for
                'binary' only.
            loss: 'ce' and 'bce' are the same here, cross-entropy of what the task predicts.
            class_weights: Weight of each class in the cross-entropy.
            ignore_index: Label of pixels that count nowhere.
            lr: Learning rate.
            patience: Epochs without progress before 'plateau' lowers the rate.
            freeze_backbone: Whether the backbone stays as it is.
            freeze_decoder: Whether the decoder does.
            fusion: How maps of two dates become one: 'difference' or 'concatenation'; 'bit' is
                that of ``model='bit'``.
            optimizer: 'adamw', 'adan' or 'sgd'.
            weight_decay: On all parameters but biases and norms.
            momentum: Of 'sgd'.
            schedule: 'linear', 'cosine', 'step' or 'plateau'.
            lr_end: Learning rate at the end.
            warmup_epochs: Length of the warm-up.
            warmup_steps: The same in steps, which wins.
            drop_path_rate: Stochastic depth of the backbone, in [0, 1).
            bands: Names of the bands, to copy filters by name where the weights know them; by default
                the datamodule's, by which maps choose.
            mean: Of each band in [0, 1]; the weights' own by default.
            std: Likewise.

        Raises:
            ValueError: If choices do not go together, or the weights do not fit.
        """
        check_choices(task, num_classes, labels, pos_weight, class_weights, num_labels)
        self.weights = weights
        # Not TorchGeo's own constructor: its arguments would be saved as ours
        super(torchgeo.tasks.ChangeDetection, self).__init__()

    def configure_models(self) -> None:
        """Build the model, load the weights and freeze what shall stay."""
        given = self.hparams
        self.model = create_change_model(
            given['model'], given['backbone'], given['in_channels'],
            given['num_classes'] or 1, given['fusion'], self.weights is True,
            given['drop_path_rate'],
        )  # fmt: skip
        self.adopt(self.model.encoder)
        if given['freeze_backbone']:
            # Lightning trains modules in the mode it finds them in
            self.backbone_module().requires_grad_(False).eval()
        if given['freeze_decoder']:
            self.model.decoder.requires_grad_(False)

    def backbone_module(self) -> nn.Module:
        """What the weights fill: the maps that a pyramid adds to a ViT are not of them."""
        return self.model.encoder.network

    def configure_losses(self) -> None:
        """Build the loss, which counts only pixels that are known."""
        self.criterion = dense_loss(self.hparams)

    def configure_metrics(self) -> None:
        """Build TorchGeo's metrics, which count only pixels that are known."""
        # Pixels that are not valid need a label too, also where ignore_index is None
        given = self.hparams['ignore_index']
        self.hparams['ignore_index'] = IGNORED
        super().configure_metrics()
        self.hparams['ignore_index'] = given

    def forward(
        self, pair: Float[Tensor, 'batch 2 bands height width']
    ) -> Float[Tensor, 'batch classes height width']:
        """Compute logits of change.

        Args:
            pair: Both dates, in [0, 1], with sides that are multiples of 32 pixels.

        Returns:
            Logits; one map if binary.
        """
        return self.model(self.normalize(pair))

    def check_labels(self, batch: Batch) -> None:
        """Refuse masks that do not fit the images, and labels that do not exist.

        Args:
            batch: With ``image`` and ``mask``.

        Raises:
            ValueError: If there is no mask, or a shape or a label is off.
        """
        if 'mask' not in batch:
            raise ValueError(
                f"the batch holds {list(batch)}: {type(self).__name__} learns from 'mask', (B, H, W)"
            )
        classes, ignored = self.hparams['num_classes'], self.hparams['ignore_index']
        check_masks(batch['image'], batch['mask'], classes, ignored)

    def check(self, batch: Batch, batch_idx: int, labelled: bool = True) -> None:
        """Refuse images that are no pairs, and whatever else does not fit.

        Args:
            batch: With ``image``.
            batch_idx: Index of the batch in its epoch.
            labelled: Whether it must have labels.

        Raises:
            ValueError: If images are no pairs, have other bands, or are not in [0, 1], or labels
                do not fit.
        """
        image = batch.get('image') if isinstance(batch, dict) else None
        if batch_idx == 0 and image is not None:
            check_pairs(image)
            if 'valid' in batch:
                both = known_pixels(batch)[:, None].expand(-1, 2, -1, -1)
                batch = {**batch, 'valid': both}
        super().check(batch, batch_idx, labelled)

    def read_labels(
        self, batch: Batch
    ) -> tuple[Int[Tensor, 'batch height width'], Bool[Tensor, 'batch height width']]:
        """Labels of a batch, and where they count.

        Args:
            batch: With ``image`` and ``mask``.

        Returns:
            Labels, with :data:`IGNORED` where they do not count; and whether they do.
        """
        mask = batch['mask']
        labels = (mask.squeeze(1) if mask.ndim == 4 else mask).long()
        known = known_pixels(batch)
        if self.hparams['ignore_index'] is not None:
            known = known & (labels != self.hparams['ignore_index'])
        return labels.where(known, IGNORED), known

    def shared_step(self, batch: Batch, batch_idx: int, stage: Stage) -> Tensor:
        """Compute the loss, and update the metrics.

        Args:
            batch: ``image``, ``mask`` and optionally ``valid``, see the class.
            batch_idx: Index of the batch in its epoch.
            stage: 'train', 'val' or 'test'.

        Returns:
            The loss.
        """
        logits = self(batch['image'])
        labels, known = self.read_labels(batch)
        loss = self.criterion(logits, labels, known)
        binary = self.hparams['task'] == 'binary'
        shown = logits[:, 0].sigmoid() if binary else logits.softmax(dim=1)
        self.record(stage, loss, shown, labels)
        return loss

    def predict_step(
        self, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> Float[Tensor, 'batch classes height width']:
        """Compute probabilities.

        Args:
            batch: With ``image``.
            batch_idx: Not used.
            dataloader_idx: Not used.

        Returns:
            Of change, one map, if binary; else of each class.
        """
        logits = self(batch['image'])
        binary = self.hparams['task'] == 'binary'
        return logits.sigmoid() if binary else logits.softmax(dim=1)


def check_pairs(image: Tensor) -> None:
    """Refuse images that are no pairs.

    Args:
        image: Of a batch.

    Raises:
        ValueError: If it is not (batch, 2, bands, height, width).
    """
    if image.ndim != 5 or image.shape[1] != 2:
        raise ValueError(
            f'image has shape {tuple(image.shape)} but change is seen between two dates: give '
            '(batch, 2, bands, height, width)'
        )


def check_masks(
    image: Tensor, mask: Tensor, num_classes: int | None, ignore_index: int | None
) -> None:
    """Refuse masks that do not fit the images, and labels that do not exist.

    Args:
        image: (batch, ..., height, width).
        mask: Labels.
        num_classes: Number of classes; None for change or none.
        ignore_index: Label that is not learned.

    Raises:
        ValueError: If a shape or a label is off.
    """
    plain = (len(image), *image.shape[-2:])
    if mask.shape not in (plain, (plain[0], 1, *plain[1:])):
        raise ValueError(
            f'mask has shape {tuple(mask.shape)} but images {tuple(image.shape)}: give one label a '
            'pixel, (batch, height, width)'
        )
    if num_classes is not None:
        check_classes(mask, num_classes, ignore_index, 'mask')
        return
    off = (mask != 0) & (mask != 1)
    if ignore_index is not None:
        off &= mask != ignore_index
    if off.any():
        raise ValueError(
            f'mask holds {mask[off].unique()[:5].tolist()} but binary change is 0 or 1: read masks of '
            '0 and 255 with binary=True, leave a label out with ignore_index=, or set '
            "task='multiclass'"
        )


def known_pixels(batch: Batch) -> Bool[Tensor, 'batch height width']:
    """Where both dates hold data.

    Args:
        batch: With ``image``, and ``valid`` of both dates or of each.

    Returns:
        True where they do; everywhere without ``valid``.
    """
    valid = batch.get('valid')
    if valid is None:
        return torch.ones_like(batch['image'][:, 0, 0], dtype=torch.bool)
    return valid.all(dim=1) if valid.ndim == 4 else valid


def check_choices(
    task: str,
    num_classes: int | None,
    labels: Sequence[str] | None,
    pos_weight: Tensor | float | None,
    class_weights: Tensor | Sequence[float] | None,
    num_labels: int | None = None,
) -> None:
    """Refuse arguments that do not go together.

    Args:
        task: 'binary' or 'multiclass'.
        num_classes: Number of classes.
        labels: Names of the classes.
        pos_weight: Weight of change.
        class_weights: Weights of the classes.
        num_labels: Number of labels, of which this task has none.

    Raises:
        ValueError: If there are too few classes, or names or weights of others.
    """
    classes = 2
    if num_labels is not None:
        raise ValueError(
            f"num_labels={num_labels} with task={task!r}: change has no task='multilabel', leave it out"
        )
    if task == 'multiclass':
        if num_classes is None or num_classes < 2:
            raise ValueError(
                f"num_classes={num_classes} with task='multiclass': give the number of classes, no "
                'change among them, at least 2'
            )
        classes = num_classes
        if pos_weight is not None:
            raise ValueError(
                f"pos_weight={pos_weight} with task='multiclass': it weighs the one class of 'binary', "
                'give class_weights= instead'
            )
    elif num_classes is not None:
        raise ValueError(
            f"num_classes={num_classes} with task='binary', which has one map: leave it out, or set "
            "task='multiclass'"
        )
    for name, values in (('labels', labels), ('class_weights', class_weights)):
        if values is not None and len(values) != classes:
            raise ValueError(
                f'{name} has {len(values)} entries for {classes} classes: give one a class'
            )
