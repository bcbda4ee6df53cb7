# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Downstream tasks: weights, value range, steps and recipe on pretrained backbones."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchgeo.datamodules import BaseDataModule
from torchgeo.datasets import RGBBandsMissingError
from torchvision.models import WeightsEnum

from ..datamodules.base import ScaledDataModule
from ..losses.masked import DenseLoss
from ..models.weights.loading import load_backbone
from ..models.weights.sources import read_source
from ..ops.bands import find_bands, names_of
from ..ops.value_range import normalize
from ..plots.loggers import log_figure
from ..plots.samples import sample_figure
from .base import Values
from .checks import check_batch, check_start
from .optimization import configure_recipe
from .types import Batch, Hyperparameters, Stage

#: Batches of a validation of which a figure is logged.
SHOWN = 4


class Downstream(Values):
    """Weights, value range, recipe and checks of the tasks on pretrained backbones.

    Images come in [0, 1]; the task normalizes them by the mean and standard deviation of its
    weights, and by none where it starts from random ones.

    Attributes:
        weights: What the backbone starts from.
    """

    weights: WeightsEnum | str | bool | None
    #: Entries of a batch to learn from, and their shapes.
    learns_from: tuple[str, ...] = ('mask',)
    shapes = '(B, H, W)'

    # ------------------------------------------------------------------ start

    def adopt(self, target: nn.Module) -> None:
        """Load the weights into the backbone, take over how they normalize, and freeze what shall stay.

        Args:
            target: A network of timm, or one of ours that has it as ``network``; built with
                timm's weights where ``weights`` is True.

        Raises:
            ValueError: If the weights do not fill the backbone.
        """
        given, count = self.hparams, self.hparams['in_channels']
        known, places = self._load(target)
        mean, std = (
            _of_bands(given[name], count) or _of_bands(known.get(name), count, places)
            for name in ('mean', 'std')
        )
        if self.weights and not (mean and std):
            rank_zero_warn(
                'the weights do not tell how they normalize images: values in [0, 1] are used as they '
                'are; pass mean= and std= of each band if you know them'
            )
        self.register_values(mean or 0.0, std or 1.0)
        if given['freeze_backbone']:
            self.backbone_module().requires_grad_(False)
        if given.get('freeze_decoder'):
            self.model.decoder.requires_grad_(False)
        # Lightning keeps the modes it finds: what is frozen must be in evaluation before it starts
        self.train()

    def _load(
        self, target: nn.Module
    ) -> tuple[Hyperparameters, list[int | None] | None]:
        """Load weights; tell what is known of them, and the places of the bands found by name."""
        if self.weights is True:
            network: Any = self.backbone_module()
            return network.pretrained_cfg, None
        if not self.weights:
            return {}, None
        source = read_source(self.weights)
        known = names_of(source.metadata.get('bands'))
        wanted = names_of(self.hparams['bands'])
        places = find_bands(wanted, known)
        # Positions, and names that the weights do not know, may come from the data of an earlier fit
        by_name = any(place is not None for place in places)
        if wanted and not by_name:
            names = f'name {known}' if known else 'do not name their bands'
            rank_zero_warn(
                f'the weights {names}: filters are taken in order for {wanted}'
            )
        self.report = load_backbone(target, source, bands=wanted if by_name else None)
        rank_zero_info(str(self.report))
        return self.report.about, places if by_name else None

    def follow_bands(self, given: list[str], wanted: list[str], new: bool) -> None:
        """Bring filters of weights that name their bands into the order of the data's."""
        cure = f'filters are copied by name with {type(self).__name__}(bands={wanted})'
        # Names that the user gave were followed when the weights were loaded
        if not new or not check_start(given, wanted, cure, sortable=True):
            return
        places = find_bands(wanted, given)
        # What was taken in order is put in order, whatever became of it since
        network = self.backbone_module().modules()
        first = next(each for each in network if isinstance(each, nn.Conv2d))
        own = [getattr(self, n) for n in ('mean', 'std') if not self.hparams[n]]
        with torch.no_grad():
            first.weight.copy_(first.weight[:, places])
            for values in own:
                values.copy_(values[places])
        rank_zero_info(
            f'filters of bands {given} were put in the order of the data, {wanted}'
        )

    def normalize(
        self, image: Float[Tensor, '*batch bands height width']
    ) -> Float[Tensor, '*batch bands height width']:
        """Normalize images as the weights expect.

        Args:
            image: In [0, 1].

        Returns:
            The normalized images.
        """
        return normalize(image, self.mean, self.std)

    #: Its older name.
    standardise = normalize

    def forward(self, x: Float[Tensor, '*batch bands height width']) -> Tensor:
        """Predict logits.

        Args:
            x: Images in [0, 1].

        Returns:
            Logits (B, classes, ...).
        """
        return self.model(self.normalize(x))

    def probabilities(
        self, logits: Float[Tensor, 'batch classes *rest']
    ) -> Float[Tensor, 'batch classes *rest']:
        """Probabilities of classes, or of each of several labels.

        Args:
            logits: Of the network.

        Returns:
            Probabilities.
        """
        multiclass = self.hparams['task'] == 'multiclass'
        return logits.softmax(1) if multiclass else logits.sigmoid()

    def backbone_module(self) -> nn.Module:
        """What the weights fill and ``freeze_backbone`` freezes: maps that a pyramid adds still learn."""
        return getattr(self.model.encoder, 'network', self.model.encoder)

    def train(self, mode: bool = True) -> Any:
        """Set training mode; the batch norms of a frozen backbone keep their statistics.

        Args:
            mode: Whether to train, or to evaluate.

        Returns:
            The task.
        """
        super().train(mode)
        if self.hparams.get('freeze_backbone'):
            self.backbone_module().eval()
        return self

    # ------------------------------------------------------------------ data

    def check_labels(self, batch: Batch) -> None:
        """Refuse labels that are missing or do not exist.

        Args:
            batch: As the step gets it.

        Raises:
            ValueError: If so.
        """
        if not set(self.learns_from) <= set(batch):
            names = ' and '.join(map(repr, self.learns_from))
            raise ValueError(
                f'the batch holds {list(batch)}: {type(self).__name__} learns from {names}, {self.shapes}'
            )

    def check(self, batch: Batch, batch_idx: int, labelled: bool = True) -> None:
        """Refuse what the task was not made for, before it fails in less clear a way.

        Looking at values makes a GPU wait: there only the first batch of an epoch is.

        Args:
            batch: With ``image``.
            batch_idx: Index of the batch in its epoch.
            labelled: Whether it must have labels.

        Raises:
            ValueError: If bands, values or labels are off.
        """
        if batch_idx == 0:
            check_batch(batch, self.hparams['in_channels'], type(self).__name__)
        if labelled and (batch_idx == 0 or batch['image'].device.type == 'cpu'):
            self.check_labels(batch)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """See :meth:`check`."""
        self.check(batch, batch_idx)

    def on_validation_batch_start(
        self, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """See :meth:`check`."""
        self.check(batch, batch_idx)

    on_test_batch_start = on_validation_batch_start

    def on_predict_batch_start(
        self, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """See :meth:`check`."""
        self.check(batch, batch_idx, labelled=False)

    # ------------------------------------------------------------------ steps

    def shared_step(self, batch: Batch, batch_idx: int, stage: Stage) -> Tensor | None:
        """Compute loss and metrics of a batch; each task knows its own.

        Args:
            batch: See the class.
            batch_idx: Index of the batch in its epoch.
            stage: 'train', 'val' or 'test'.

        Returns:
            In training the loss.
        """
        raise NotImplementedError

    def training_step(
        self, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> Tensor:
        """Compute the loss of a batch, see :meth:`shared_step`."""
        return cast(Tensor, self.shared_step(batch, batch_idx, 'train'))

    def validation_step(
        self, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Compare predictions and targets, see :meth:`shared_step`."""
        self.shared_step(batch, batch_idx, 'val')

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Compare predictions and targets, see :meth:`shared_step`."""
        self.shared_step(batch, batch_idx, 'test')

    def record(
        self, stage: Stage, loss: Tensor, logits: Tensor, target: Tensor
    ) -> None:
        """Log a loss and update the metrics of a stage.

        Args:
            stage: 'train', 'val' or 'test'.
            loss: Of the batch.
            logits: (B, classes, ...).
            target: Labels (B, ...), or (B, labels, ...).
        """
        # Of logits that all lie in [0, 1] metrics would believe that they are probabilities
        found = self.probabilities(logits.detach())
        # Called, not updated: an update mixes the metrics of single classes up
        multiclass = self.hparams['task'] == 'multiclass'
        metrics = getattr(self, f'{stage}_metrics')
        metrics(found if multiclass else found.squeeze(1), target)
        # Processes must agree on what schedules and checkpoints follow
        self.log(
            f'{stage}_loss', loss, prog_bar=True, batch_size=len(target), sync_dist=stage != 'train'
        )  # fmt: skip

    def show_sample(
        self, batch: Batch, batch_idx: int, name: str | None = None, **found: Tensor
    ) -> None:
        """Log a figure of the first sample of one of the first batches of validation.

        Args:
            batch: See the class.
            batch_idx: Index of the batch in its epoch.
            name: Of the figure; the batch's by default.
            **found: What was predicted of that sample, by the names of
                :func:`~cmid_geo.plots.samples.sample_figure`.
        """
        if batch_idx < SHOWN:
            name = f'val/{batch_idx}' if name is None else name
            log_figure(self, name, lambda: self._draw(batch, found))

    def _draw(self, batch: Batch, found: dict[str, Tensor]) -> Any:
        """Draw a sample by the datamodule, where it does, else by what the task knows."""
        first = {
            key: values[0]
            for key, values in batch.items()
            if isinstance(values, Tensor | list | tuple) and len(values)
        } | found
        sample = {
            key: value.detach().cpu() if isinstance(value, Tensor) else value
            for key, value in first.items()
        }
        given = {name: self.hparams.get(name) for name in ('labels', 'ignore_index')}
        known = {'names': given['labels'], 'ignore_index': given['ignore_index']}
        known = {name: value for name, value in known.items() if value is not None}
        datamodule: Any = getattr(self.trainer, 'datamodule', None)
        if isinstance(datamodule, ScaledDataModule):
            figure = datamodule.plot(sample, **known)
        elif isinstance(datamodule, BaseDataModule):
            figure = _as_torchgeo(datamodule, sample)
        else:
            figure = None
        if figure is not None:
            return figure
        return sample_figure(
            sample, bands=names_of(self.hparams.get('bands')) or None, **known
        )

    # ------------------------------------------------------------------ recipe

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Optimizer and schedule of the recipe, by step."""
        return configure_recipe(self, self.model)


def dense_loss(given: Hyperparameters) -> DenseLoss:
    """Build the loss of a task that labels pixels.

    Args:
        given: Hyperparameters of the task: ``loss``, ``class_weights`` and ``pos_weight``.

    Returns:
        The loss, which is 0 where nothing has a label.
    """
    weights = (
        None if given[name] is None else torch.as_tensor(given[name]).float()
        for name in ('class_weights', 'pos_weight')
    )
    return DenseLoss(given['loss'], *weights)


def _as_torchgeo(datamodule: BaseDataModule, sample: dict[str, Any]) -> Any:
    """Draw a sample by TorchGeo's datamodule, whose datasets want raw values; None where it cannot."""
    mean, std = (
        torch.as_tensor(each).cpu().reshape(-1, 1, 1)
        for each in (datamodule.mean, datamodule.std)
    )
    try:
        return datamodule.plot(sample | {'image': sample['image'] * std + mean})
    except RGBBandsMissingError:
        return None


def _of_bands(
    values: Sequence[float] | float | None,
    bands: int,
    places: Sequence[int | None] | None = None,
) -> Any:
    """Values of each band, from their places if given; of bands not there the mean of all."""
    if not values or isinstance(values, int | float):
        return values
    mean = sum(values) / len(values)
    if places is not None:
        return [mean if place is None else values[place] for place in places]
    return values if len(values) == bands else mean
