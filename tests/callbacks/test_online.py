# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Online evaluation tells what the features are worth, and leaves the run as it is."""

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chips import Chips
from kornia import augmentation as K
from labelled import write_classes
from lightning.pytorch import Callback, LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchgeo.datamodules import NonGeoDataModule

from cmid_geo.callbacks import FeatureRank, LiDAR, OnlineKNN, OnlineLinearProbe, RankMe
from cmid_geo.datamodules import ImageFolderDataModule
from cmid_geo.metrics.probes import linear_probe, nearest_neighbours
from cmid_geo.ops.value_range import ValueRange, normalize
from cmid_geo.tasks import CMID

NAMES = {
    f'{kind}_{side}'
    for kind in ('knn', 'linear', 'rankme', 'lidar')
    for side in ('student', 'teacher')
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp('classes')
    write_classes(root / 'train', 12)
    write_classes(root / 'val', 6, seed=1)
    return root


@pytest.fixture
def labelled(folder: Path) -> ImageFolderDataModule:
    return ImageFolderDataModule(str(folder), size=64, batch_size=5)


def state_of(task: CMID, trainer: Trainer) -> dict[str, Any]:
    """All that a run consists of, as numbers to compare."""
    optimizer: Any = trainer.optimizers[0]
    moments = {
        f'{place}.{name}': value
        for place, state in optimizer.state_dict()['state'].items()
        for name, value in state.items()
    }
    # Lists of numbers alone: the states hold tuples of arrays too
    drawn = {
        'torch': torch.get_rng_state(),
        'numpy': torch.from_numpy(np.random.get_state()[1].astype(np.int64)),  # ty: ignore[not-subscriptable]
        'numpy place': np.random.get_state()[2],
        'python': random.getstate(),
    }
    modes = {f'{name} training': part.training for name, part in task.named_modules()}
    weights = {name: each.clone() for name, each in task.state_dict().items()}
    return weights | moments | drawn | modes


def assert_same(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        other = second[name]
        same = torch.equal(value, other) if isinstance(value, Tensor) else value == other  # fmt: skip
        assert same, name


class Watch(Callback):
    """The run's state at each of its epochs, after all other callbacks."""

    def __init__(self) -> None:
        self.states: list[dict[str, Any]] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.states.append(state_of(pl_module, trainer))


@pytest.mark.parametrize(
    'options',
    [
        {'limit_val_batches': 0, 'accumulate_grad_batches': 2},
        {'limit_val_batches': 1, 'check_val_every_n_epoch': 2},
    ],
    ids=['accumulated, without validation', 'with validation'],
)
def test_a_run_is_the_same_with_and_without(
    options: dict[str, Any],
    labelled: ImageFolderDataModule,
    make_task: Callable[..., CMID],
    make_trainer: Callable[..., Trainer],
) -> None:
    ends = []
    for used in (True, False):
        task, watch = make_task(queue_size=8), Watch()
        watching = [
            OnlineKNN(labelled), OnlineLinearProbe(labelled), RankMe(labelled, chips=8),
            LiDAR(labelled, chips=8),
        ]  # fmt: skip
        callbacks = [watch, *(watching if used else [])]
        trainer = make_trainer(max_epochs=3, callbacks=callbacks, **options)
        configured = task.configure_callbacks

        # The one that these replace: the checks of types in tests draw Python's numbers for it
        def ours(configured: Any = configured) -> Any:
            return [each for each in configured() if not isinstance(each, FeatureRank)]

        task.configure_callbacks = ours  # ty: ignore[invalid-assignment]
        random.seed(5)
        np.random.seed(5)
        torch.manual_seed(5)
        trainer.fit(
            task, DataLoader(Chips(8), 4, shuffle=True), DataLoader(Chips(8), 4)
        )
        assert (set(trainer.callback_metrics) >= NAMES) == used
        ends.append([*watch.states, state_of(task, trainer)])
    for first, second in zip(*ends, strict=True):
        assert_same(first, second)
    running = ends[0][-1]['student.backbone.network.bn1.running_mean']
    assert running.abs().sum() > 0, 'the network has statistics that could have moved'


def pooled(task: CMID, side: str, images: Tensor) -> Tensor:
    with torch.no_grad():
        backbone = getattr(task, side).backbone.eval()
        return backbone(normalize(images, task.mean, task.std)).mean((2, 3))


def test_accuracies_are_those_of_the_features(
    labelled: ImageFolderDataModule,
    make_task: Callable[..., CMID],
    make_trainer: Callable[..., Trainer],
) -> None:
    callbacks = [OnlineKNN(labelled, k=3), OnlineLinearProbe(labelled)]
    task = make_task(queue_size=8)
    trainer = make_trainer(max_epochs=1, limit_val_batches=0, callbacks=callbacks)
    trainer.fit(task, DataLoader(Chips(8), 4))
    sets = []
    for dataset in (labelled.train_dataset, labelled.val_dataset):
        samples: list[Any] = [dataset[place] for place in range(len(dataset))]  # ty: ignore[invalid-argument-type, not-subscriptable]
        images = torch.stack([each['image'] for each in samples]) / 255
        sets.append((images, torch.stack([each['label'] for each in samples])))
    (images, labels), (others, truth) = sets
    for side in ('student', 'teacher'):
        given = pooled(task, side, images), labels, pooled(task, side, others)
        for name, found in {
            'knn': nearest_neighbours(*given, k=3),
            'linear': linear_probe(*given, (1e-2,)),
        }.items():
            expected = (found == truth).float().mean()
            assert trainer.callback_metrics[f'{name}_{side}'] == expected
    assert trainer.callback_metrics['linear_student'] > 0.9, 'colours are told apart'


class Looks(OnlineKNN):
    """Counts how often it embeds, and how many images."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.images: list[int] = []

    def _embed(self, *given: Any) -> Any:
        seen = super()._embed(*given)
        self.images.append(len(seen.labels))
        return seen


def test_looks_every_n_epochs_at_a_draw_of_the_images(
    labelled: ImageFolderDataModule,
    make_task: Callable[..., CMID],
    make_trainer: Callable[..., Trainer],
) -> None:
    looks = Looks(labelled, every_n_epochs=2, max_samples=10)
    probe = OnlineLinearProbe(labelled, every_n_epochs=2, max_samples=10)
    trainer = make_trainer(
        max_epochs=5,
        limit_train_batches=1,
        limit_val_batches=0,
        callbacks=[probe, looks],
    )
    trainer.fit(make_task(queue_size=8), DataLoader(Chips(8), 4))
    assert looks.images == [], 'it takes the features of the one before'
    alone = Looks(labelled, every_n_epochs=2, max_samples=10)
    trainer = make_trainer(
        max_epochs=5, limit_train_batches=1, limit_val_batches=0, callbacks=[alone]
    )
    trainer.fit(make_task(queue_size=8), DataLoader(Chips(8), 4))
    assert alone.images == [10, 10] * 2


class Plain(Dataset):
    """Raw images of two classes, as TorchGeo's datasets give them."""

    def __init__(self, root: str = '', split: str = 'train', **_: Any) -> None:
        self.number = 10 if split == 'train' else 4

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, place: int) -> dict[str, Any]:
        label = place % 2
        image = torch.full((3, 64, 64), 200.0 * label + place)
        return {'image': image, 'label': torch.tensor(label)}


class TorchGeoLike(NonGeoDataModule):
    """A datamodule of TorchGeo's base, whose training augmentation destroys images."""

    mean, std = torch.tensor(0.0), torch.tensor(255.0)

    def __init__(self, dataset: type = Plain, **options: Any) -> None:
        super().__init__(dataset, batch_size=4, num_workers=0, **options)
        self.train_aug = K.AugmentationSequential(
            K.Normalize(1000.0, 1.0), data_keys=None
        )


def test_datamodules_of_torchgeo_are_read_without_augmentation(
    make_task: Callable[..., CMID], make_trainer: Callable[..., Trainer]
) -> None:
    callbacks = [OnlineKNN(TorchGeoLike()), OnlineLinearProbe(TorchGeoLike())]
    trainer = make_trainer(max_epochs=1, limit_val_batches=0, callbacks=callbacks)
    trainer.fit(make_task(queue_size=8), DataLoader(Chips(8), 4))
    assert trainer.callback_metrics['knn_student'] == 1
    assert trainer.callback_metrics['linear_teacher'] == 1


class Unlabelled(Plain):
    def __getitem__(self, place: int) -> dict[str, Any]:
        return {'image': super().__getitem__(place)['image']}


class FourBands(Plain):
    def __getitem__(self, place: int) -> dict[str, Any]:
        sample = super().__getitem__(place)
        return sample | {'image': torch.zeros(4, 64, 64)}


class Raw(Plain):
    def __getitem__(self, place: int) -> dict[str, Any]:
        sample = super().__getitem__(place)
        return sample | {'image': 255 * sample['image']}


@pytest.mark.parametrize(
    ('dataset', 'message'),
    [
        (Unlabelled, "gives no 'label'.*needs a datamodule for classification"),
        (FourBands, 'images of 4 bands but the task takes 3: evaluate on'),
        (Raw, r'values from 0 to 2.* but the task takes \[0, 1\]: let it only scale'),
    ],
)
def test_what_cannot_be_evaluated_on_is_told(
    dataset: type,
    message: str,
    make_task: Callable[..., CMID],
    make_trainer: Callable[..., Trainer],
) -> None:
    trainer = make_trainer(max_epochs=1, callbacks=[OnlineKNN(TorchGeoLike(dataset))])
    with pytest.raises(ValueError, match=message):
        trainer.fit(make_task(queue_size=8), DataLoader(Chips(8), 4))


def test_images_of_other_bands_are_told_before_they_are_scaled(
    labelled: ImageFolderDataModule,
    make_task: Callable[..., CMID],
    make_trainer: Callable[..., Trainer],
) -> None:
    task = make_task(in_channels=4, queue_size=8)
    task.learn_values(ValueRange((), (0.0,) * 4, (200.0,) * 4))
    trainer = make_trainer(max_epochs=1, callbacks=[OnlineKNN(labelled)])
    with pytest.raises(ValueError, match='images of 3 bands but the task takes 4'):
        trainer.fit(task, DataLoader(Chips(8, 4), 4))


class ChipModule(LightningDataModule):
    """Chips to train and to validate on, as a run's own data."""

    def train_dataloader(self) -> DataLoader:
        return DataLoader(Chips(8), 4)

    val_dataloader = train_dataloader


def test_ranks_are_those_of_validation(
    make_task: Callable[..., CMID], make_trainer: Callable[..., Trainer]
) -> None:
    found = []
    for given in ([FeatureRank(6, 1)], [RankMe(chips=6, draws=1), LiDAR(chips=6, draws=1)]):  # fmt: skip
        own = isinstance(given[0], FeatureRank)
        trainer = make_trainer(
            max_epochs=1, callbacks=given, limit_val_batches=None if own else 0
        )
        trainer.fit(make_task(queue_size=8), datamodule=ChipModule())
        kinds = [type(each) for each in trainer.callbacks]  # ty: ignore[unresolved-attribute]
        assert (FeatureRank in kinds) == own, (
            'the default leaves the same names to them'
        )
        names = sorted(name for name in NAMES if name.startswith(('rank', 'lidar')))
        found.append([float(trainer.callback_metrics[name]) for name in names])
    assert found[0] == found[1] and min(found[0]) > 1


def test_wrong_numbers_and_missing_chips_are_told(
    make_task: Callable[..., CMID], make_trainer: Callable[..., Trainer]
) -> None:
    with pytest.raises(ValueError, match='every_n_epochs=0: give a number of 1'):
        OnlineKNN(TorchGeoLike(), every_n_epochs=0)
    with pytest.raises(ValueError, match='chips=1: give a number of 2 or more'):
        RankMe(chips=1)
    trainer = make_trainer(max_epochs=1, callbacks=[RankMe()])
    with pytest.raises(ValueError, match=r'fit with a datamodule, or give RankMe\('):
        trainer.fit(make_task(queue_size=8), DataLoader(Chips(8), 4))


class NoChips(ChipModule):
    def __init__(self, loaders: list[DataLoader]) -> None:
        super().__init__()
        self.loaders = loaders

    def val_dataloader(self) -> list[DataLoader]:
        return self.loaders


@pytest.mark.parametrize('loaders', [[], [DataLoader(Chips(0), 4)]])
def test_nothing_to_rank_is_told(
    loaders: list[DataLoader],
    make_task: Callable[..., CMID],
    make_trainer: Callable[..., Trainer],
) -> None:
    callbacks = [RankMe(chips=6, draws=1), LiDAR(NoChips(loaders), chips=6, draws=1)]
    trainer = make_trainer(max_epochs=1, callbacks=callbacks, limit_val_batches=0)
    with pytest.warns(UserWarning, match=r'no chips to validate on, so lidar is NaN: give LiDAR\('):  # fmt: skip
        trainer.fit(make_task(queue_size=8), datamodule=ChipModule())
    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert math.isnan(found['lidar_student']) and math.isnan(found['lidar_teacher'])
    assert found['rankme_student'] > 1
