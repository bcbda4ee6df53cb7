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

from cmid_geo.models import export_backbone, load_backbone
from cmid_geo.models.classification import create_network
from cmid_geo.tasks import Classification, SemanticSegmentation
from cmid_geo.tasks.optimization import make_optimizer
from cmid_geo.tasks.schedules import factor_at

Trainers = Callable[..., Trainer]


class Colours(Dataset):
    """Images of three classes, each of its colour."""

    def __init__(self, number: int = 12, bands: int = 3, size: int = 32) -> None:
        self.labels = torch.arange(number) % 3
        noise = torch.rand(
            number, bands, size, size, generator=torch.Generator().manual_seed(0)
        )
        self.images = 0.2 * noise
        for image, label in zip(self.images, self.labels):
            image[label] += 0.6

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {'image': self.images[index], 'label': self.labels[index]}


@pytest.fixture
def colours() -> DataLoader:
    return DataLoader(Colours(), batch_size=4)


@pytest.mark.parametrize('name', ['resnet_test', 'resnet50', 'swin_test', 'vit_test'])
def test_trains_saves_and_loads(
    name: str, make_trainer: Trainers, tmp_path: Path
) -> None:
    data = DataLoader(Colours(4, 4, 64), batch_size=2)
    task = Classification(name, in_channels=4, num_classes=3, drop_path_rate=0.1)
    trainer = make_trainer(max_epochs=1)
    before = [p.detach().clone() for p in task.model.parameters()]
    trainer.fit(task, data, data)
    moved = [not torch.equal(a, b) for a, b in zip(before, task.model.parameters())]
    assert all(moved)
    trainer.save_checkpoint(tmp_path / 'task.ckpt')
    again = Classification.load_from_checkpoint(
        tmp_path / 'task.ckpt', weights_only=True
    )
    image = torch.rand(2, 4, 96, 64)
    assert torch.equal(task.eval()(image), again.eval()(image))


def test_learns_and_tells_which_class_is_which(
    make_trainer: Trainers, colours: DataLoader
) -> None:
    task = Classification(
        'test_resnet', num_classes=3, lr=3e-3, labels=['red', 'green', 'blue']
    )
    trainer = make_trainer(max_epochs=15)
    trainer.fit(task, colours, colours)
    (scores,) = trainer.validate(task, colours, verbose=False)
    assert scores['val_OverallAccuracy'] == 1
    assert scores['val_ClasswiseAccuracy_green'] == 1


def test_linear_probe_moves_the_classifier_only(
    make_trainer: Trainers, colours: DataLoader
) -> None:
    task = Classification('resnet_test', num_classes=3, freeze_backbone=True)
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    make_trainer(max_epochs=1).fit(task, colours)
    moved = {
        n for n, v in task.model.state_dict().items() if not torch.equal(v, before[n])
    }
    # Running statistics of batch norms count as the backbone's as well
    assert moved == {'fc.weight', 'fc.bias'}


def test_recipe_of_the_paper(make_trainer: Trainers, colours: DataLoader) -> None:
    task = Classification(
        'resnet_test', num_classes=3, optimizer='adan', lr=1e-3, warmup_epochs=1, mixup=0.8,
        cutmix=1.0, label_smoothing=0.1, randaugment=9, random_erasing=0.25, layer_decay=0.5,
    )  # fmt: skip
    trainer = make_trainer(max_epochs=2)
    trainer.fit(task, colours)
    assert trainer.callback_metrics['train_loss'].isfinite()
    schedule = trainer.lr_scheduler_configs[0].scheduler
    (factor,) = {lambdas(3) for lambdas in schedule.lr_lambdas}
    assert factor == pytest.approx(factor_at(3, 6, 3, 'cosine', 1e-3))
    rates = [group['initial_lr'] for group in trainer.optimizers[0].param_groups]
    assert max(rates) == pytest.approx(1e-3) and min(rates) < 1e-4


def test_no_decay_of_biases_and_norms() -> None:
    network = create_network('resnet_test', num_classes=3)
    optimizer = make_optimizer(network, 'sgd', 0.1, 0.02, 0.9)
    for group in optimizer.param_groups:
        assert all(
            (p.ndim == 1) == (group['weight_decay'] == 0) for p in group['params']
        )
    assert {group['nesterov'] for group in optimizer.param_groups} == {False}


