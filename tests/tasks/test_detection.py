# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

import inspect
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
import torchgeo.tasks
import yaml
from cocofiles import write_coco
from lightning.pytorch import Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.ops import box_iou

from cmid_geo.datamodules import CocoDataModule
from cmid_geo.tasks import ObjectDetection

SMALL = {'backbone': 'resnet_test', 'num_classes': 3, 'fpn_channels': 64}


def make(**options: Any) -> ObjectDetection:
    torch.manual_seed(0)
    return ObjectDetection(**(SMALL | options))


def batch_of(
    *boxes: list, bands: int = 3, labels: list | None = None
) -> dict[str, Any]:
    """Images of 64 px with these boxes, of class 1."""
    sets = [torch.tensor(each, dtype=torch.float32).reshape(-1, 4) for each in boxes]
    return {
        'image': torch.rand(len(boxes), bands, 64, 64),
        'bbox_xyxy': sets,
        'label': labels or [torch.ones(len(each), dtype=torch.long) for each in sets],
    }


def loader(*batches: dict[str, Any]) -> DataLoader:
    return DataLoader(list(batches), batch_size=None)  # ty: ignore[invalid-argument-type]


class Found(nn.Module):
    """Stands for a detector: finds what it is given, an image after the other."""

    def __init__(self, found: list[tuple[list, list, list]]) -> None:
        super().__init__()
        self.found = iter(found)

    def forward(self, images: Tensor, targets: Any = None) -> list[dict[str, Tensor]]:
        return [
            {
                'boxes': torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
                'labels': torch.tensor(labels, dtype=torch.long),
                'scores': torch.tensor(scores, dtype=torch.float32),
            }
            for boxes, labels, scores in (next(self.found) for _ in images)
        ]


def test_arguments_are_kept_and_torchgeos_are_among_them() -> None:
    given = make(lr=0.3, patience=4, trainable_layers=5, weights=None).hparams
    assert given['lr'] == 0.3 and given['patience'] == 4
    assert given['num_classes'] == 3 and given['backbone'] == 'resnet_test'
    assert given['trainable_layers'] == 5 and 'weights' not in given
    ours = inspect.signature(ObjectDetection).parameters
    assert set(inspect.signature(torchgeo.tasks.ObjectDetection).parameters) <= set(
        ours
    )
    # What is left to the defaults is ours, not TorchGeo's
    assert given['freeze_bn'] is False and given['optimizer'] == 'adamw'


@pytest.mark.parametrize(
    'model, backbone',
    (
        ('faster-rcnn', 'resnet_test'),
        ('faster-rcnn', 'resnet50'),
        ('retinanet', 'swin_test'),
        ('fcos', 'vit_test'),
    ),
)
def test_families_train_save_and_reload(
    model: Any, backbone: str, tmp_path: Path, make_trainer: Callable[..., Trainer]
) -> None:
    write_coco(tmp_path, 'train', 5, count=4, driver='GTiff')
    write_coco(tmp_path, 'test', 2, count=4, driver='GTiff')
    data = CocoDataModule(str(tmp_path), size=64, batch_size=2, val_fraction=0.2)
    task = make(model=model, backbone=backbone, in_channels=4, score_thresh=0.0)
    before = {name: each.clone() for name, each in task.model.backbone.body.network.named_parameters()}  # fmt: skip
    trainer = make_trainer(max_steps=2)
    trainer.fit(task, data)
    changed = [not torch.equal(before[name], each) for name, each in task.model.backbone.body.network.named_parameters()]  # fmt: skip
    assert sum(changed) > 0.9 * len(changed)
    assert {'train_loss', 'val_map', 'val_map_50'} <= set(trainer.callback_metrics)
    path = tmp_path / 'task.ckpt'
    trainer.save_checkpoint(path)
    again = ObjectDetection.load_from_checkpoint(path).eval()
    image = torch.rand(1, 4, 64, 64)
    with torch.no_grad():
        expected, found = task.eval()(image)[0], again(image)[0]
    assert len(expected['boxes'])
    for name, value in expected.items():
        assert torch.equal(found[name], value)
    assert again.high.tolist() == [255.0] * 4


def test_it_learns() -> None:
    image = torch.full((2, 3, 64, 64), 0.1)
    image[0, :, 8:32, 4:40] = 0.9
    image[1, :, 40:60, 20:60] = 0.5
    batch = batch_of([[4, 8, 40, 32]], [[20, 40, 60, 60]]) | {'image': image}
    batch['label'][1] += 1
    task = make(model='fcos').train()
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-3)
    for _ in range(20):
        optimizer.zero_grad()
        task.training_step(batch, 0).backward()
        optimizer.step()
    # Two images are too few to learn the statistics of evaluation
    for norm in task.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 0.5
    with torch.no_grad():
        for _ in range(4):
            task.model.backbone(task.normalize(image))
        found = task.eval()(image)
    for each, boxes, labels in zip(found, batch['bbox_xyxy'], batch['label']):
        best = each['scores'].argmax()
        assert each['labels'][best] == labels[0]
        assert box_iou(each['boxes'][best][None], boxes) > 0.5


