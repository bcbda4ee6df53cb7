# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Classes found by frozen features of student and teacher, while they are trained."""

import copy
import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from lightning.pytorch import Callback, LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from ..metrics.probes import linear_probe, nearest_neighbours
from ..ops.value_range import normalize
from .undisturbed import delivered, set_up, undisturbed

#: Networks that are looked at.
SIDES = ('student', 'teacher')


@dataclass(frozen=True)
class Seen:
    """Features of both networks, of the same labelled images.

    Attributes:
        features: Pooled features of each network, by its name.
        labels: Class of each image, from 0.
    """

    features: dict[str, Float[Tensor, 'images dim']]
    labels: Int[Tensor, ' images']


class OnlineProbe(Callback):
    """Base of callbacks that find classes by the features of both backbones.

    Labelled images are looked at whole and not augmented, in evaluation mode, and nothing of the
    run is touched: it is the same, to the bit, with and without. Each process looks at all of
    them. Callbacks that share a datamodule look once.
    """

    #: What the accuracies are called, before ``_student`` and ``_teacher``.
    name = ''

    def __init__(
        self,
        datamodule: LightningDataModule,
        every_n_epochs: int = 1,
        max_samples: int | None = None,
    ) -> None:
        """Initialize a new callback.

        Args:
            datamodule: Of labelled images, whose batches hold ``image`` and ``label``, such as
                :class:`~cmid_geo.datamodules.ImageFolderDataModule` or one of TorchGeo's that scales
                to [0, 1]. Classes are learned from its training images, and found of those to
                validate on, or to test on where there are none.
            every_n_epochs: Epochs from one look to the next.
            max_samples: Images of each of both at most, drawn once; None for all.

        Raises:
            ValueError: If a number is below 1.
        """
        for given, value in (('every_n_epochs', every_n_epochs), ('max_samples', max_samples)):  # fmt: skip
            if value is not None and value < 1:
                raise ValueError(f'{given}={value}: give a number of 1 or more')
        self.datamodule = datamodule
        self.every_n_epochs, self.max_samples = every_n_epochs, max_samples
        self._seen: tuple[Seen, Seen] | None = None

    @abstractmethod
    def classify(
        self,
        known: Float[Tensor, 'known dim'],
        labels: Int[Tensor, ' known'],
        asked: Float[Tensor, 'asked dim'],
    ) -> Int[Tensor, ' asked']:
        """Find classes.

        Args:
            known: Features of images whose class is known.
            labels: Their classes, from 0.
            asked: Features of the images to classify.

        Returns:
            The classes of the asked images.
        """

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Set the labelled images up, before anything is trained."""
        if stage != 'fit':
            return
        if not all(hasattr(pl_module, side) for side in SIDES):
            raise ValueError(
                f'{type(pl_module).__name__} has no student and teacher: use {type(self).__name__} with CMID'
            )
        set_up(self.datamodule, trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Look, and log accuracies, where it is time."""
        if (trainer.current_epoch + 1) % self.every_n_epochs:
            return
        values = {}
        with undisturbed(pl_module):
            known, asked = self._seen = self._look(trainer, pl_module)
            for side in SIDES:
                given = known.features[side], known.labels, asked.features[side]
                # The run has its own alarm for what is not finite, and goes on or not by that
                if not all(each.isfinite().all() for each in (given[0], given[2])):
                    values[f'{self.name}_{side}'] = torch.tensor(math.nan)
                    continue
                right = self.classify(*given) == asked.labels
                values[f'{self.name}_{side}'] = right.float().mean()
        pl_module.log_dict(values, sync_dist=True)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Forget the features of the epoch before."""
        self._seen = None

    def _look(self, trainer: Any, task: Any) -> tuple[Seen, Seen]:
        """Features of images to learn from and of those to classify."""
        for other in trainer.callbacks:
            shared = isinstance(other, OnlineProbe) and other._seen is not None
            if shared and other.datamodule is self.datamodule and other.max_samples == self.max_samples:  # fmt: skip
                return other._seen
        # Of a copy: where a run stands in its own data is not to be changed
        looking = copy.copy(self.datamodule)
        asked = looking.val_dataloader()
        if isinstance(asked, list | tuple) and not asked:
            looking.setup('test')
            asked = looking.test_dataloader()
        loaders = looking.train_dataloader(), asked
        known, asked = (self._embed(trainer, task, loader) for loader in loaders)
        return known, asked

    def _embed(self, trainer: Any, task: Any, loader: Any) -> Seen:
        """Features of a loader's images, in their order in its dataset."""
        loader = loader[0] if isinstance(loader, list | tuple) else loader
        features: dict[str, list[Tensor]] = {side: [] for side in SIDES}
        labels = []
        for batch in delivered(self.datamodule, self._in_order(loader), task):
            label = batch.get('label')
            if not isinstance(label, Tensor) or label.ndim != 1:
                raise ValueError(
                    f"{type(self.datamodule).__name__} gives no 'label' with one class for each image: "
                    f'{type(self).__name__} needs a datamodule for classification'
                )
            labels.append(label)
            image = normalize(batch['image'], task.mean, task.std)
            with trainer.precision_plugin.forward_context():
                for side, found in features.items():
                    found.append(getattr(task, side).backbone(image).mean((2, 3)))
        joined = {side: torch.cat(found).float() for side, found in features.items()}
        return Seen(joined, torch.cat(labels).long())

    def _in_order(self, loader: DataLoader) -> DataLoader:
        """Load all images, or the same draw of them each time, in one order."""
        dataset: Any = loader.dataset
        if self.max_samples is not None and self.max_samples < len(dataset):
            drawn = torch.Generator().manual_seed(0)
            places = torch.randperm(len(dataset), generator=drawn)[: self.max_samples]
            dataset = Subset(dataset, places.sort().values.tolist())
        return DataLoader(
            dataset,
            batch_size=loader.batch_size or 64,
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            worker_init_fn=loader.worker_init_fn,
        )


