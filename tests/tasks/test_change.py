# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.utils.data import DataLoader, Dataset

from cmid_geo.tasks import ChangeDetection

SWIN = 'swin_test'


class Squares(Dataset):
    """Pairs in which a square brightens at the second date."""

    def __init__(
        self, number: int = 8, bands: int = 2, size: int = 64, **extra: Any
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        self.samples = []
        for index in range(number):
            image = torch.rand(1, bands, size, size, generator=generator) * 0.5
            image = image.repeat(2, 1, 1, 1)
            mask = torch.zeros(size, size, dtype=torch.long)
            start = size // 16 * (index % 6)
            mask[start : start + size // 3, size // 8 : size // 2] = 1
            image[1] += 0.4 * mask
            self.samples.append({'image': image, 'mask': mask} | extra)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.samples[index]


class Given(nn.Module):
    """A model whose scores are the first date's first band."""

    def forward(self, pair: torch.Tensor) -> torch.Tensor:
        return pair[:, 0, :1]


class Classes(nn.Module):
    """A model that finds ten times the first date's first band."""

    def forward(self, pair: torch.Tensor) -> torch.Tensor:
        classes = torch.arange(3).view(1, 3, 1, 1)
        return -(10 * pair[:, 0, :1] - classes).abs()


def make(**options: Any) -> ChangeDetection:
    torch.manual_seed(0)
    defaults = {'backbone': 'resnet_test', 'in_channels': 2, 'lr': 1e-3}
    return ChangeDetection(**(defaults | options))


def loader(**options: Any) -> DataLoader:
    return DataLoader(Squares(**options), batch_size=4)


def batch(size: int = 64, **changes: Any) -> dict[str, Any]:
    return next(iter(loader(size=size))) | changes


def step(task: ChangeDetection, given: dict[str, Any]) -> torch.Tensor:
    task.check_labels(given)
    task.check(given, 0)
    return task.training_step(given, 0)


@pytest.mark.parametrize(
    ('backbone', 'model'),
    [
        ('resnet_test', 'unet'),
        ('resnet50', 'bit'),
        (SWIN, 'upernet'),
        ('vit_test', 'fpn'),
    ],
)
def test_fits_saves_and_comes_back(
    make_trainer: Callable[..., Trainer], tmp_path: Path, backbone: str, model: Any
) -> None:
    task = make(model=model, backbone=backbone, mean=[0.2, 0.3])
    network = task.model.encoder.network
    before = {key: value.clone() for key, value in network.state_dict().items()}
    trainer = make_trainer(max_steps=1)
    data = loader(number=4, size=32)
    trainer.fit(task, data, data)
    changed = [
        key for key, value in network.state_dict().items()
        if not torch.equal(value, before[key])
    ]  # fmt: skip
    assert len(changed) > len(before) / 2
    trainer.save_checkpoint(tmp_path / 'task.ckpt', weights_only=True)
    other = ChangeDetection.load_from_checkpoint(tmp_path / 'task.ckpt')
    image = batch(size=32)['image']
    torch.testing.assert_close(other.eval()(image), task.eval()(image))
    assert other.hparams == task.hparams
    assert other.mean.tolist() == pytest.approx([0.2, 0.3])


@pytest.mark.parametrize(
    'options', [{}, {'fusion': 'concatenation'}, {'model': 'bit', 'lr': 3e-3}]
)
def test_learns_what_changed(options: dict[str, Any]) -> None:
    task, given = make(**options), batch(size=32)
    optimizer = torch.optim.AdamW(task.parameters(), lr=3e-3)
    losses = []
    for _ in range(16):
        losses.append(step(task, given))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] / 2
    found, truth = task(given['image'])[:, 0] > 0, given['mask'] == 1
    hits = (found & truth).sum()
    assert 2 * hits / (found.sum() + truth.sum()) > 0.9


def test_arguments_of_this_task_win_over_torchgeo_s() -> None:
    task = make(patience=3)
    given = task.hparams
    assert (given['loss'], given['patience'], given['lr']) == ('ce+dice', 3, 1e-3)
    assert 'weights' not in given
    assert make(loss='focal').hparams['loss'] == 'focal'


def test_metrics_are_of_the_change_and_of_known_pixels_alone(
    make_trainer: Callable[..., Trainer],
) -> None:
    task = make(ignore_index=7)
    task.model = Given()
    # All scores lie in [0, 1]: 0.2 is change too, since its probability is above a half
    image = torch.zeros(1, 2, 2, 2, 4)
    image[0, 0, 0] = torch.tensor([[0.2, 0.2, 0.2, 0.2], [0.2, 0.2, 0.2, 0.2]])
    mask = torch.tensor([[[1, 1, 0, 7], [1, 0, 0, 7]]])
    valid = torch.ones(1, 2, 4, dtype=torch.bool)
    valid[0, 1, 2] = False
    sample = {'image': image[0], 'mask': mask[0], 'valid': valid[0]}
    found = make_trainer().test(task, DataLoader([sample]), verbose=False)[0]
    # 5 known pixels, all found as change: 3 hits, 2 extra
    assert found['test_OverallPrecision'] == pytest.approx(3 / 5)
    assert found['test_OverallRecall'] == 1
    assert found['test_OverallF1Score'] == pytest.approx(6 / 8)
    assert found['test_OverallJaccardIndex'] == pytest.approx(3 / 5)


def test_several_classes(make_trainer: Callable[..., Trainer]) -> None:
    task = make(
        task='multiclass', num_classes=3, labels=['same', 'built', 'cut'],
        class_weights=[1.0, 2.0, 2.0], ignore_index=255,
    )  # fmt: skip
    shares = task.predict_step(batch(size=32), 0)
    assert shares.shape == (4, 3, 32, 32)
    torch.testing.assert_close(shares.sum(1), torch.ones(4, 32, 32))
    task.model = Classes()
    image = torch.zeros(2, 2, 2, 1, 6)
    image[:, 0, 0] = torch.tensor([0.0, 0.1, 0.1, 0.2, 0.2, 0.1])
    mask = torch.tensor([[[0, 1, 0, 2, 1, 255]]]).repeat(2, 1, 1)
    data = DataLoader([{'image': i, 'mask': m} for i, m in zip(image, mask)])
    found = make_trainer().test(task, data, verbose=False)[0]
    expected = {
        'F1Score': (2 / 3, 1 / 2, 2 / 3), 'JaccardIndex': (1 / 2, 1 / 3, 1 / 2),
        'Precision': (1, 1 / 2, 1 / 2), 'Recall': (1 / 2, 1 / 2, 1),
    }  # fmt: skip
    for name, values in expected.items():
        for label, value in zip(('same', 'built', 'cut'), values):
            assert found[f'test_Classwise{name}_{label}'] == pytest.approx(value), name


def test_probabilities_of_change() -> None:
    task = make().eval()
    given = batch()
    shares = task.predict_step(given, 0)
    torch.testing.assert_close(shares, task(given['image']).sigmoid())


def test_standardises_both_dates() -> None:
    task = make(mean=[0.2, 0.4], std=[0.1, 0.5])
    task.model = Given()
    image = batch()['image']
    torch.testing.assert_close(task(image), (image[:, 0, :1] - 0.2) / 0.1)


@pytest.mark.parametrize('loss', ['ce', 'dice', 'jaccard', 'focal', 'ce+dice'])
@pytest.mark.parametrize('model', ['unet', 'bit'])
def test_labels_that_are_all_ignored_teach_nothing(model: Any, loss: Any) -> None:
    task = make(model=model, ignore_index=255, loss=loss)
    found = step(task, batch(mask=torch.full((4, 64, 64), 255)))
    found.backward()
    assert found.item() == 0
    assert all(
        parameter.grad is None or (parameter.grad == 0).all()
        for parameter in task.parameters()
    )


def test_a_date_that_is_not_valid_counts_nowhere() -> None:
    task = make()
    valid = torch.ones(4, 2, 64, 64, dtype=torch.bool)
    valid[:, 1, :, 20:] = False
    both = step(task.eval(), batch(valid=valid))
    mask = batch()['mask']
    mask[:, :, 20:] = 1 - mask[:, :, 20:]
    torch.testing.assert_close(step(task, batch(valid=valid, mask=mask)), both)
    torch.testing.assert_close(step(task, batch(valid=valid.all(1))), both)


def test_masks_without_change_and_with_a_band() -> None:
    task = make().eval()
    mask = torch.zeros(4, 64, 64, dtype=torch.long)
    plain = step(task, batch(mask=mask))
    assert plain.isfinite() and plain > 0
    torch.testing.assert_close(step(task, batch(mask=mask[:, None])), plain)


@pytest.mark.parametrize(
    ('changes', 'cure'),
    [
        ({'image': torch.rand(4, 2, 3, 64, 64)}, 'pass in_channels=3'),
        ({'image': torch.rand(4, 2, 64, 64)}, '(batch, 2, bands, height, width)'),
        ({'image': torch.rand(4, 3, 2, 64, 64)}, '(batch, 2, bands, height, width)'),
        ({'image': torch.rand(4, 2, 2, 64, 64) * 255}, 'takes [0, 1]'),
        ({'mask': torch.full((4, 64, 64), 255)}, 'binary=True'),
        ({'mask': torch.full((4, 64, 64), -1)}, 'ignore_index='),
        ({'mask': torch.zeros(4, 32, 32).long()}, 'one label a pixel'),
        ({'mask': torch.zeros(4, 2, 64, 64).long()}, 'one label a pixel'),
    ],
)
def test_batches_that_do_not_fit(changes: dict[str, Any], cure: str) -> None:
    with pytest.raises(ValueError) as caught:
        step(make(), batch(**changes))
    assert cure in str(caught.value)


def test_a_class_too_many() -> None:
    task = make(task='multiclass', num_classes=3, ignore_index=255)
    step(task, batch(mask=torch.full((4, 64, 64), 2)))
    step(task, batch(mask=torch.full((4, 64, 64), 255)))
    with pytest.raises(ValueError, match='raise num_classes='):
        step(task, batch(mask=torch.full((4, 64, 64), 3)))


def test_bad_labels_are_refused_in_training(
    make_trainer: Callable[..., Trainer],
) -> None:
    data = loader(mask=torch.full((64, 64), 255))
    with pytest.raises(ValueError, match='binary change is 0 or 1'):
        make_trainer(fast_dev_run=True).fit(make(), data)


@pytest.mark.parametrize(
    ('options', 'cure'),
    [
        ({'task': 'multiclass'}, 'give the number of classes'),
        ({'task': 'multiclass', 'num_classes': 3, 'pos_weight': 2.0}, 'class_weights='),
        ({'num_classes': 2}, "set task='multiclass'"),
        ({'labels': ['one']}, 'give one a class'),
        ({'class_weights': [1.0, 2.0, 3.0]}, 'give one a class'),
        ({'model': 'bit', 'fusion': 'concatenation'}, 'leave out fusion='),
    ],
)
def test_choices_that_do_not_go_together(options: dict[str, Any], cure: str) -> None:
    with pytest.raises(ValueError, match=cure):
        make(**options)


def test_change_may_count_more() -> None:
    torch.testing.assert_close(
        step(make(loss='ce', pos_weight=torch.tensor(3.0)).eval(), batch()),
        step(make(loss='ce', pos_weight=3.0).eval(), batch()),
    )
    plain = step(make(loss='ce').eval(), batch())
    assert step(make(loss='ce', pos_weight=3.0).eval(), batch()) > plain


@pytest.mark.parametrize('backbone', ['resnet_test', 'vit_test'])
def test_a_frozen_backbone_stays(
    make_trainer: Callable[..., Trainer], backbone: str
) -> None:
    task = make(backbone=backbone, freeze_backbone=True)
    network = task.model.encoder.network
    before = {key: value.clone() for key, value in network.state_dict().items()}
    make_trainer(max_steps=2).fit(task, loader(size=32))
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]), key
    added = set(task.model.encoder.parameters()) - set(network.parameters())
    assert all(parameter.requires_grad for parameter in added)
    assert bool(added) == backbone.startswith('vit')


def test_a_frozen_decoder_stays() -> None:
    task = make(freeze_decoder=True)
    assert not any(p.requires_grad for p in task.model.decoder.parameters())
    assert all(p.requires_grad for p in task.model.encoder.parameters())


def test_weights_fill_the_shared_encoder(tmp_path: Path) -> None:
    given = timm.create_model('resnet_test', num_classes=0, in_chans=2).state_dict()
    torch.save(given, tmp_path / 'resnet18.pth')
    task = make(weights=str(tmp_path / 'resnet18.pth'), mean=[0.5, 0.5], std=[1, 1])
    assert task.report is not None and len(task.report.loaded) == task.report.total
    assert torch.equal(task.model.encoder.network.conv1.weight, given['conv1.weight'])