def test_standardises_as_the_weights_do(
    make_task: Callable[..., Any], tmp_path: Path
) -> None:
    pretrained = make_task(mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7])
    path = tmp_path / 'cmid.ckpt'
    trainer = Trainer(logger=False, enable_progress_bar=False, accelerator='cpu')
    trainer.strategy.connect(pretrained)
    trainer.save_checkpoint(path, weights_only=True)
    task = Classification('resnet_test', str(path), num_classes=3)
    assert task.report is not None and len(task.report.loaded) == task.report.total
    torch.testing.assert_close(task.mean, torch.tensor([0.1, 0.2, 0.3]))
    image = torch.rand(1, 3, 64, 64)
    standard = (image - task.mean[:, None, None]) / task.std[:, None, None]
    torch.testing.assert_close(task.eval()(image), task.model(standard))
    four = Classification('resnet_test', str(path), in_channels=4, num_classes=3)
    torch.testing.assert_close(four.mean, torch.full((4,), 0.2))
    plain = Classification('resnet_test', num_classes=3)
    assert not plain.mean.any() and (plain.std == 1).all()


def test_bad_data_is_refused(make_trainer: Trainers) -> None:
    def fit(task: Classification, **changed: Tensor) -> None:
        batch = {
            'image': torch.rand(4, 3, 32, 32),
            'label': torch.arange(4) % 3,
        } | changed
        samples = [{k: v[i] for k, v in batch.items()} for i in range(4)]
        make_trainer(max_epochs=1).fit(task, DataLoader(samples, batch_size=2))

    task = Classification('resnet_test', num_classes=3)
    with pytest.raises(
        ValueError, match=r'label holds \[3, 7\].*num_classes=3.*ignore'
    ):
        fit(task, label=torch.tensor([3, 7, 0, 0]))
    with pytest.raises(
        ValueError, match=r'4 bands but Classification\(in_channels=3\)'
    ):
        fit(task, image=torch.rand(4, 4, 32, 32))
    with pytest.raises(ValueError, match=r'Classification takes \[0, 1\]'):
        fit(task, image=255 * torch.rand(4, 3, 32, 32))
    with pytest.raises(ValueError, match='num_classes='):
        Classification('resnet_test')
    with pytest.raises(ValueError, match="loss='ce'.*'bce'"):
        Classification('resnet_test', task='binary')
    with pytest.raises(ValueError, match='randaugment=9.*in_channels=4'):
        Classification('resnet_test', in_channels=4, num_classes=3, randaugment=9)
    with pytest.raises(ValueError, match='mixup.*multilabel'):
        Classification(
            'resnet_test', task='multilabel', num_labels=3, loss='bce', mixup=0.8
        )
    with pytest.raises(ValueError, match='warm-up of 9 steps is longer'):
        fit(Classification('resnet_test', num_classes=3, warmup_steps=9))


@pytest.mark.parametrize('kind', ['binary', 'multilabel'])
def test_other_kinds_of_labels(kind: Any, make_trainer: Trainers) -> None:
    labels = torch.randint(2, (4,) if kind == 'binary' else (4, 5))
    samples = [{'image': torch.rand(3, 32, 32), 'label': label} for label in labels]
    task = Classification(
        'resnet_test', task=kind, num_labels=labels[0].numel(), loss='bce'
    )
    trainer = make_trainer(max_epochs=1)
    trainer.fit(
        task, DataLoader(samples, batch_size=2), DataLoader(samples, batch_size=2)
    )
    assert trainer.callback_metrics['val_loss'].isfinite()


def test_metrics_see_probabilities_of_binary_tasks() -> None:
    task = Classification('test_resnet', task='binary', loss='bce')
    # All in [0, 1], and all held true
    logits, labels = torch.tensor([[0.1], [0.2], [0.3]]), torch.tensor([1, 1, 0])
    task.log = lambda *args, **options: None
    task.record('val', torch.tensor(0.0), logits, labels)
    assert task.val_metrics.compute()['val_OverallAccuracy'] == pytest.approx(2 / 3)


VIT = 'vit_test'


def cmid_vit(make_task: Callable[..., Any], folder: Path) -> tuple[Any, dict[str, Any]]:
    """A ViT that CMID pretrained, and every kind of file of it."""
    pretrained = make_task(model=VIT)
    trainer = Trainer(logger=False, enable_progress_bar=False, accelerator='cpu')
    trainer.strategy.connect(pretrained)
    trainer.save_checkpoint(folder / 'cmid.ckpt', weights_only=True)
    files = {
        'checkpoint': folder / 'cmid.ckpt',
        'exported': export_backbone(pretrained, folder / 'backbone.ckpt'),
        'safetensors': export_backbone(pretrained, folder / 'backbone.safetensors'),
    }
    return pretrained, files