class OnlineKNN(OnlineProbe):
    """Logs ``knn_student`` and ``knn_teacher``: how often the nearest neighbours tell the class."""

    name = 'knn'

    def __init__(
        self,
        datamodule: LightningDataModule,
        every_n_epochs: int = 1,
        max_samples: int | None = None,
        k: int = 5,
        standardized: bool = False,
    ) -> None:
        """Initialize a new OnlineKNN instance.

        Args:
            datamodule: See :class:`OnlineProbe`.
            every_n_epochs: See :class:`OnlineProbe`.
            max_samples: See :class:`OnlineProbe`.
            k: Number of neighbours.
            standardized: Whether to standardize features first, by those learned from.
        """
        super().__init__(datamodule, every_n_epochs, max_samples)
        self.k, self.standardized = k, standardized

    def classify(
        self,
        known: Float[Tensor, 'known dim'],
        labels: Int[Tensor, ' known'],
        asked: Float[Tensor, 'asked dim'],
    ) -> Int[Tensor, ' asked']:
        """Vote of the nearest by cosine, see :func:`~cmid_geo.metrics.probes.nearest_neighbours`."""
        return nearest_neighbours(known, labels, asked, self.k, self.standardized)


class OnlineLinearProbe(OnlineProbe):
    """Logs ``linear_student`` and ``linear_teacher``: how often a logistic regression finds the class."""

    name = 'linear'

    def __init__(
        self,
        datamodule: LightningDataModule,
        every_n_epochs: int = 1,
        max_samples: int | None = None,
        decay: float = 1e-2,
        iterations: int = 100,
    ) -> None:
        """Initialize a new OnlineLinearProbe instance.

        Args:
            datamodule: See :class:`OnlineProbe`.
            every_n_epochs: See :class:`OnlineProbe`.
            max_samples: See :class:`OnlineProbe`.
            decay: Penalty on half the squared weights.
            iterations: Of L-BFGS, at most.
        """
        super().__init__(datamodule, every_n_epochs, max_samples)
        self.decay, self.iterations = decay, iterations

    def classify(
        self,
        known: Float[Tensor, 'known dim'],
        labels: Int[Tensor, ' known'],
        asked: Float[Tensor, 'asked dim'],
    ) -> Int[Tensor, ' asked']:
        """Logistic regression on standardized features, see :func:`~cmid_geo.metrics.probes.linear_probe`."""
        return linear_probe(known, labels, asked, (self.decay,), self.iterations)
