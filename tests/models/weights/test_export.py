# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Exported backbones give what the task gives, from raw values on."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from safetensors import safe_open

import cmid_geo
from cmid_geo.__main__ import main
from cmid_geo.models import export_backbone, load_backbone
from cmid_geo.models.weights import export_onnx as programs
from cmid_geo.plots.model_card import model_card
from cmid_geo.tasks import CMID

SIZES = [(1, 224, 224), (2, 256, 320), (1, 512, 512), (3, 96, 64)]


@pytest.fixture
def task(make_task: Callable[..., CMID]) -> CMID:
    """A task on four bands of a 12-bit sensor, whose student and teacher differ."""
    return taught(make_task(in_channels=4))


@torch.no_grad()
def taught(task: CMID) -> CMID:
    for tensor in task.teacher.backbone.parameters():
        tensor.add_(0.01 * torch.randn_like(tensor))
    task.hparams['bands'] = ['red', 'green', 'blue', 'nir']
    task.low.copy_(torch.tensor([10.0, 20, 30, 40]))
    task.high.copy_(torch.tensor([1000.0, 2000, 3000, 4000]))
    task.mean.copy_(torch.tensor([0.2, 0.3, 0.4, 0.5]))
    task.std.fill_(0.2)
    return task


def raw(batch: int, height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 4096, (batch, 4, height, width)).float()


@torch.no_grad()
def expected(task: CMID, image: torch.Tensor, side: str = 'student') -> torch.Tensor:
    low, high, mean, std = (
        getattr(task, n)[:, None, None] for n in ('low', 'high', 'mean', 'std')
    )
    encoder = getattr(task, side).eval()
    return encoder.backbone(((image - low) / (high - low) - mean) / std)


def check_about(about: dict[str, Any], source: str = 'student') -> None:
    assert about['model'] == 'resnet_test' and about['in_channels'] == 4
    assert about['bands'] == ['red', 'green', 'blue', 'nir']
    assert about['low'] == [10, 20, 30, 40] and about['high'] == [
        1000,
        2000,
        3000,
        4000,
    ]
    assert np.allclose(about['mean'], [0.2, 0.3, 0.4, 0.5]) and np.allclose(
        about['std'], 0.2
    )
    assert about['source'] == source and about['ssl_method'] == 'CMID'
    assert about['provenance']['cmid_geo']


def test_ckpt_and_safetensors_hold_the_same(task: CMID, tmp_path: Path) -> None:
    content = torch.load(export_backbone(task, tmp_path / 'a.ckpt'), weights_only=True)
    check_about(content['hyper_parameters'])
    with safe_open(export_backbone(task, tmp_path / 'a.safetensors'), 'pt') as file:
        check_about(json.loads(file.metadata()['cmid_geo']))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    own = task.student.backbone.network.state_dict()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in own.items())
    assert all(
        torch.equal(content['state_dict'][f'model.{n}'], t) for n, t in own.items()
    )
    assert len(tensors) == len(own) == len(content['state_dict'])
    # As anyone would load it
    plain = timm.create_model(
        'resnet_test',
        in_chans=4,
        num_classes=0,
        checkpoint_path=str(tmp_path / 'a.safetensors'),
    )
    assert torch.equal(plain.conv1.weight, own['conv1.weight'])


MODELS = ['resnet_test', 'swin_test', 'vit_test', 'convnext_atto']


@pytest.mark.parametrize('model', MODELS)
def test_onnx_takes_raw_values_of_any_size(
    model: str, make_task: Callable[..., CMID], tmp_path: Path
) -> None:
    task = taught(make_task(model=model, in_channels=4))
    path = export_backbone(task, tmp_path / 'backbone.onnx')
    session = onnxruntime.InferenceSession(path)
    for size in SIZES:
        image = raw(*size)
        (features,) = session.run(None, {'image': image.numpy()})
        wanted = expected(task, image).numpy()
        assert np.abs(features - wanted).max() < 1e-4 * np.abs(wanted).max(), size
    loaded = onnx.load(path)
    about = {p.key: p.value for p in loaded.metadata_props}
    assert about['model'] == model and json.loads(about['high']) == [
        1000,
        2000,
        3000,
        4000,
    ]
    dims = [
        d.dim_param or d.dim_value
        for d in loaded.graph.input[0].type.tensor_type.shape.dim
    ]
    assert dims == ['batch', 4, 'height', 'width']
    assert {p.name for p in tmp_path.iterdir()} == {'backbone.onnx'}, (
        'nothing lies beside it'
    )


@pytest.mark.parametrize('model', MODELS[:2])
def test_torchscript_takes_raw_values_of_any_size(
    model: str, make_task: Callable[..., CMID], tmp_path: Path
) -> None:
    task = taught(make_task(model=model, in_channels=4))
    extra = {'cmid_geo.json': ''}
    program = torch.jit.load(
        export_backbone(task, tmp_path / 'a.ts'), _extra_files=extra
    )
    for size in SIZES:
        image = raw(*size)
        with torch.no_grad():
            assert torch.allclose(program(image), expected(task, image), atol=1e-4)
    assert json.loads(extra['cmid_geo.json'])['model'] == model


