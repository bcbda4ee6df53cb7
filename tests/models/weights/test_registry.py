# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""The enums and builders, and how TorchGeo and torch.hub meet them."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchgeo.models
from torchgeo.tasks import Classification, SemanticSegmentation
from torchvision.models import WeightsEnum

from cmid_geo import models
from cmid_geo.models import (
    CMIDResNet50_Weights,
    CMIDSwinB_Weights,
    cmid_resnet50,
    cmid_swin_b,
    get_model,
    get_model_weights,
    get_weight,
    list_models,
    list_weights,
)
from cmid_geo.models.weights import registry

MEMBERS = [*CMIDResNet50_Weights, *CMIDSwinB_Weights]
KEYS = {
    'dataset',
    'in_chans',
    'model',
    'publication',
    'repo',
    'bands',
    'ssl_method',
    'license',
}


@pytest.fixture
def placed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """A cache in which the released ResNet-50 lies."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    cache = tmp_path / 'hub' / 'checkpoints'
    cache.mkdir(parents=True)
    state = timm.create_model('resnet50', num_classes=0).state_dict()
    torch.save(state, cache / CMIDResNet50_Weights.MILLIONAID_RGB.file_name())
    return state


@pytest.mark.parametrize('member', MEMBERS, ids=str)
def test_meta_and_transforms(member: WeightsEnum) -> None:
    assert set(member.meta) >= KEYS
    assert len(member.meta['bands']) == member.meta['in_chans'] == 3
    assert member.meta['model'] in timm.list_models()
    image = torch.rand(2, 3, 8, 8)
    made = member.transforms({'image': image})['image']
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    assert torch.allclose(
        made, (image - mean[:, None, None]) / std[:, None, None], atol=1e-6
    )
    assert (
        pickle.loads(pickle.dumps(member)) is member and copy.deepcopy(member) is member
    )


def test_no_two_share_an_address_or_a_file() -> None:
    urls = [member.url for member in MEMBERS] + [
        member.meta['full_url'] for member in MEMBERS
    ]
    files = [
        member.file_name(kind) for member in MEMBERS for kind in ('backbone', 'full')
    ]
    assert len(set(urls)) == len(set(files)) == 8
    assert all(url.startswith('https://') and url.endswith('/?dl=1') for url in urls)


def test_lists() -> None:
    assert list_models() == ['cmid_resnet50', 'cmid_swin_b']
    assert list_weights() == [str(member) for member in MEMBERS]
    assert list_weights('cmid_swin_b') == [str(member) for member in CMIDSwinB_Weights]
    assert (
        get_model_weights('cmid_resnet50')
        is get_model_weights(cmid_resnet50)
        is CMIDResNet50_Weights
    )
    assert get_weight('CMIDSwinB_Weights.POTSDAM_RGB') is CMIDSwinB_Weights.POTSDAM_RGB
    assert (
        str(get_weight('ResNet18_Weights.SENTINEL2_ALL_MOCO'))
        == 'ResNet18_Weights.SENTINEL2_ALL_MOCO'
    )
    with pytest.raises(ValueError, match='did you mean cmid_resnet50'):
        get_model('cmid_resnet')
    with pytest.raises(
        ValueError, match='name of no weights.*CMIDResNet50_Weights.MILLIONAID_RGB'
    ):
        get_weight('CMIDResNet50_Weights.MILLIONAID')


def test_torchgeo_knows_ours_and_keeps_its_own() -> None:
    theirs = torchgeo.models.list_models()
    assert {
        'resnet50',
        'swin_b',
        'vit_small_patch16_224',
        'cmid_resnet50',
        'cmid_swin_b',
    } <= set(theirs)
    assert (
        torchgeo.models.get_model_weights('resnet50')
        is torchgeo.models.ResNet50_Weights
    )
    for member in MEMBERS:
        assert torchgeo.models.get_weight(str(member)) is member
    assert torchgeo.models.get_model_weights(cmid_swin_b) is CMIDSwinB_Weights
    assert (
        torchgeo.models.get_model('cmid_resnet50', num_classes=2).fc.out_features == 2
    )
    # No name of ours hides one of TorchGeo's in a script that imports both
    assert not {
        n for n in models.__all__ if 'Weights' in n or n.startswith('cmid')
    } & set(torchgeo.models.__all__)


@pytest.mark.parametrize('order', ['cmid_geo.models', 'torchgeo.models'])
def test_torchgeo_knows_our_weights_whichever_is_imported_first(order: str) -> None:
    code = f"""
