# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Figures that tasks log in validation."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchgeo.datamodules
from lightning.pytorch import Callback
from lightning.pytorch.loggers.logger import DummyLogger
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchgeo.datasets import RGBBandsMissingError

from cmid_geo.datamodules.base import ScaledDataModule, collate_boxes
from cmid_geo.tasks import (
    ChangeDetection,
    Classification,
    ObjectDetection,
    OrientedDetection,
    SemanticSegmentation,
)


class Recorder(DummyLogger):
    def __init__(self) -> None:
        super().__init__()
        self.figures: dict[str, Figure] = {}

    @property
    def experiment(self) -> Any:
        return SimpleNamespace(
            add_figure=lambda name, figure, global_step: self.figures.update(
                {name: figure}
            )
        )


class Same(Dataset):
    def __init__(self, number: int, **sample: Any) -> None:
        self.number, self.sample = number, sample

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {'image': torch.rand(3, 64, 64)} | self.sample


def logged(
    make_trainer: Callable[..., Any], task: Any, data: Dataset, **options: Any
) -> dict[str, list[str]]:
    logger = Recorder()
    loader = DataLoader(data, 1, **options)
    make_trainer(logger=logger).validate(task, loader, verbose=False)
    return {
        name: [axis.get_title().split(':')[0] for axis in figure.axes]
        for name, figure in logger.figures.items()
        if 'confusion' not in name
    }


def test_segmentation_logs_the_first_batches(make_trainer: Any) -> None:
    task = SemanticSegmentation('unet', 'resnet_test', num_classes=2, ignore_index=255)
    mask = torch.zeros(64, 64).long()
    found = logged(make_trainer, task, Same(6, mask=mask))
    assert list(found) == ['val/0', 'val/1', 'val/2', 'val/3']
    assert found['val/3'] == ['image', 'truth', 'prediction']


def test_several_labels(make_trainer: Any) -> None:
    task = SemanticSegmentation(
        'unet', 'resnet_test', task='multilabel', num_labels=2, loss='bce'
    )
    found = logged(make_trainer, task, Same(1, mask=torch.zeros(2, 64, 64).long()))
    assert found['val/0'] == ['image', *['truth'] * 2, *['prediction'] * 2]


def test_change_logs_both_dates(make_trainer: Any) -> None:
    task = ChangeDetection('unet', 'resnet_test')
    pair = {'image': torch.rand(2, 3, 64, 64), 'mask': torch.zeros(64, 64).long()}
    found = logged(make_trainer, task, Same(1, **pair))
    assert found == {'val/0': ['date 1', 'date 2', 'truth', 'prediction']}


@pytest.mark.parametrize('kind', ['multiclass', 'binary', 'multilabel'])
def test_classification_logs_images_with_their_classes(
    kind: Any, make_trainer: Any
) -> None:
    given = {'multiclass': {'num_classes': 3}, 'binary': {'loss': 'bce'}, 'multilabel': {'num_labels': 3, 'loss': 'bce'}}  # fmt: skip
    task = Classification('resnet_test', task=kind, **given[kind])
    label = torch.tensor([1, 0, 1]) if kind == 'multilabel' else torch.tensor(1)
    logger = Recorder()
    make_trainer(logger=logger).validate(
        task, DataLoader(Same(1, label=label), 1), verbose=False
    )
    (axis,) = logger.figures['val/0'].axes
    truth, prediction = axis.get_title().split('\n')
    assert truth == ('truth: 0, 2' if kind == 'multilabel' else 'truth: 1')
    assert prediction.startswith('prediction: ')


def test_boxes_are_drawn_without_a_datamodule(make_trainer: Any) -> None:
    label, box = torch.tensor([1]), torch.tensor([[4.0, 4, 40, 30]])
    corners = torch.tensor([[4.0, 4, 40, 4, 40, 30, 4, 30]])
    small = {'num_classes': 2, 'fpn_channels': 64}
    upright = ObjectDetection(backbone='resnet_test', **small)
    turned = OrientedDetection(backbone='resnet_test', head_channels=32, **small)
    for task, boxes in ((upright, {'bbox_xyxy': box}), (turned, {'bbox': corners})):
        data = Same(2, label=label, **boxes)
        found = logged(make_trainer, task, data, collate_fn=collate_boxes)
        assert found == {'val/boxes': ['truth', 'found, score 0.3 and above']}


class TorchGeos(torchgeo.datamodules.NonGeoDataModule):
    """One of TorchGeo's, whose figures want raw values."""

    mean, std = torch.tensor([100.0, 0, 0]), torch.tensor([10.0, 10, 10])

    def __init__(self, complete: bool) -> None:
        super().__init__(Same)
        self.complete, self.seen = complete, []

    def plot(self, sample: dict[str, Tensor]) -> Figure:
        self.seen.append(sample)
        if not self.complete:
            raise RGBBandsMissingError
        return Figure()


@pytest.mark.parametrize('complete', [True, False])
def test_torchgeos_datamodules_draw_raw_values(complete: bool) -> None:
    task: Any = Classification('resnet_test', num_classes=3)
    data = TorchGeos(complete)
    task._trainer = SimpleNamespace(datamodule=data)
    batch = {'image': torch.full((2, 3, 8, 8), 0.5), 'label': torch.tensor([1, 2])}
    figure = task._draw(batch, {'prediction': torch.tensor(0)})
    (sample,) = data.seen
    assert sample['image'][:, 0, 0].tolist() == [105, 5, 5]
    assert (sample['label'], sample['prediction']) == (1, 0)
    # Where it lacks bands, the task draws itself
    assert len(figure.axes) == (0 if complete else 1)


def test_our_datamodules_are_told_the_names(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(
        ScaledDataModule, 'plot', lambda self, sample, **known: seen.append(known)
    )
    task: Any = SemanticSegmentation(
        'unet', 'resnet_test', num_classes=2, labels=['sea', 'land'], ignore_index=255
    )
    task._trainer = SimpleNamespace(datamodule=ScaledDataModule(Same))
    batch = {'image': torch.rand(1, 3, 8, 8), 'mask': torch.zeros(1, 8, 8).long()}
    figure = task._draw(batch, {})
    assert seen == [{'names': ['sea', 'land'], 'ignore_index': 255}]
    # Nothing that draws was open
    assert [axis.get_title() for axis in figure.axes] == ['image', 'truth']


def test_nothing_is_logged_in_the_sanity_check(make_trainer: Any) -> None:
    task = Classification('resnet_test', num_classes=3)
    logger, looks = Recorder(), []

    class Look(Callback):
        def on_sanity_check_end(self, trainer: Any, pl_module: Any) -> None:
            looks.append(dict(logger.figures))

    loader = DataLoader(Same(2, label=torch.tensor(1)), 1)
    trainer = make_trainer(logger=logger, max_steps=1, num_sanity_val_steps=2, val_check_interval=1, callbacks=[Look()])  # fmt: skip
    trainer.fit(task, loader, loader)
    assert looks == [{}]
    assert {'val/0', 'val/1', 'val/confusion'} <= set(logger.figures)
