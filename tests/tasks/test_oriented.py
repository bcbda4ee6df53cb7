# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

import copy
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from cmid_geo.metrics.rotated_mean_average_precision import RotatedMAP
from cmid_geo.ops.rotated_boxes import corners, rotated_iou
from cmid_geo.tasks.oriented import OrientedDetection, check_boxes, rectangles

SMALL: dict[str, Any] = {
    'backbone': 'resnet_test', 'num_classes': 3, 'fpn_channels': 16, 'head_channels': 32,
    'proposals': 30, 'detections_per_img': 20, 'warmup_steps': 0,
}  # fmt: skip


def make(**options: Any) -> OrientedDetection:
    torch.manual_seed(0)
    return OrientedDetection(**(SMALL | options))


def a_batch(bands: int = 3, size: int = 64) -> dict[str, Any]:
    torch.manual_seed(1)
    boxes = torch.tensor([[30.0, 34, 24, 9, 0.7], [50, 10, 12, 12, 0]])
    return {
        'image': torch.rand(2, bands, size, size),
        'bbox': [corners(boxes).flatten(1), torch.zeros(0, 8)],
        'label': [torch.tensor([1, 2]), torch.zeros(0, dtype=torch.long)],
    }


def loader(number: int = 2, **options: Any) -> DataLoader:
    return DataLoader([a_batch(**options)] * number, batch_size=None)


@pytest.mark.parametrize(
    'backbone', ['resnet_test', 'resnet50', 'swin_test', 'vit_test']
)
def test_each_family_trains_saves_and_reloads(
    backbone: str, make_trainer: Callable[..., Any], tmp_path: Path
) -> None:
    task = make(backbone=backbone, mean=0.5, std=0.25, score_thresh=0.0)
    before = copy.deepcopy(task.state_dict())
    trainer = make_trainer(max_steps=1)
    trainer.fit(task, loader(1), loader(1))
    assert 0 <= trainer.callback_metrics['val_map_50'] <= 1
    assert trainer.callback_metrics['train_loss'] > 0
    changed = {k for k, v in task.state_dict().items() if not torch.equal(v, before[k])}
    for part in ('encoder.network', 'fpn', 'rpn', 'head'):
        assert any(name.startswith(f'model.{part}') for name in changed), part
    trainer.save_checkpoint(tmp_path / 'last.ckpt')
    other = OrientedDetection.load_from_checkpoint(tmp_path / 'last.ckpt')
    (tmp_path / 'last.ckpt').unlink()
    assert other.hparams['backbone'] == backbone and other.std.tolist() == [0.25] * 3
    image = a_batch()['image']
    found, again = task.eval()(image), other.eval()(image)
    assert len(found[0]['boxes']) > 0
    for first, second in zip(found, again, strict=True):
        torch.testing.assert_close(first, second)


def test_signature_begins_as_torchgeos() -> None:
    from torchgeo.tasks import ObjectDetection

    theirs = list(inspect.signature(ObjectDetection).parameters)
    assert (
        list(inspect.signature(OrientedDetection).parameters)[: len(theirs)] == theirs
    )
    assert make(lr=0.25).hparams['lr'] == 0.25
    assert 'weights' not in make().hparams


def test_images_are_standardised() -> None:
    task = make(mean=[0.1, 0.2, 0.3], std=[0.5, 0.25, 1.0]).eval()
    plain = make().eval()
    plain.load_state_dict(task.state_dict())
    plain.mean.zero_(), plain.std.fill_(1)
    image = a_batch()['image']
    by_hand = (image - torch.tensor([0.1, 0.2, 0.3])[:, None, None]) / torch.tensor([0.5, 0.25, 1.0])[:, None, None]  # fmt: skip
    torch.testing.assert_close(task(image), plain(by_hand))


