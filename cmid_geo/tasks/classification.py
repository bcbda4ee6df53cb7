# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Scene classification on CMID's backbones."""

from collections.abc import Sequence
from typing import Literal

import torchgeo.tasks
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix
from torchvision.models import WeightsEnum

from ..losses.masked import (
    LabelledBinaryCrossEntropy,
    LabelledCrossEntropy,
    WhereLabelled,
)
from ..models.classification import create_network, pooling_of, set_pooling
from ..plots.loggers import log_figure
from ..plots.predictions import confusion_figure
from ..transforms.classification import Mixing, RandomAppearance, random_erasing
from .checks import check_classes, check_labelling
from .downstream import Downstream
from .optimization import OptimizerName, Schedule, configure_recipe
from .types import Batch, Checkpoint, Hyperparameters, Stage


class Classification(Downstream, torchgeo.tasks.Classification):
    """Scene classification by any backbone of timm at any size, with any weights.

    Batches hold ``image`` (B, C, H, W) in [0, 1] and ``label`` (B). With ``freeze_backbone`` a
    linear classifier learns on fixed features (a linear probe), else all is fine-tuned.

    Logs TorchGeo's metrics: ``OverallAccuracy`` is the OA, ``ClasswiseAccuracy`` that of each
    class; and a figure of which classes are taken for which.
    """

    learns_from = ('label',)
    shapes = '(B)'

    def __init__(
        self,
        model: str = 'resnet50',
        weights: WeightsEnum | str | bool | None = None,
        in_channels: int = 3,
        task: Literal['binary', 'multiclass', 'multilabel'] = 'multiclass',
        num_classes: int | None = None,
        num_labels: int | None = None,
        labels: list[str] | None = None,
        pos_weight: Tensor | float | None = None,
        loss: Literal['ce', 'bce', 'jaccard', 'focal', 'dice'] = 'ce',
        class_weights: Tensor | Sequence[float] | None = None,
        ignore_index: int | None = None,
        lr: float = 1e-3,
        patience: int = 10,
        freeze_backbone: bool = False,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        label_smoothing: float = 0.0,
        randaugment: int | None = None,
        random_erasing: float = 0.0,
        drop_path_rate: float = 0.0,
        layer_decay: float | None = None,
        optimizer: OptimizerName = 'adamw',
        weight_decay: float = 0.02,
        momentum: float = 0.9,
        schedule: Schedule = 'cosine',
        lr_end: float = 1e-6,
        warmup_epochs: float = 0.0,
        warmup_steps: int | None = None,
        bands: Sequence[str | int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        global_pool: str | None = None,
    ) -> None:
        """Initialize a new Classification instance.

        Args:
            model: timm's name of the network.
            weights: Where the backbone starts from, see :func:`~cmid_geo.models.load_backbone`: a
                weights enum or its name, the path of a file, True for timm's ImageNet weights, or
                None for random ones.
            in_channels: Number of bands.
            task: One of 'binary', 'multiclass', or 'multilabel'.
            num_classes: Number of classes (only for ``task='multiclass'``).
            num_labels: Number of labels (only for ``task='multilabel'``).
            labels: Names of the classes.
            pos_weight: Weight of what is true, for the 'bce' loss.
            loss: One of 'ce', 'bce', 'jaccard', 'focal', or 'dice'.
            class_weights: Weight of each class, for the 'ce' loss.
            ignore_index: Label that is neither learned nor counted, such as 255.
            lr: Learning rate.
            patience: Epochs without progress, for ``schedule='plateau'``.
            freeze_backbone: Whether to train only what is behind the backbone, on features of fixed
                statistics.
            mixup: Strength of mixup, 0.8 in the paper; only for 'multiclass'.
            cutmix: Strength of CutMix, 1.0 in the paper; only for 'multiclass'.
            label_smoothing: Probability of the target spread over all classes, 0.1 in the paper.
            randaugment: Magnitude of RandAugment, 9 in the paper; for three bands only.
            random_erasing: Probability of erasing a rectangle, 0.25 in the paper.
            drop_path_rate: Stochastic depth of the backbone, in [0, 1).
            layer_decay: Each layer learns this many times as fast as the one behind it.
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
            global_pool: Of a ViT: classify by its class token ('token') or by the mean of its patch
                tokens ('avg'). By default as its weights were trained, 'avg' for CMID's; otherwise
                timm's.

        Raises:
            ValueError: If arguments do not go together, or the weights do not fill the backbone.
        """
        self.weights = weights
        # Not TorchGeo's own constructor: its arguments would be saved as ours
        super(torchgeo.tasks.Classification, self).__init__()

    def configure_models(self) -> None:
        """Build the network, load its weights, and what augments images."""
        given = self.hparams
        check_labelling(given)
        _check_augmenting(given)
        self.model = create_network(
            given['model'],
            given['in_channels'],
            given['num_classes'] or given['num_labels'] or 1,
            self.weights is True,
            given['drop_path_rate'],
        )
        self._own_pooling = pooling_of(self.model)
        self.adopt(self.model)
        if given['global_pool'] is not None:
            set_pooling(self.model, given['global_pool'])
        # A checkpoint does not know which weights it began with
        given['global_pool'] = pooling_of(self.model)
        # Frozen with the rest, it is what a linear probe trains
        heads = self.model.get_classifier()
        # Distilled ViTs have two
        for head in heads if isinstance(heads, tuple) else (heads,):
            head.requires_grad_(True)
        self.mixing = Mixing(given['num_classes'] or 1, given['mixup'], given['cutmix'])
        chance = given['random_erasing']
        self.erasing = random_erasing(chance) if chance else nn.Identity()
        magnitude = given['randaugment']
        changes = magnitude is not None
        self.appearance = RandomAppearance(magnitude) if changes else nn.Identity()

    def on_load_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Pool a ViT's tokens as the checkpoint's classifier learned to, whatever the weights say.

        Args:
            checkpoint: To be restored; one that does not tell was trained with timm's own pooling.
        """
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint.get('hyper_parameters') or {}
        pooling = saved.get('global_pool') or self._own_pooling
        if pooling is not None and pooling_of(self.model) is not None:
            set_pooling(self.model, pooling)
            self.hparams['global_pool'] = pooling

    def configure_losses(self) -> None:
        """Build the loss."""
        given, ignored = self.hparams, self.hparams['ignore_index']
        if given['loss'] == 'ce':
            weights, smoothing = given['class_weights'], given['label_smoothing']
            self.criterion = LabelledCrossEntropy(weights, ignored, smoothing)
        elif given['loss'] == 'bce':
            self.criterion = LabelledBinaryCrossEntropy(given['pos_weight'], ignored)
        else:
            super().configure_losses()
            self.criterion = WhereLabelled(self.criterion, ignored)

    def configure_metrics(self) -> None:
        """Build TorchGeo's metrics and the matrix of which classes are taken for which."""
        super().configure_metrics()
        given = self.hparams
        if given['task'] == 'multiclass':
            classes, ignored = given['num_classes'], given['ignore_index']
            self.confusion = MulticlassConfusionMatrix(classes, ignored)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Optimizer and schedule of the recipe, by step."""
        return configure_recipe(self, self.model, self.hparams['layer_decay'])

    def backbone_module(self) -> nn.Module:
        """All of the network: its classifier has no training mode of its own."""
        return self.model

    def shared_step(self, batch: Batch, batch_idx: int, stage: Stage) -> Tensor:
        """Compute the loss, in training of augmented images, and update the metrics.

        Args:
            batch: ``image`` and ``label``, see the class.
            batch_idx: Index of the batch in its epoch.
            stage: 'train', 'val' or 'test'.

        Returns:
            The loss.
        """
        image, label = batch['image'], batch['label']
        if stage == 'train':
            image = self.erasing(self.normalize(self.appearance(image)))
            image, target = self.mixing(image, label)
            logits = self.model(image)
        else:
            logits, target = self(image), label
        loss = self.criterion(logits.squeeze(1), target)
        self.record(stage, loss, logits, label)
        if stage != 'train' and self.hparams['task'] == 'multiclass':
            self.confusion.update(logits, label)
        if stage == 'val':
            multiclass = self.hparams['task'] == 'multiclass'
            found = logits.argmax(1) if multiclass else (logits > 0).long().squeeze(1)
            self.show_sample(batch, batch_idx, prediction=found[0])
        return loss

    def on_validation_epoch_end(self) -> None:
        """Log the metrics and which classes are taken for which."""
        super().on_validation_epoch_end()
        self._show_confusion('val')

    def on_test_epoch_end(self) -> None:
        """Log the metrics and which classes are taken for which."""
        super().on_test_epoch_end()
        self._show_confusion('test')

    def check_labels(self, batch: Batch) -> None:
        """Refuse labels that are missing or no class."""
        super().check_labels(batch)
        given = self.hparams
        classes = given['num_classes'] if given['task'] == 'multiclass' else 2
        check_classes(batch['label'], classes, given['ignore_index'], 'label')

    def _show_confusion(self, split: str) -> None:
        if self.hparams['task'] != 'multiclass':
            return
        matrix = self.confusion.compute()
        self.confusion.reset()
        names = self.hparams['labels']
        log_figure(self, f'{split}/confusion', lambda: confusion_figure(matrix, names))


def _check_augmenting(given: Hyperparameters) -> None:
    """Refuse losses and augmentations that labels or bands do not allow."""
    ignored, classes = given['ignore_index'], given['num_classes'] or 1
    foreign = ignored is not None and not 0 <= ignored < classes
    if given['loss'] == 'jaccard' and foreign:
        raise ValueError(
            f"loss='jaccard' cannot leave out ignore_index={ignored}, which is no class: choose "
            "loss='dice'"
        )
    mixes = given['mixup'] or given['cutmix']
    if mixes and given['task'] != 'multiclass':
        raise ValueError(
            f'mixup and cutmix need probabilities of classes, task={given["task"]!r} has none: set them to 0'
        )
    if given['randaugment'] is not None and given['in_channels'] != 3:
        raise ValueError(
            f'randaugment={given["randaugment"]} changes colours but in_channels='
            f'{given["in_channels"]}: set it to None, and augment in the datamodule'
        )