def test_figures_of_what_is_found(
    tmp_path: Path, make_trainer: Callable[..., Trainer]
) -> None:
    class Recorder(DummyLogger):
        def __init__(self) -> None:
            super().__init__()
            self.figures = {}

        @property
        def experiment(self) -> Any:
            return SimpleNamespace(
                add_figure=lambda name, figure, global_step: self.figures.update({
                    name: [text.get_text() for text in figure.axes[1].texts]
                })
            )  # fmt: skip

    write_coco(tmp_path, 'train', 5)
    data = CocoDataModule(str(tmp_path), 64, val='train')
    task, logger = make(), Recorder()
    task.model = Found([([[5, 5, 40, 40]], [2], [0.75])] + [([], [], [])] * 4)
    make_trainer(logger=logger).validate(task, data, verbose=False)
    assert logger.figures == {'val/boxes': ['ship 0.75']}


def test_precision_is_of_the_epoch_not_the_mean_of_batches(
    make_trainer: Callable[..., Trainer],
) -> None:
    right, wrong = [8, 8, 40, 40], [0, 50, 10, 60]
    batches = [batch_of([right]), batch_of([right])]
    # Sorted by score over both images: right, wrong, right
    found = [([right], [1], [0.9]), ([wrong, right], [1, 1], [0.8, 0.7])]
    task = make(labels=['none', 'ship', 'car'])
    task.model = Found(found)
    trainer = make_trainer()
    trainer.validate(task, loader(*batches), verbose=False)
    logged = trainer.callback_metrics
    # Precision 1 up to recall 0.5, 2/3 beyond: COCO reads it at 101 places, 51 and 50 of them
    assert logged['val_map_50'] == pytest.approx((51 + 50 * 2 / 3) / 101, abs=1e-5)
    assert logged['val_map_ship'] == logged['val_map']
    assert 'val_map_car' not in logged


def test_images_without_objects_count_against_what_is_found_on_them(
    make_trainer: Callable[..., Trainer],
) -> None:
    box = [8, 8, 40, 40]
    task = make()
    task.model = Found([([box], [1], [0.9]), ([box], [1], [0.8])])
    trainer = make_trainer()
    trainer.test(task, loader(batch_of([], [box])), verbose=False)
    # The false one comes first: precision 1/2 at every recall
    assert trainer.callback_metrics['test_map_50'] == pytest.approx(0.5, abs=1e-5)
    assert trainer.callback_metrics['test_map_1'] == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize('model', ('faster-rcnn', 'fcos', 'retinanet'))
def test_boxes_outside_are_clipped_and_empty_ones_go(model: Any) -> None:
    task = make(model=model).train()
    image = torch.rand(2, 3, 64, 64)
    losses = []
    for boxes in (
        [[[-20.0, 30, 30, 90]], []],
        [[[0.0, 30, 30, 64], [70, 5, 90, 20], [5, 5, 5, 20]], []],
    ):
        torch.manual_seed(0)
        losses.append(task.training_step(batch_of(*boxes) | {'image': image}, 0))
    assert torch.equal(*losses) and losses[0].isfinite()


def test_all_images_without_boxes() -> None:
    loss = make().train().training_step(batch_of([], []), 0)
    loss.backward()
    assert loss.isfinite() and loss > 0


@pytest.mark.parametrize(
    'change, message',
    (
        ({'label': [torch.tensor([3]), torch.tensor([1])]}, 'label 3 but num_classes=3'),
        ({'label': [torch.tensor([0]), torch.tensor([1])]}, '0 is the background'),
        ({'bbox_xyxy': [torch.full((1, 4), torch.nan)] * 2}, 'is not finite'),
        ({'bbox_xyxy': [torch.tensor([[20.0, 20, 9, 9]])] * 2}, 'ends before it begins'),
        ({'label': [torch.tensor([1])]}, '2 images with 2 sets of boxes and 1 of labels'),
        ({'image': torch.rand(2, 5, 64, 64)}, 'have 5 bands but .*in_channels=3'),
        ({'image': torch.rand(2, 3, 64, 64) * 255}, r'takes \[0, 1\]'),
    ),
)  # fmt: skip
def test_bad_batches_are_refused(
    change: dict, message: str, make_trainer: Callable[..., Trainer]
) -> None:
    batch = batch_of([[8, 8, 40, 40]], [[8, 8, 40, 40]]) | change
    with pytest.raises(ValueError, match=message):
        make_trainer(max_steps=1).fit(make(), loader(batch))