import sys, {order}
from cmid_geo.models import get_weight
ours = get_weight('CMIDResNet50_Weights.POTSDAM_RGB')
print('torchgeo.models' in sys.modules)
import torchgeo.models
print(torchgeo.models.get_weight('CMIDResNet50_Weights.POTSDAM_RGB') is ours)
"""
    said = subprocess.check_output(
        [sys.executable, '-W', 'ignore', '-c', code], text=True
    )
    assert said.split() == [str(order == 'torchgeo.models'), 'True']


def test_another_torchgeo_costs_the_strings_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(torchgeo.models.api, '_model')
    with pytest.warns(
        UserWarning, match='does not take our weights by name.*member of the enum'
    ):
        registry.register(torchgeo.models.api)
    assert get_weight('CMIDSwinB_Weights.POTSDAM_RGB') is CMIDSwinB_Weights.POTSDAM_RGB


@pytest.mark.parametrize(
    'weights',
    [CMIDResNet50_Weights.MILLIONAID_RGB, 'CMIDResNet50_Weights.MILLIONAID_RGB'],
)
def test_builders_take_timms_keywords(
    weights: Any, placed: dict[str, torch.Tensor]
) -> None:
    assert torch.equal(
        cmid_resnet50(weights, num_classes=7).conv1.weight, placed['conv1.weight']
    )
    features = cmid_resnet50(weights=weights, features_only=True, out_indices=(1, 4))
    assert [f.shape[1] for f in features(torch.rand(1, 3, 64, 64))] == [256, 2048]
    four = cmid_resnet50(weights, in_chans=4)
    assert torch.allclose(four.conv1.weight[:, 3], placed['conv1.weight'][:, 0] * 0.75)
    with pytest.raises(
        ValueError, match='not those of this network: choose of CMIDSwinB'
    ):
        cmid_swin_b(str(weights))


def test_swin_takes_any_size() -> None:
    with torch.device('meta'):
        network = get_model('cmid_swin_b', num_classes=0, features_only=True)
        assert network(torch.empty(1, 3, 256, 320))[-1].shape == (1, 8, 10, 1024)


@pytest.mark.parametrize(
    'weights',
    [CMIDResNet50_Weights.MILLIONAID_RGB, 'CMIDResNet50_Weights.MILLIONAID_RGB'],
)
def test_torchgeos_tasks_take_them(
    weights: Any, placed: dict[str, torch.Tensor]
) -> None:
    task = Classification(model='resnet50', weights=weights, num_classes=4)
    found = task.model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in placed.items())
    segmentation = SemanticSegmentation(
        model='unet', backbone='resnet50', weights=weights, num_classes=4
    )
    found = segmentation.model.encoder.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in placed.items())


def test_torch_hub(placed: dict[str, torch.Tensor]) -> None:
    root = Path(models.__file__).parent.parent.parent
    network = torch.hub.load(
        str(root),
        'cmid_resnet50',
        source='local',
        weights='CMIDResNet50_Weights.MILLIONAID_RGB',
        num_classes=3,
    )
    assert torch.equal(network.conv1.weight, placed['conv1.weight'])


def test_torch_hub_needs_no_installed_package(placed: dict[str, torch.Tensor]) -> None:
    root = Path(models.__file__).parent.parent.parent
    code = f"""
import importlib.metadata as metadata
version = metadata.version
def without(name):
    if name == 'cmid-geo':
        raise metadata.PackageNotFoundError(name)
    return version(name)
metadata.version = without
import torch
network = torch.hub.load({str(root)!r}, 'cmid_resnet50', source='local', num_classes=3)
assert network.fc.out_features == 3
"""
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], check=False)
    assert done.returncode == 0
