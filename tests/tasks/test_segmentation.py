# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cmid_geo.tasks import SemanticSegmentation

Trainers = Callable[..., Trainer]


class Halves(Dataset):
    """Images with a bright part of class 1 on a dark ground of class 0; an edge without label."""

    def __init__(self, number: int = 4, bands: int = 3, size: int = 64) -> None:
        draw = torch.Generator().manual_seed(0)
        self.images = 0.3 * torch.rand(number, bands, size, size, generator=draw)
        self.masks = torch.zeros(number, size, size, dtype=torch.long)
        for index in range(number):
            edge = size // 4 + index * size // (2 * number)
            self.masks[index, :, edge:] = 1
            self.images[index, :, :, edge:] += 0.6
        self.masks[:, :4] = 255

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {'image': self.images[index], 'mask': self.masks[index]}


def make(model: str = 'unet', backbone: str = 'resnet_test', **options: Any) -> Any:
    defaults = {'num_classes': 2, 'ignore_index': 255}
    return SemanticSegmentation(model, backbone, **(defaults | options))


@pytest.mark.parametrize('name', ['resnet_test', 'resnet50', 'swin_test', 'vit_test'])
def test_trains_saves_and_loads(
    name: str, make_trainer: Trainers, tmp_path: Path
) -> None:
    data = DataLoader(Halves(4, 4), batch_size=2)
    options = {'decoder_channels': 16}
    task = make(
        'upernet', name, in_channels=4, decoder_options=options, drop_path_rate=0.1
    )
    before = {n: p.detach().clone() for n, p in task.named_parameters()}
    trainer = make_trainer(max_epochs=1)
    trainer.fit(task, data, data)
    assert not [n for n, p in task.named_parameters() if torch.equal(p, before[n])]
    trainer.save_checkpoint(tmp_path / 'task.ckpt')
    again = SemanticSegmentation.load_from_checkpoint(
        tmp_path / 'task.ckpt', weights_only=True
    )
    image = torch.rand(2, 4, 96, 64)
    assert torch.equal(task.eval()(image), again.eval()(image))


def test_learns(make_trainer: Trainers) -> None:
    data = DataLoader(Halves(size=32), batch_size=4)
    task = make('unet', 'test_resnet', lr=3e-3, labels=['dark', 'bright'])
    trainer = make_trainer(max_epochs=25)
    trainer.fit(task, data)
    (scores,) = trainer.validate(task, data, verbose=False)
    assert scores['val_AverageJaccardIndex'] > 0.9
    assert scores['val_ClasswiseJaccardIndex_bright'] > 0.9
    assert scores['val_ClasswiseF1Score_dark'] > 0.9
    prediction = trainer.predict(task, data)[0]['probabilities']
    assert prediction.shape == (4, 2, 32, 32)
    torch.testing.assert_close(prediction.sum(1), torch.ones(4, 32, 32))


def test_auxiliary_head_is_the_papers() -> None:
    task = make('upernet', decoder_options={'decoder_channels': 16}).eval()
    batch = {k: v[None] for k, v in Halves(1)[0].items()}
    image, mask = batch['image'], batch['mask']
    torch.manual_seed(0)
    loss = task.training_step(batch, 0)
    coarse = task.model.auxiliary_head(task.model.encoder(image)[-2])
    assert coarse.shape == (1, 2, 4, 4)
    coarse = torch.nn.functional.interpolate(coarse, (64, 64), mode='bilinear')
    parts = [
        torch.nn.functional.cross_entropy(scores, mask, ignore_index=255)
        for scores in (task(image), coarse)
    ]
    torch.testing.assert_close(loss, parts[0] + 0.4 * parts[1])
    assert make('unet').auxiliary_weight == 0
    assert make('unet', auxiliary_weight=0.2).auxiliary_weight == 0.2


@pytest.mark.parametrize('name', ['resnet_test', 'vit_test'])
def test_frozen_parts_stay(name: str, make_trainer: Trainers) -> None:
    data = DataLoader(Halves(), batch_size=2)
    options = {'decoder_channels': 16}
    task = make('upernet', name, freeze_backbone=True, decoder_options=options)
    before = {k: v.clone() for k, v in task.model.encoder.state_dict().items()}
    make_trainer(max_epochs=1).fit(task, data, data)
    moved = {
        name for name, value in task.model.encoder.state_dict().items()
        if not torch.equal(before[name], value)
    }  # fmt: skip
    # The maps that are made of a ViT's one map are new
    assert all(name.startswith('scales.') for name in moved)
    assert bool(moved) == (name != 'resnet_test')