def test_weights_come_with_mean_and_std(tmp_path: Path) -> None:
    source = make(mean=0.4, std=0.2)
    state = {
        f'model.{k}': v for k, v in source.model.encoder.network.state_dict().items()
    }
    torch.save({'hyper_parameters': {'model': 'resnet_test', 'mean': [0.4] * 3, 'std': [0.2] * 3}, 'state_dict': state}, tmp_path / 'w.ckpt')  # fmt: skip
    task = make(weights=str(tmp_path / 'w.ckpt'))
    assert task.mean.tolist() == pytest.approx([0.4] * 3) and task.report is not None
    for name, value in source.model.encoder.network.state_dict().items():
        assert torch.equal(task.model.encoder.network.state_dict()[name], value)


def test_a_frozen_backbone_stays(make_trainer: Callable[..., Any]) -> None:
    task = make(freeze_backbone=True, lr=0.1)
    before = copy.deepcopy(task.state_dict())
    make_trainer(max_steps=2).fit(task, loader())
    for name, value in task.state_dict().items():
        same = torch.equal(value, before[name])
        if name.startswith('model.encoder.network'):
            assert same, name
        elif name == 'model.head.classes.weight':
            assert not same


def test_the_papers_resnet(make_trainer: Callable[..., Any]) -> None:
    task = make(trainable_layers=3, freeze_bn=True, optimizer='sgd', lr=0.005)
    before = copy.deepcopy(task.model.encoder.network.state_dict())
    make_trainer(max_steps=1).fit(task, loader())
    changed = {k for k, v in task.model.encoder.network.state_dict().items() if not torch.equal(v, before[k])}  # fmt: skip
    assert changed and all(
        k.startswith(('layer2', 'layer3', 'layer4')) for k in changed
    )
    assert not [k for k in changed if 'running' in k]


def test_empty_images_train(make_trainer: Callable[..., Any]) -> None:
    batch = a_batch()
    batch['bbox'] = [torch.zeros(0, 8)] * 2
    batch['label'] = [torch.zeros(0, dtype=torch.long)] * 2
    trainer = make_trainer(max_steps=1)
    trainer.fit(make(), DataLoader([batch], batch_size=None))
    assert 0 < trainer.callback_metrics['train_loss'] < 10


def test_measures_are_those_of_the_metric(make_trainer: Callable[..., Any]) -> None:
    task, trainer = make(score_thresh=0.0), make_trainer()
    found = trainer.test(task, loader(3), verbose=False)[0]
    batch, metric = a_batch(), RotatedMAP(3)
    for _ in range(3):
        metric.update(task.eval()(batch['image']), task.targets(batch))
    expected = metric.compute()
    assert found['test_map_50'] == pytest.approx(expected['map_50'].item())
    assert found['test_map_50_11_points'] == pytest.approx(
        expected['map_50_11_points'].item()
    )
    assert found['test_map_50_class_2'] == pytest.approx(
        expected['map_50_per_class'][1].item()
    )
    assert task.test_metrics.scores == []


def test_one_class_is_measured(make_trainer: Callable[..., Any]) -> None:
    batch = a_batch() | {
        'label': [torch.tensor([1, 1]), torch.zeros(0, dtype=torch.long)]
    }
    found = make_trainer().test(
        make(num_classes=2), DataLoader([batch], batch_size=None), verbose=False
    )
    assert 'test_map_50_class_1' in found[0]


def test_predictions_have_corners(make_trainer: Callable[..., Any]) -> None:
    images = DataLoader([{'image': a_batch()['image']}], batch_size=None)
    found = make_trainer().predict(make(score_thresh=0.0), images)
    each = found[0][0]
    torch.testing.assert_close(each['corners'], corners(each['boxes']).flatten(1))
    assert len(each['scores']) == len(each['corners']) > 0