@pytest.mark.parametrize('kind', ['checkpoint', 'exported', 'safetensors'])
@torch.no_grad()
def test_a_vit_of_cmid_classifies_by_the_mean_of_its_patches(
    kind: str, make_task: Callable[..., Any], tmp_path: Path
) -> None:
    """CMID trains the patch tokens alone."""
    pretrained, files = cmid_vit(make_task, tmp_path)
    image = torch.rand(2, 3, 96, 64)
    task = Classification(VIT, str(files[kind]), num_classes=3).eval()
    vectors = pretrained.student.backbone.eval()(task.normalize(image)).mean((2, 3))
    features = task.model.forward_features(task.normalize(image))
    pooled = task.model.forward_head(features, pre_logits=True)
    torch.testing.assert_close(pooled, vectors)
    torch.testing.assert_close(task(image), task.model.head(vectors))
    assert task.hparams['global_pool'] == 'avg' and "'avg'" in str(task.report)
    # timm's own names, as without
    assert set(task.model.state_dict()) == set(
        create_network(VIT, num_classes=3).state_dict()
    )
    # In timm alone
    plain = create_network(VIT, global_pool='avg', fc_norm=False).eval()
    load_backbone(plain, files[kind])
    torch.testing.assert_close(plain(task.normalize(image)), vectors)


def test_pooling_stays_with_a_vits_checkpoint(
    make_task: Callable[..., Any], tmp_path: Path
) -> None:
    _, files = cmid_vit(make_task, tmp_path)
    trainer = Trainer(logger=False, enable_progress_bar=False, accelerator='cpu')

    def saved(task: Classification, name: str) -> Path:
        trainer.strategy.connect(task)
        trainer.save_checkpoint(tmp_path / name, weights_only=True)
        return tmp_path / name

    task = Classification(VIT, str(files['checkpoint']), num_classes=3)
    path = saved(task, 'task.ckpt')
    again = Classification.load_from_checkpoint(path, weights_only=True).eval()
    image = torch.rand(1, 3, 64, 64)
    assert again.model.global_pool == 'avg'
    assert torch.equal(again(image), task.eval()(image))
    # Weights of another origin keep their class token, and so do earlier checkpoints of them
    plain = Classification(VIT, num_classes=3)
    assert plain.model.global_pool == 'token'
    del plain.hparams['global_pool']
    old = Classification.load_from_checkpoint(
        saved(plain, 'old.ckpt'), weights_only=True
    )
    assert old.model.global_pool == 'token'
    told = Classification(
        VIT, str(files['exported']), num_classes=3, global_pool='token'
    )
    assert told.model.global_pool == 'token'
    # From one classifier to the next as it was, from maps by the patches
    assert Classification(VIT, str(path), num_classes=5).model.global_pool == 'avg'
    path = saved(plain, 'token.ckpt')
    assert Classification(VIT, str(path), num_classes=5).model.global_pool == 'token'
    maps = SemanticSegmentation('dpt', VIT, num_classes=2, auxiliary_weight=0)
    path = saved(maps, 'maps.ckpt')
    assert Classification(VIT, str(path), num_classes=5).model.global_pool == 'avg'


def test_a_restored_run_pools_as_its_checkpoint(
    make_task: Callable[..., Any], make_trainer: Trainers, tmp_path: Path
) -> None:
    """Whatever the weights say that it is built with."""
    _, files = cmid_vit(make_task, tmp_path)
    data = DataLoader(Colours(4), batch_size=2)
    trained = Classification(VIT, str(files['checkpoint']), num_classes=3)
    plain = Classification(VIT, num_classes=3)
    for task, pooling in ((trained, 'avg'), (plain, 'token')):
        trainer = make_trainer(max_steps=1)
        trainer.fit(task, data)
        trainer.save_checkpoint(tmp_path / 'run.ckpt')
        if pooling == 'token':
            # As earlier versions wrote them
            content = torch.load(tmp_path / 'run.ckpt', weights_only=True)
            del content['hyper_parameters']['global_pool']
            torch.save(content, tmp_path / 'run.ckpt')
        for weights in (None, str(files['exported'])):
            again = Classification(VIT, weights, num_classes=3)
            make_trainer().validate(again, data, str(tmp_path / 'run.ckpt'))
            assert again.model.global_pool == again.hparams['global_pool'] == pooling
            image = torch.rand(1, 3, 32, 32)
            assert torch.equal(again.eval()(image), task.eval()(image))


def test_pooling_is_a_plain_vits() -> None:
    with pytest.raises(ValueError, match=r"global_pool='avg' of a ResNet.*leave it"):
        Classification('resnet_test', num_classes=3, global_pool='avg')
    with pytest.raises(ValueError, match='no class token'):
        Classification(
            'vit_base_patch16_siglip_224', num_classes=3, global_pool='token'
        )
    siglip = Classification(
        'vit_base_patch16_siglip_224', num_classes=3, global_pool='avg'
    )
    assert siglip.model.attn_pool is None
    with pytest.warns(UserWarning, match='class tokens, which CMID does not train'):
        Classification(
            'deit_tiny_distilled_patch16_224', num_classes=3, global_pool='avg'
        )