@pytest.mark.parametrize('loss', ['ce', 'dice', 'focal', 'jaccard', 'ce+dice'])
def test_masks_without_any_label(loss: Any, make_trainer: Trainers) -> None:
    samples = [{'image': torch.rand(3, 64, 64), 'mask': torch.full((64, 64), 255)}] * 2
    task = make('upernet', loss=loss, decoder_options={'decoder_channels': 16})
    trainer = make_trainer(max_epochs=1)
    trainer.fit(task, DataLoader(samples, batch_size=2))
    assert trainer.callback_metrics['train_loss'] == 0
    assert all(p.isfinite().all() for p in task.parameters())


def test_bad_data_is_refused(make_trainer: Trainers) -> None:
    def fit(task: Any, **changed: Tensor) -> None:
        batch = {
            'image': torch.rand(2, 3, 64, 64),
            'mask': torch.zeros(2, 64, 64).long(),
        }
        batch |= changed
        samples = [{k: v[i] for k, v in batch.items()} for i in range(2)]
        make_trainer(max_epochs=1).fit(task, DataLoader(samples, batch_size=2))

    with pytest.raises(ValueError, match=r'mask holds \[2, 9\].*num_classes=2.*ignore'):
        fit(make(), mask=torch.randint(2, (2, 64, 64)) * 7 + 2)
    with pytest.raises(
        ValueError, match=r'5 bands but SemanticSegmentation\(in_channels=3'
    ):
        fit(make(), image=torch.rand(2, 5, 64, 64))
    with pytest.raises(ValueError, match='multiples of 32'):
        odd = torch.zeros(2, 60, 64).long()
        fit(make(), image=torch.rand(2, 3, 60, 64), mask=odd)
    with pytest.raises(ValueError, match="auxiliary_weight=0.4.*'dpt'"):
        make('dpt', 'vit_test', auxiliary_weight=0.4)
    with pytest.raises(
        ValueError, match=r'mask has shape \(2, 32, 32\).*one label a pixel'
    ):
        fit(make(), mask=torch.zeros(2, 32, 32).long())
    with pytest.raises(ValueError, match="batch holds.*'mask'"):
        task = make()
        task.check_labels({'image': torch.rand(2, 3, 64, 64)})


@pytest.mark.parametrize('kind', ['binary', 'multilabel'])
def test_other_kinds_of_labels(kind: Any, make_trainer: Trainers) -> None:
    shape = (1, 64, 64) if kind == 'binary' else (3, 64, 64)
    samples = [{'image': torch.rand(3, 64, 64), 'mask': torch.randint(2, shape)}] * 2
    data = DataLoader(samples, batch_size=2)
    task = SemanticSegmentation(
        'unet', 'resnet_test', task=kind, num_labels=shape[0], loss='bce'
    )
    trainer = make_trainer(max_epochs=1)
    trainer.fit(task, data, data)
    assert trainer.callback_metrics['val_loss'].isfinite()
    assert task.decide(task(torch.rand(2, 3, 64, 64))).shape[-2:] == (64, 64)


def test_the_issue_s_line(make_task: Callable[..., Any], tmp_path: Path) -> None:
    swin = 'swin_test'
    torch.save({'state_dict': make_task(model=swin).state_dict(),
                'hyper_parameters': {'model': swin}}, tmp_path / 'cmid.ckpt')  # fmt: skip
    task = SemanticSegmentation(
        model='upernet',
        backbone=swin,
        weights=str(tmp_path / 'cmid.ckpt'),
        num_classes=6,
    )
    assert task.report is not None and len(task.report.loaded) == task.report.total
    # The authors' standardisation comes with the weights
    torch.testing.assert_close(task.mean, torch.tensor([0.33797, 0.3605, 0.3348]))
    with torch.no_grad():
        assert task.eval()(torch.rand(1, 3, 96, 160)).shape == (1, 6, 96, 160)
