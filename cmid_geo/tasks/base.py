# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Base of all tasks: the value range of their images, kept in buffers."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..datasets.extent import extent_of
from ..models.weights.matching import LoadReport
from ..models.weights.sources import KIND, TRAINING, VERSION, saved_bands
from ..ops.bands import names_of
from ..ops.value_range import ValueRange
from ..version import __version__
from .checks import check_bands, check_names, check_run
from .restoring import Restored
from .resuming import Resumable, check_strategy
from .types import Checkpoint


class Values(Restored, Resumable):
    """A task that carries the meaning of the values it was trained on.

    Raw values *low* and *high* of each band stand for 0 and 1, *mean* and *std* normalize what
    was scaled so; all four stay in the task's checkpoints, and so do the names of the bands.

    Attributes:
        report: What weights were loaded; None for random ones and for timm's.
        training_data: Where and when the scenes of the fit lie, see
            :func:`~cmid_geo.datasets.extent.extent_of`; None where that is not known.
    """

    report: LoadReport | None = None
    training_data: dict[str, Any] | None = None
    #: What of the data's value range a fit takes over, unless the user gave it.
    learned: tuple[str, ...] = ('low', 'high')

    low: Tensor
    high: Tensor
    mean: Tensor
    std: Tensor

    def register_values(
        self, mean: Sequence[float] | float, std: Sequence[float] | float
    ) -> None:
        """Register the buffers of the value range, until the data tell.

        Args:
            mean: Mean of each band in [0, 1], or of all.
            std: Standard deviation of each band in [0, 1], or of all.
        """
        bands = self.hparams['in_channels']
        for name, value in {'low': 0.0, 'high': 1.0, 'mean': mean, 'std': std}.items():
            filled = torch.tensor(value, dtype=torch.float32).expand(bands)
            self.register_buffer(name, filled.clone())

    @property
    def value_range(self) -> ValueRange:
        """What the values of images mean, with names of the bands, low, high, mean and std."""
        buffers = (self.low, self.high, self.mean, self.std)
        values = (tuple(each.tolist()) for each in buffers)
        return ValueRange(tuple(self.hparams['bands'] or ()), *values)

    def setup(self, stage: str) -> None:
        """Refuse runs that cannot be; take over the value range of the data before anything is restored.

        Args:
            stage: Either 'fit', 'validate', 'test' or 'predict'.

        Raises:
            ValueError: If the precision is none of a task's, there are no data, or they have other
                bands than the task or its weights.
        """
        super().setup(stage)
        check_run(self.trainer, stage, type(self).__name__)
        check_strategy(self.trainer.strategy, type(self).__name__)
        datamodule = getattr(self.trainer, 'datamodule', None)
        if stage == 'fit' and datamodule is not None:
            new = self.learn_values(value_range_of(datamodule))
            self.training_data = extent_of(getattr(datamodule, 'train_dataset', None))
            given = names_of(self.report.about.get('bands')) if self.report else []
            wanted = names_of(self.hparams['bands'])
            if given and wanted:
                self.follow_bands(given, wanted, new)

    def learn_values(self, found: ValueRange) -> bool:
        """Take over the value range and the bands of data, where the task does not know its own.

        Args:
            found: Of the data, see :func:`~cmid_geo.tasks.base.value_range_of`.

        Returns:
            Whether names of bands were taken over.

        Raises:
            ValueError: If the data have other bands than the task takes.
        """
        given = self.hparams
        known, count = given['bands'], given['in_channels']
        for name in self.learned:
            values = getattr(found, name)
            if len(values) > 1:
                check_bands(len(values), count, type(self).__name__)
            if values and not given.get(name):
                getattr(self, name).copy_(torch.tensor(values))
        if known and len(known) != count:
            raise ValueError(
                f'bands={list(known)} are {len(known)} names for in_channels={count}: name each band, or leave '
                'it to the datamodule'
            )
        if known or len(found.bands) != count:
            return False
        given['bands'] = list(found.bands)
        return True

    def follow_bands(self, given: list[str], wanted: list[str], new: bool) -> None:
        """Compare the bands of the weights with those of the data.

        Args:
            given: Names of the bands that the weights know.
            wanted: Names of the task's bands.
            new: Whether these were just taken over from the data.

        Raises:
            ValueError: If the weights' filters do not fit the data's bands.
        """

    def share_values(self) -> None:
        """Let a datamodule of ours read images as the task knows them, also a restored one.

        Raises:
            ValueError: If it has other bands, or these in another order.
        """
        datamodule: Any = getattr(self.trainer, 'datamodule', None)
        own, found = self.value_range, value_range_of(datamodule)
        task = type(self).__name__
        # Before anything is handed over: a second run with the same data is refused as well
        if own.bands and len(found.bands) == len(own.bands):
            check_names(own.bands, found.bands, task, 'the datamodule')
        known = any(own.low) or set(own.high) != {1.0}
        if known and getattr(datamodule, 'value_range', None) is not None:
            if len(found.low) > 1:
                check_bands(len(found.low), len(own.low), task)
            datamodule.value_range = own

    def on_fit_start(self) -> None:
        """Share the values that were set up or restored, see :meth:`share_values`."""
        super().on_fit_start()
        self.share_values()

    def on_validation_start(self) -> None:
        """Share the values that were set up or restored, see :meth:`share_values`."""
        self.share_values()

    on_test_start = on_predict_start = on_validation_start

    def on_save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Name the task and the version, so that a checkpoint alone can be mapped with.

        Args:
            checkpoint: To be saved.
        """
        super().on_save_checkpoint(checkpoint)
        checkpoint[KIND] = type(self).__name__
        checkpoint[VERSION] = __version__
        if self.training_data is not None:
            checkpoint[TRAINING] = self.training_data

    def on_load_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Take over the bands that a checkpoint knows.

        Args:
            checkpoint: To be restored.

        Raises:
            ValueError: If the task, or its datamodule, has others, or these in another order.
        """
        super().on_load_checkpoint(checkpoint)
        if self.training_data is None:
            self.training_data = checkpoint.get(TRAINING)
        known = saved_bands(checkpoint)
        if known and self.hparams['bands']:
            check_names(known, self.hparams['bands'], 'the checkpoint', 'the run')
        elif known:
            self.hparams['bands'] = list(known)


def value_range_of(datamodule: object) -> ValueRange:
    """What a datamodule knows of its values; what it does not is empty.

    Args:
        datamodule: Ours, or one of TorchGeo's.

    Returns:
        Its value range. TorchGeo's datamodules deliver (raw - mean) / std, as their Normalize was
        built; there *low* and *high* may be one number for all bands.
    """
    known = getattr(datamodule, 'value_range', None)
    if known is not None:
        return known
    bands: list[str] = []
    # TorchGeo's know theirs, if not as one word for a set
    for holder in (datamodule, getattr(datamodule, 'train_dataset', None)):
        bands = bands or names_of(getattr(holder, 'bands', None))
    low: list[float] = []
    high: list[float] = []
    aug = getattr(datamodule, 'train_aug', None) or getattr(datamodule, 'aug', None)
    for step in aug.modules() if isinstance(aug, nn.Module) else ():
        flags = getattr(step, 'flags', {})
        if {'mean', 'std'} <= set(flags):
            low = flags['mean'].flatten().tolist()
            high = (flags['mean'] + flags['std']).flatten().tolist()
    return ValueRange(tuple(bands), tuple(low), tuple(high))
