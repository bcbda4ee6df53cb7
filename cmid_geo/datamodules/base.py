# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Base of all datamodules: batches scaled to [0, 1] and, in training, augmented on the device."""

from typing import Any, NoReturn

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchgeo.datamodules import BaseDataModule
from torchgeo.datasets.utils import Sample

from ..datasets.order import TrainingOrder
from ..datasets.samplers import ListedChips
from ..ops.value_range import ValueRange

#: Entries of samples that differ in length from image to image: batches hold lists of them.
LISTED = ('bbox_xyxy', 'bbox', 'label', 'difficult')


class ScaledDataModule(BaseDataModule):
    """What our datamodules have in common.

    Attributes:
        value_range: Raw values that become 0 and 1, known after ``setup``. A task may replace it by
            its own, so that images are read as its network knows them, until ``setup('fit')``.
        augmentation: Takes the entries *augmented* of a training batch in [0, 1] and returns them
            altered; None for no augmentation.
    """

    value_range: ValueRange | None = None
    augmentation: nn.Module | None = None
    augmented: tuple[str, ...] = ('image', 'mask', 'valid')
    #: Arguments that tell where the data of a split are.
    given_by = '{split}=...'

    collate_fn: Any
    #: Called in each process that loads data, with its number.
    worker_init_fn: Any = None
    _statistics: ValueRange | None = None
    #: What is trained on, and where a restored run goes on in it.
    _served: TrainingOrder | None = None
    _stopped: dict[str, Any] | None = None

    @property
    def statistics(self) -> ValueRange | None:
        """The value range that was stated, or estimated from what is trained on."""
        return self._statistics

    def scale(self, batch: Sample) -> Sample:
        """Bring a batch of raw images to [0, 1].

        Args:
            batch: With ``image`` (B, ..., C, H, W), raw, and ``valid`` (B, ..., H, W) bool where
                images have it, of each date or of all together.

        Returns:
            The batch with ``image`` in [0, 1], 0 where not valid.

        Raises:
            ValueError: If the datamodule was not set up.
        """
        if self.value_range is None:
            raise ValueError(
                "the range of the bands is not known yet: call setup('fit') before using batches"
            )
        image = self.value_range.scale(batch['image'])
        if 'valid' in batch:
            valid = batch['valid'].unsqueeze(-3)
            image.mul_(valid if valid.ndim == image.ndim else valid.unsqueeze(1))
        return batch | {'image': image}

    def augment_batch(self, batch: Sample) -> Sample:
        """Augment a batch of training.

        Args:
            batch: With images in [0, 1].

        Returns:
            The batch with its entries *augmented* altered alike; those that it lacks are left out.
        """
        if self.augmentation is None:
            return batch
        altered = self.augmentation(*(batch.get(name) for name in self.augmented))
        found = zip(self.augmented, altered, strict=True)
        return batch | {name: value for name, value in found if value is not None}

    def on_after_batch_transfer(self, batch: Sample, dataloader_idx: int) -> Sample:
        """Scale a batch on its device, with or without a trainer, and augment it in training.

        Args:
            batch: A batch of raw images.
            dataloader_idx: Not used.

        Returns:
            The batch in [0, 1].
        """
        batch = self.scale(batch)
        training = self.trainer is not None and self.trainer.training
        return self.augment_batch(batch) if training else batch

    def plot(self, *args: Any, **kwargs: Any) -> Any:
        """Draw a sample as the dataset does that it is of: in training that, else the one validated on.

        Args:
            *args: Of its ``plot``: a sample, in [0, 1] or raw.
            **kwargs: Of its ``plot``.

        Returns:
            The figure; None where no dataset is open that draws.
        """
        names = ['val_dataset', 'dataset', 'train_dataset', 'test_dataset']
        if self.trainer is not None and self.trainer.training:
            names.insert(0, 'train_dataset')
        for name in names:
            dataset: Any = getattr(self, name)
            while isinstance(dataset, Subset):
                dataset = dataset.dataset
            draw = getattr(dataset, 'plot', None)
            if draw is not None:
                return draw(*args, **kwargs)
        return None

    def state_dict(self) -> dict[str, Any]:
        """Tell where training stands in its data; Lightning keeps it in checkpoints."""
        if self.trainer is None or self._served is None:
            return {}
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress
        epoch, batches = self._served.serving, progress.current.processed
        if progress.is_last_batch:
            epoch, batches = epoch + 1, 0
        sampler = self._served.sampler
        return {
            'epoch': epoch,
            'batches': batches,
            'seed': getattr(sampler, 'seed', None),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on in the data where a run stopped.

        Args:
            state_dict: See :meth:`state_dict`.
        """
        self._stopped = state_dict or None

    def val_dataloader(self) -> Any:
        """Return the validation batches; of a fit none where nothing is held out."""
        held = self.val_dataset is not None or self.train_dataset is None
        return super().val_dataloader() if held else []

    def _dataloader_factory(self, split: str) -> DataLoader[Sample]:
        """Make a loader; only training drops an incomplete last batch, if it is not the only one."""
        dataset, train = self._valid_attribute(f'{split}_dataset'), split == 'train'
        size = self._valid_attribute(f'{split}_batch_size', 'batch_size')
        sampler = getattr(self, f'{split}_sampler', None)
        if train:
            sampler = self._order(dataset, sampler, size)
        if self.num_workers and hasattr(dataset, 'close'):
            # Forked workers would inherit what set-up opened
            dataset.close()
        return DataLoader(
            dataset=dataset,
            batch_size=size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=self.collate_fn,
            drop_last=train and len(dataset if sampler is None else sampler) >= size,
            worker_init_fn=self.worker_init_fn,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def _order(self, dataset: Any, sampler: Any, batch_size: int) -> TrainingOrder:
        """Share the samples of an epoch out, and go on where a restored run stopped."""
        if sampler is None:
            everything = range(len(dataset))
            sampler = ListedChips(everything, len(dataset), self.shared_seed())
        trainer: Any = self.trainer
        # Of a lone loader, and where the user shares out, one process takes all
        shared = trainer and trainer._accelerator_connector.use_distributed_sampler
        processes = (trainer.world_size, trainer.global_rank) if shared else ()
        order = self._served = TrainingOrder(sampler, *processes)
        if self._stopped is not None:
            stopped, self._stopped = self._stopped, None
            order.place = stopped['epoch'], stopped['batches'] * batch_size
            # The same order also where no seed was given
            if stopped['seed'] is not None:
                sampler.seed = stopped['seed']
        return order

    def shared_seed(self) -> int:
        """Return the seed of what is drawn: where the user gave none, the first process's."""
        given = getattr(self, 'seed', None)
        if given is not None:
            return given
        seed = torch.initial_seed()
        return self.trainer.strategy.broadcast(seed) if self.trainer else seed

    def _learn(self, found: ValueRange) -> None:
        """Take over the value range of what is trained on."""
        self._statistics = self.value_range = found

    def _begin(self, stage: str) -> None:
        """Forget the value range of the task before, where another begins to train."""
        if stage == 'fit':
            self.value_range = self.statistics

    def _refuse(self, split: str) -> NoReturn:
        """Refuse a split of which the user gave no data."""
        verb = 'validate' if split == 'val' else split
        given = self.given_by.format(split=split)
        raise ValueError(
            f'{given.split("=")[0]}=None: there is nothing to {verb} on: give {type(self).__name__}({given})'
        )


def collate_boxes(samples: list[Sample]) -> dict[str, Any]:
    """Make a batch of images of one size: boxes and their labels are listed, all else is stacked.

    Args:
        samples: With ``image``, and boxes.

    Returns:
        The batch.

    Raises:
        ValueError: If sizes or bands differ.
    """
    shapes = sorted({tuple(sample['image'].shape) for sample in samples})
    if len(shapes) > 1:
        raise ValueError(
            f'images of (bands, height, width) {shapes[0]} and {shapes[1]} are in one batch: bring them '
            'to one size by size=, and choose bands that all have by bands='
        )
    columns = {key: [sample[key] for sample in samples] for key in samples[0]}
    stacked = {key: torch.stack(columns[key]) for key in columns if key not in LISTED}
    return columns | stacked


@rank_zero_only
def show(text: str) -> None:
    """Print on the first process only.

    Args:
        text: What to print.
    """
    print(text)