class TestTargets:
    def test_corners_and_boxes_are_the_same(self) -> None:
        boxes = torch.tensor([[30.0, 34, 9, 24, 0.7], [1000, 2000, 12, 5, -3]])
        first, second = rectangles(boxes), rectangles(corners(boxes).flatten(1))
        torch.testing.assert_close(first, second, atol=1e-3, rtol=0)
        assert rotated_iou(first, boxes).diagonal().min() > 0.999
        assert first[0].tolist() == pytest.approx([30, 34, 24, 9, 0.7 - math.pi / 2])

    def test_difficult_ones_are_passed_on(self) -> None:
        batch = a_batch() | {
            'difficult': [torch.tensor([True, False]), torch.zeros(0, dtype=torch.bool)]
        }
        assert make().targets(batch)[0]['difficult'].tolist() == [True, False]
        assert 'difficult' not in make().targets(a_batch())[0]

    @pytest.mark.parametrize(
        ('boxes', 'labels', 'message'),
        [
            ([[1, 1, math.nan, 2, 0]], [1], r'bbox holds \[1.0, 1.0, nan.*must be finite'),
            ([[1, 1, 5, math.inf, 0]], [1], 'must be finite'),
            ([[1, 1, 5, 0, 0]], [1], r'bbox holds \[1.0, 1.0, 5.0, 0.0, 0.0\], of no area'),
            ([[1, 1, -5, 2, 0]], [1], 'of no area'),
            ([[1, 1, 4, 4, 8, 8, 2, 2]], [1], 'of no area'),
            ([[1, 1, 5, 2]], [1], r'bbox of shape \(1, 4\)'),
            ([[1, 1, 5, 2, 0]], [1, 2], r'label of shape \(2,\)'),
            ([[1, 1, 5, 2, 0]], [0], r'label holds \[0\] but num_classes=3 knows 1 to 2'),
            ([[1, 1, 5, 2, 0]], [3], r'label holds \[3\]'),
        ],
    )  # fmt: skip
    def test_what_cannot_be_is_refused(
        self, boxes: list, labels: list, message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            check_boxes(
                torch.tensor(boxes, dtype=torch.float32), torch.tensor(labels), 3
            )

    def test_boxes_outside_and_none_are_fine(self) -> None:
        boxes = torch.tensor([[-50.0, 900, 5, 2, 9]])
        given = boxes.clone()
        check_boxes(boxes, torch.tensor([2]), 3)
        check_boxes(boxes[:0], torch.zeros(0, dtype=torch.long), 3)
        assert torch.equal(boxes, given)


class TestRefused:
    def test_bad_labels_on_their_way_to_the_device(
        self, make_trainer: Callable[..., Any]
    ) -> None:
        batch = a_batch()
        batch['label'][0][0] = 7
        for run in ('fit', 'validate'):
            with pytest.raises(
                ValueError, match=r'label holds \[7\] but num_classes=3'
            ):
                getattr(make_trainer(max_steps=1), run)(
                    make(), DataLoader([batch], batch_size=None)
                )

    def test_other_bands(self, make_trainer: Callable[..., Any]) -> None:
        with pytest.raises(
            ValueError, match=r'4 bands but OrientedDetection\(in_channels=3\)'
        ):
            make_trainer(max_steps=1).fit(make(), loader(bands=4))
        make_trainer(max_steps=1).fit(make(in_channels=4), loader(bands=4))

    def test_raw_values(self, make_trainer: Callable[..., Any]) -> None:
        batch = a_batch()
        batch['image'] *= 255
        with pytest.raises(ValueError, match=r'OrientedDetection takes \[0, 1\]'):
            make_trainer(max_steps=1).fit(make(), DataLoader([batch], batch_size=None))

    def test_missing_entries(self, make_trainer: Callable[..., Any]) -> None:
        batch = a_batch()
        with pytest.raises(
            ValueError, match='2 sets of boxes and 1 of labels: give one of each'
        ):
            make().check_labels({**batch, 'label': batch['label'][:1]})
        with pytest.raises(ValueError, match=r"the batch holds \['image'\]"):
            make().check_labels({'image': batch['image']})

    def test_another_model(self) -> None:
        with pytest.raises(ValueError, match='no detector of rotated boxes'):
            OrientedDetection.configure_models(
                type('Task', (), {'hparams': {'model': 'yolo'}})()
            )


def test_the_best_checkpoint_is_that_of_the_highest_map(
    make_trainer: Callable[..., Any], tmp_path: Path
) -> None:
    task = make()
    best = ModelCheckpoint(tmp_path, monitor=task.monitor, mode=task.mode)
    make_trainer(max_epochs=1, callbacks=[best]).fit(task, loader(1), loader(1))
    assert best.best_model_score is not None and Path(best.best_model_path).exists()