def test_a_batch_without_boxes_can_be_predicted_but_not_learned(
    make_trainer: Callable[..., Trainer],
) -> None:
    batch = {'image': torch.rand(2, 3, 64, 64)}
    found = make_trainer().predict(make(), loader(batch))
    assert found is not None and set(found[0][0]) == {'boxes', 'labels', 'scores'}  # ty: ignore
    with pytest.raises(ValueError, match="learns from 'bbox_xyxy' and 'label'"):
        make_trainer(max_steps=1).fit(make(), loader(batch))


def test_weights_tell_how_to_normalize() -> None:
    task = make(weights=None)
    image = torch.rand(1, 3, 32, 32)
    assert torch.equal(task.normalize(image), image)
    task = make(mean=[0.5, 0.4, 0.3], std=[0.1, 0.2, 0.3])
    expected = (image[0, 1] - 0.4) / 0.2
    assert torch.allclose(task.normalize(image)[0, 1], expected)
    seen = []
    task.model.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    task.eval()(image)
    assert torch.allclose(seen[0][0, 1], expected)


@pytest.mark.parametrize('name', ('resnet_test', 'vit_test'))
def test_weights_from_a_file(name: str, tmp_path: Path) -> None:
    network = timm.create_model(name, num_classes=0)
    torch.save(network.state_dict(), tmp_path / 'weights.pth')
    with pytest.warns(UserWarning, match='pass mean= and std='):
        task = make(backbone=name, weights=str(tmp_path / 'weights.pth'))
    assert task.report is not None and len(task.report.loaded) == task.report.total
    first = next(iter(network.state_dict()))
    own = task.model.backbone.body.network.state_dict()
    assert torch.equal(own[first], network.state_dict()[first])


@pytest.mark.parametrize('name', ('resnet_test', 'vit_test'))
def test_a_frozen_backbone_stays_and_the_rest_learns(name: str) -> None:
    task = make(backbone=name, freeze_backbone=True).train()
    network = task.model.backbone.body.network
    before = {key: value.clone() for key, value in network.state_dict().items()}
    task.training_step(batch_of([[8, 8, 40, 40]], []), 0).backward()
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(
        torch.equal(value, before[key]) for key, value in network.state_dict().items()
    )
    # The levels on it start from random weights
    assert task.model.backbone.fpn.inner_blocks[0][0].weight.grad.abs().sum() > 0
    scales = task.model.backbone.body.scales
    assert scales is None or scales.levels[0][0].weight.grad is not None


@pytest.mark.parametrize('options', ({'freeze_backbone': True}, {'freeze_bn': True}))
def test_frozen_statistics_stay_through_a_run(
    options: dict, make_trainer: Callable[..., Trainer]
) -> None:
    task = make(**options)
    network = task.model.backbone.body.network
    before = {key: value.clone() for key, value in network.named_buffers()}
    make_trainer(max_steps=2).fit(task, loader(*[batch_of([[8, 8, 40, 40]], [])] * 2))
    assert before
    for key, value in network.named_buffers():
        assert torch.equal(value, before[key]), key


def test_frozen_batch_norms_stay_in_evaluation_under_the_task() -> None:
    task = make(freeze_bn=True, trainable_layers=3).eval().train()
    network = task.model.backbone.body.network
    assert task.training and network.layer4.training
    assert not network.layer4[0].bn1.training
    assert not network.layer4[0].bn1.weight.requires_grad
    assert not network.conv1.weight.requires_grad
    assert network.layer2[0].conv1.weight.requires_grad


def test_names_must_be_as_many_as_classes() -> None:
    with pytest.raises(
        ValueError, match='2 labels for num_classes=3: name the background'
    ):
        make(labels=['a', 'b'])


@pytest.mark.parametrize('name', ('resnet50', 'swin_base'))
def test_recipes_name_what_exists(name: str) -> None:
    path = Path(__file__).parents[2] / 'configs' / f'detection_{name}.yaml'
    recipe = yaml.safe_load(path.read_text())
    model, data = recipe['model']['init_args'], recipe['data']['init_args']
    assert set(model) <= set(inspect.signature(ObjectDetection).parameters)
    CocoDataModule(**data)
    made = ObjectDetection(**(model | {'weights': None, 'backbone': 'resnet_test'}))
    assert made.hparams['lr'] == (5e-3 if name == 'resnet50' else 1e-4)
