# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Base of the datamodules: value range, scaling and augmentation on the device, loaders."""

from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.data import DataLoader, Dataset
from torchgeo.datasets.utils import Sample

from ..ops.value_range import ValueRange


class ScaledDataModule(LightningDataModule):
    """A datamodule that scales batches of raw values to [0, 1], with or without a trainer.

    Attributes:
        value_range: By which batches are scaled. A trained task puts its own here: new images are
            read as its network knows them.
        statistics: Value range of the training data, once set up; a fit begins with it.
    """

    value_range: ValueRange | None = None
    statistics: ValueRange | None = None

    def scale(self, batch: Sample) -> Sample:
        """Bring a batch of raw values to [0, 1].

        Args:
            batch: With ``image`` (..., C, H, W), raw, and optionally ``valid`` (B, H, W) or
                (..., H, W) bool.

        Returns:
            The batch with ``image`` in [0, 1], 0 where not valid.

        Raises:
            ValueError: If the datamodule was not set up.
        """
        if self.value_range is None:
            raise ValueError(
                "the range of the bands is not known yet: call setup('fit') before using batches"
            )
        image, valid = self.value_range.scale(batch['image']), batch.get('valid')
        if valid is not None:
            # Of several dates each has its own, or they share one
            shared = image.ndim - 1 > valid.ndim
            image.mul_((valid.unsqueeze(1) if shared else valid).unsqueeze(-3))
        return {**batch, 'image': image}

    def augment_batch(self, batch: Sample) -> Sample:
        """Augment a batch of training; not by default.

        Args:
            batch: In [0, 1].

        Returns:
            The batch, augmented.
        """
        return batch

    def on_after_batch_transfer(self, batch: Sample, dataloader_idx: int) -> Sample:
        """Scale a batch on its device and, in training, augment it.

        Args:
            batch: Of raw values.
            dataloader_idx: Not used.

        Returns:
            The batch in [0, 1].
        """
        batch = self.scale(batch)
        training = self.trainer is not None and self.trainer.training
        return self.augment_batch(batch) if training else batch

    def make_loader(
        self, dataset: Dataset[Sample], split: str, drop_last: bool, **options: Any
    ) -> DataLoader[Sample]:
        """Make a loader with the batch size and the workers of the datamodule.

        Args:
            dataset: To load from.
            split: Either 'train', 'val', 'test' or 'predict'.
            drop_last: Whether training drops an incomplete last batch.
            **options: Of the loader, such as ``sampler`` or ``shuffle``.

        Returns:
            The loader.
        """
        module: Any = self
        return DataLoader(
            dataset,
            batch_size=module.batch_size,
            num_workers=module.num_workers,
            collate_fn=module.collate_fn,
            drop_last=split == 'train' and drop_last,
            persistent_workers=module.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            **options,
        )


def check_fraction(name: str, value: float) -> None:
    """Refuse a fraction of the data that is none.

    Args:
        name: Of the argument.
        value: The fraction.

    Raises:
        ValueError: If it is not in (0, 1].
    """
    if not 0 < value <= 1:
        raise ValueError(
            f'{name}={value} is a fraction of the data: give one above 0, at most 1'
        )


@rank_zero_only
def show(text: str) -> None:
    """Print on the first process only.

    Args:
        text: To print.
    """
    print(text)