@pytest.mark.parametrize(
    ('name', 'kind', 'reader'),
    [
        ('backbone.onnx', 'ONNX', 'onnxruntime'),
        ('backbone.torchscript', 'TorchScript', 'torch.jit.load'),
    ],
)
def test_programs_are_no_weights(
    task: CMID, tmp_path: Path, name: str, kind: str, reader: str
) -> None:
    path = export_backbone(task, tmp_path / name)
    message = f'is a program of {kind}, read by {reader}: .*cmid-geo export CKPT'
    with warnings.catch_warnings():
        # Nor does torch remark on it before
        warnings.simplefilter('error')
        with pytest.raises(ValueError, match=message):
            load_backbone(timm.create_model('resnet_test'), path)
    with pytest.raises(SystemExit, match=f'cmid-geo map: .*{message}'):
        main(['map', str(path), 'x.tif', '--out', str(tmp_path / 'maps')])
    # Files are renamed
    with pytest.raises(ValueError, match=message):
        CMID(weights=str(path.rename(tmp_path / 'b.ckpt')))


def test_a_program_that_differs_is_not_kept(
    task: CMID, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, 'TOLERANCE', 0.0)
    with pytest.raises(
        RuntimeError,
        match='translated resnet_test differs from PyTorch by .*nothing was written',
    ):
        export_backbone(task, tmp_path / 'a.onnx')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('side', ['teacher', 'student'])
def test_either_side_from_a_checkpoint_by_the_command(
    side: str, task: CMID, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    checkpoint = tmp_path / 'run.ckpt'
    hparams = {k: v for k, v in task.hparams.items() if k != '_class_path'}
    torch.save(
        {
            'state_dict': task.state_dict(),
            'hyper_parameters': hparams,
            'global_step': 70,
            'epoch': 3,
        },
        checkpoint,
    )
    out = tmp_path / 'new' / 'backbone.safetensors'
    main(['export', str(checkpoint), str(out), '--source', side])
    assert f'wrote {out} (1.' in capsys.readouterr().out
    with safe_open(out, 'pt') as file:
        about = json.loads(file.metadata()['cmid_geo'])
    check_about(about, side)
    assert about['provenance'] == {
        'from': 'run.ckpt',
        'cmid_geo': cmid_geo.__version__,
        'steps': 70,
    }
    plain = timm.create_model('resnet_test', in_chans=4, num_classes=0).eval()
    assert load_backbone(plain, out).about['high'] == [1000, 2000, 3000, 4000]
    image = raw(1, 64, 64)
    low, high, mean, std = (
        getattr(task, n)[:, None, None] for n in ('low', 'high', 'mean', 'std')
    )
    with torch.no_grad():
        found = plain.forward_features(((image - low) / (high - low) - mean) / std)
    assert torch.allclose(found, expected(task, image, side), atol=1e-5)
    # An exported file can be translated further; where it came from stays
    again = export_backbone(out, tmp_path / 'again.ckpt')
    content = torch.load(again, weights_only=True)
    assert content['hyper_parameters'] == about


def test_released_weights_can_be_translated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    cache = tmp_path / 'hub' / 'checkpoints'
    cache.mkdir(parents=True)
    state = timm.create_model('resnet50', num_classes=0).state_dict()
    torch.save(state, cache / 'cmidresnet50_potsdam_rgb_backbone.pth')
    out = export_backbone('CMIDResNet50_Weights.POTSDAM_RGB', tmp_path / 'a.ckpt')
    about = torch.load(out, weights_only=True)['hyper_parameters']
    assert about['high'] == [255] * 3 and about['mean'] == [0.485, 0.456, 0.406]
    assert (
        about['provenance']['dataset'] == 'Potsdam'
        and 'not for commercial use' in about['provenance']['license']
    )


def test_what_cannot_be_exported(task: CMID, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match='format=None of a.bin: end the name in one of .ckpt, .*.onnx'
    ):
        export_backbone(task, tmp_path / 'a.bin')
    plain = tmp_path / 'plain.pth'
    torch.save(timm.create_model('resnet_test').state_dict(), plain)
    with pytest.raises(
        ValueError, match='plain.pth does not say which network it holds'
    ):
        export_backbone(plain, tmp_path / 'a.ckpt')
    exported = export_backbone(task, tmp_path / 'student.ckpt')
    with pytest.raises(
        ValueError, match='holds no backbone of the teacher, leave out source'
    ):
        export_backbone(exported, tmp_path / 'b.ckpt', 'teacher')
    with pytest.raises(SystemExit, match='cmid-geo export: .*nowhere.ckpt is no file'):
        main(['export', str(tmp_path / 'nowhere.ckpt'), str(tmp_path / 'b.ckpt')])
    with pytest.raises(FileNotFoundError, match='nowhere.ckpt is no file'):
        export_backbone(tmp_path / 'nowhere.ckpt', tmp_path / 'b.ckpt')


def test_a_card_of_bands_without_names(
    tmp_path: Path, make_task: Callable[..., Any]
) -> None:
    task = make_task(in_channels=2)
    task.hparams['bands'] = [3, 1]
    file = export_backbone(task, tmp_path / 'b.ckpt')
    (tmp_path / 'metrics.csv').write_text('train_loss\n')
    card = model_card(file, task, 'chips', tmp_path / 'metrics.csv', 4)
    assert 'pretrained by CMID on band 3, band 1' in card and '| band 3 | 0 |' in card
