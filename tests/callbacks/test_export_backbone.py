# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""What a fit leaves must load elsewhere, tensor for tensor."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader
from torchgeo.tasks import Classification, SemanticSegmentation

from cmid_geo.models import export_backbone
from cmid_geo.tasks import CMID

LOAD = """
import sys, torch
from cmid_geo import CMID
torch.save(CMID.load_from_checkpoint(sys.argv[1]).state_dict(), sys.argv[2])
"""


@pytest.fixture(scope='module')
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[CMID, Path]:
    torch.manual_seed(0)
    task = CMID(
        'resnet50', size=64, queue_size=8, hidden_dim=8, output_dim=4, num_prototypes=4
    )
    with torch.no_grad():
        for parameter in task.teacher.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return task, export_backbone(
        task, tmp_path_factory.mktemp('export') / 'new' / 'backbone.ckpt'
    )


def same(tensors: dict, backbone: torch.nn.Module) -> bool:
    own = backbone.state_dict()
    return (
        all(torch.equal(value, own[name]) for name, value in tensors.items())
        and len(tensors) > 300
    )


def test_torchgeo_classification_loads_it(exported: tuple[CMID, Path]) -> None:
    task, path = exported
    loaded = Classification(model='resnet50', weights=str(path), num_classes=7).model
    student = task.student.backbone.network
    tensors = {k: v for k, v in loaded.state_dict().items() if not k.startswith('fc.')}
    assert same(tensors, student)
    assert not same(tensors, task.teacher.backbone.network)
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = task.student.backbone.eval()(image)
        torch.testing.assert_close(loaded.eval().forward_features(image), expected)
    task.student.backbone.train()


def test_torchgeo_segmentation_loads_it(exported: tuple[CMID, Path]) -> None:
    task, path = exported
    loaded = SemanticSegmentation(
        model='unet', backbone='resnet50', weights=str(path), num_classes=7
    )
    assert same(dict(loaded.model.encoder.state_dict()), task.student.backbone.network)


def test_file_says_what_it_is(exported: tuple[CMID, Path], tmp_path: Path) -> None:
    task, path = exported
    content = torch.load(path, weights_only=True)
    about = content['hyper_parameters']
    assert about['model'] == 'resnet50' and about['in_channels'] == 3
    assert about['mean'] == pytest.approx([0.33797, 0.3605, 0.3348])
    assert (
        about['low'] == [0, 0, 0]
        and about['high'] == [1, 1, 1]
        and about['source'] == 'student'
    )
    assert all(key.startswith('model.') for key in content['state_dict'])
    other = export_backbone(task, tmp_path / 'teacher.ckpt', source='teacher')
    tensors = torch.load(other, weights_only=True)['state_dict']
    network = task.teacher.backbone.network.state_dict()
    assert all(
        torch.equal(v, network[k.removeprefix('model.')]) for k, v in tensors.items()
    )
    assert [p.name for p in path.parent.iterdir()] == ['backbone.ckpt'], (
        'nothing half-written'
    )


def test_every_fit_ends_with_one(
    make_task: Callable[..., CMID],
    make_trainer: Callable[..., Trainer],
    loader: DataLoader,
    tmp_path: Path,
) -> None:
    # A name that a process of its own knows
    task = make_task(model='resnet10t')
    trainer = make_trainer(max_epochs=1, enable_checkpointing=True)
    trainer.fit(task, loader)
    (path,) = tmp_path.rglob('backbone.ckpt')
    (checkpoint,) = (p for p in tmp_path.rglob('*.ckpt') if p != path)
    by_hand = export_backbone(checkpoint, tmp_path / 'by_hand.ckpt')
    one, two = (torch.load(p, weights_only=True) for p in (path, by_hand))
    origins = [about['hyper_parameters'].pop('provenance') for about in (one, two)]
    assert [o['from'] for o in origins] == ['CMID', checkpoint.name]
    assert origins[0]['steps'] == origins[1]['steps'] == 4
    assert one['hyper_parameters'] == two['hyper_parameters']
    assert all(
        torch.equal(one['state_dict'][k], v) for k, v in two['state_dict'].items()
    )
    # In a process of its own: the type checker of the tests hides signatures from Lightning
    subprocess.run(
        [sys.executable, '-c', LOAD, checkpoint, tmp_path / 'again.pt'], check=True
    )
    again = torch.load(tmp_path / 'again.pt')
    assert again.keys() == task.state_dict().keys()
    assert all(torch.equal(task.state_dict()[k], v) for k, v in again.items())


@pytest.mark.parametrize('model', ['resnet18', 'vit_test'])
def test_weights_start_from_a_backbone_file(
    model: str, make_task: Callable[..., CMID], tmp_path: Path
) -> None:
    first = make_task(model=model)
    path = export_backbone(first, tmp_path / 'backbone.ckpt')
    torch.manual_seed(5)
    second = CMID(
        model=model,
        size=64,
        weights=str(path),
        hidden_dim=8,
        num_prototypes=4,
        queue_size=8,
    )
    for name, value in first.student.backbone.network.state_dict().items():
        assert torch.equal(second.student.backbone.network.state_dict()[name], value)
        assert torch.equal(second.teacher.backbone.network.state_dict()[name], value)


def test_bad_weights(make_task: Callable[..., CMID], tmp_path: Path) -> None:
    path = export_backbone(make_task(), tmp_path / 'backbone.ckpt')
    with pytest.raises(FileNotFoundError, match='nowhere.ckpt is no file'):
        make_task(weights=str(tmp_path / 'nowhere.ckpt'))
    with pytest.raises(
        ValueError,
        match=r'\d+ of 318 tensors match between backbone.ckpt \(resnet_test\) and resnet50',
    ):
        make_task(model='resnet50', weights=str(path))
    with pytest.raises(ValueError, match='does not say which network it holds'):
        torch.save({'state_dict': {'conv1.weight': torch.ones(1)}}, tmp_path / 'x.ckpt')
        export_backbone(tmp_path / 'x.ckpt', tmp_path / 'out.ckpt')


def test_weights_of_other_bands_are_adapted(
    make_task: Callable[..., CMID], tmp_path: Path
) -> None:
    first = make_task()
    path = export_backbone(first, tmp_path / 'backbone.ckpt')
    second = make_task(in_channels=5, weights=str(path))
    given = first.student.backbone.network.conv1.weight
    for encoder in (second.student, second.teacher):
        found = encoder.backbone.network.conv1.weight
        assert torch.allclose(found, given[:, [0, 1, 2, 0, 1]] * 3 / 5)
