# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Change detection with one shared encoder for both dates."""

from collections.abc import Sequence
from typing import Literal

import torch
import torchgeo.tasks
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchvision.models import WeightsEnum

from ..losses.masked import DenseLossName, is_known
from ..models.change import ChangeDecoder, Fusion, create_change_model
from .checks import check_classes, check_masks
from .downstream import Downstream, dense_loss
from .optimization import OptimizerName, Schedule
from .types import Batch, Hyperparameters, Stage

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
            weights: Where the backbone starts from, see :func:`~cmid_geo.models.load_backbone`: a
                weights enum or its name, the path of a file, True for timm's ImageNet weights, or
                None for random ones.
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
            ignore_index: Label that is neither learned nor counted, such as 255.
            lr: Learning rate.
            patience: Epochs without progress, for ``schedule='plateau'``.
            freeze_backbone: Whether to train only what is behind the backbone, on features of fixed
                statistics.
            freeze_decoder: Whether not to train the decoder.
            fusion: How maps of two dates become one: 'difference' or 'concatenation'; 'bit' is
                that of ``model='bit'``.
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

        Raises:
            ValueError: If choices do not go together, or the weights do not fit.
        """
        self.weights = weights
        # Not TorchGeo's own constructor: its arguments would be saved as ours
        super(torchgeo.tasks.ChangeDetection, self).__init__()

    def configure_models(self) -> None:
        """Build the model, load the weights and freeze what shall stay."""
        given = self.hparams
        check_choices(given)
        self.model = create_change_model(
            given['model'], given['backbone'], given['in_channels'],
            given['num_classes'] or 1, given['fusion'], self.weights is True,
            given['drop_path_rate'],
        )  # fmt: skip
        self.adopt(self.model.encoder)

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

    def check_labels(self, batch: Batch) -> None:
        """Refuse masks that are missing, do not fit the images, or hold what is no class."""
        super().check_labels(batch)
        mask, ignored = batch['mask'], self.hparams['ignore_index']
        check_masks(batch['image'], mask)
        if self.hparams['task'] == 'multiclass':
            check_classes(mask, self.hparams['num_classes'], ignored, 'mask')
            return
        off = (mask != 0) & (mask != 1) & is_known(mask, ignored)
        if off.any():
            raise ValueError(
                f'mask holds {mask[off].unique()[:5].tolist()} but binary change is 0 or 1: read masks of '
                '0 and 255 with binary=True, leave a label out with ignore_index=, or set '
                "task='multiclass'"
            )

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
        if batch_idx == 0 and isinstance(batch, dict) and 'image' in batch:
            image = batch['image']
            if image.ndim != 5 or image.shape[1] != 2:
                raise ValueError(
                    f'image has shape {tuple(image.shape)} but change is seen between two dates: give '
                    '(batch, 2, bands, height, width)'
                )
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
            Labels, with ``IGNORED`` (-1) where they do not count; and whether they do.
        """
        mask = batch['mask']
        labels = (mask.squeeze(1) if mask.ndim == 4 else mask).long()
        known = known_pixels(batch) & is_known(labels, self.hparams['ignore_index'])
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
        self.record(stage, loss, logits, labels)
        if stage == 'val':
            binary = self.hparams['task'] == 'binary'
            found = (logits[0, 0] > 0).long() if binary else logits[0].argmax(0)
            self.show_sample(batch, batch_idx, prediction=found)
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
        return self.probabilities(self(batch['image']))


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


def check_choices(given: Hyperparameters) -> None:
    """Refuse arguments that do not go together.

    Args:
        given: Hyperparameters of the task.

    Raises:
        ValueError: If there are too few classes, or names or weights of others.
    """
    task, classes = given['task'], given['num_classes']
    if given['num_labels'] is not None:
        raise ValueError(
            f"num_labels={given['num_labels']} with task={task!r}: change has no task='multilabel', leave it out"
        )
    if task != 'multiclass' and classes is not None:
        raise ValueError(
            f"num_classes={classes} with task='binary', which has one map: leave it out, or set "
            "task='multiclass'"
        )
    if task == 'multiclass' and (classes is None or classes < 2):
        raise ValueError(
            f"num_classes={classes} with task='multiclass': give the number of classes, no "
            'change among them, at least 2'
        )
    if task == 'multiclass' and given['pos_weight'] is not None:
        raise ValueError(
            f"pos_weight={given['pos_weight']} with task='multiclass': it weighs the one class of 'binary', "
            'give class_weights= instead'
        )
    for name in ('labels', 'class_weights'):
        values = given[name]
        if values is not None and len(values) != (classes or 2):
            raise ValueError(
                f'{name} has {len(values)} entries for {classes or 2} classes: give one a class'
            )
