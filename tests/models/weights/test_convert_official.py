# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from chips import SMALL
from placing import place
from released_swin import ReleasedSwin
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor

from cmid_geo.models import CMIDResNet50_Weights, convert_released_state_dict
from cmid_geo.tasks import CMID


@torch.no_grad()
def test_released_swin_and_timm_agree() -> None:
    depths, heads = (2, 2, 3, 2), (1, 2, 4, 8)
    released = ReleasedSwin(16, depths, heads).eval()
    ours = SwinTransformer(
        embed_dim=16, depths=depths, num_heads=heads, num_classes=0
    ).eval()
    converted = convert_released_state_dict(released.state_dict())
    assert set(converted) == set(ours.state_dict())
    ours.load_state_dict(converted)
    image = torch.randn(2, 3, 224, 224)
    expected = released(image)
    assert torch.allclose(
        ours.forward_features(image).permute(0, 3, 1, 2), expected, atol=1e-5
    )
    # The order of the merging's inputs matters: with the released one they differ
    for name in ('norm.weight', 'norm.bias', 'reduction.weight'):
        converted[f'layers.1.downsample.{name}'] = released.state_dict()[
            f'stages.0.downsample.{name}'
        ]
    ours.load_state_dict(converted)
    assert not torch.allclose(
        ours.forward_features(image).permute(0, 3, 1, 2), expected, atol=1e-2
    )


def test_swin_b_has_all_of_timms_names() -> None:
    with torch.device('meta'):
        released = ReleasedSwin(128, (2, 2, 18, 2), (4, 8, 16, 32)).state_dict()
        ours = timm.create_model(
            'swin_base_patch4_window7_224', num_classes=0
        ).state_dict()
    converted = convert_released_state_dict(released)
    assert {k: v.shape for k, v in converted.items()} == {
        k: v.shape for k, v in ours.items()
    }


def test_resnet_keeps_its_names_with_and_without_the_rest() -> None:
    state = timm.create_model('resnet18', num_classes=0).state_dict()
    assert convert_released_state_dict(state) == state
    full = {f'online_encoder.model.{k}': v for k, v in state.items()} | {
        'queue': torch.zeros(2, 2),
        'branch_encoder.model.conv1.weight': torch.zeros(1),
    }
    assert convert_released_state_dict(full).keys() == state.keys()


def saved(folder: Path, content: dict) -> str:
    torch.save(content, folder / 'weights.pth')
    return str(folder / 'weights.pth')


def as_released(task: CMID, convolutions: bool = True) -> dict[str, Tensor]:
    """A task's tensors as the authors' full file has them, by hand."""
    state, full = task.state_dict(), {}
    for ours, theirs in (('student', 'online'), ('teacher', 'branch')):
        head = 'class_projector' if ours == 'student' else 'branch_class_projector'
        for name, tensor in state.items():
            part = name.removeprefix(f'{ours}.')
            if part == name:
                continue
            if part.startswith('backbone.network.'):
                full[
                    f'{theirs}_encoder.model.{part.removeprefix("backbone.network.")}'
                ] = tensor
            elif part == 'backbone.mask_token':
                full[f'{theirs}_encoder.mask_token'] = tensor[None, :, None, None]
            elif part.startswith('projector.layers.0.'):
                full[f'{theirs}_projector.layer.0.0.{part[19:]}'] = tensor
            elif part.startswith('projector.layers.2.'):
                full[f'{theirs}_projector.layer.0.3.{part[19:]}'] = tensor
            elif part == 'prototypes.directions':
                full[f'{head}.last_layer.weight_v'] = (
                    tensor[..., None] if convolutions else tensor
                )
                full[f'{head}.last_layer.weight_g'] = torch.ones(len(tensor), 1)
            else:
                wide = convolutions and tensor.ndim == 2
                full[f'{head}.mlp.{part.removeprefix("prototypes.layers.")}'] = (
                    tensor[..., None] if wide else tensor
                )
    full['mim2org.decoder_pred.0.weight'] = state['decoder.layers.0.weight']
    full['mim2org.decoder_pred.0.bias'] = state['decoder.layers.0.bias']
    full['queue'] = state['queue.keys'].T
    full['queue_ptr'] = (state['queue.seen'] % len(state['queue.keys']))[None]
    full['class_loss.center'] = state['assign.center'][None, :, None]
    return {name: tensor.clone() for name, tensor in full.items()}


#: What a run learns, by the beginnings of its names.
LEARNED = ('student.', 'teacher.', 'decoder.', 'assign.', 'queue.')


@torch.no_grad()
def disturbed(task: CMID) -> CMID:
    """A task whose every tensor is unlike a new one's, and whose queue has wrapped."""
    for name, tensor in task.state_dict().items():
        if tensor.is_floating_point() and name.startswith(LEARNED):
            tensor.add_(torch.rand_like(tensor))
    task.queue.seen.fill_(2 * len(task.queue.keys) + 5)
    return task


@pytest.mark.parametrize('convolutions', [True, False])
@pytest.mark.parametrize('model', ['resnet18', 'vit_tiny_patch16_224'])
def test_full_file_restores_pretraining(
    model: str, convolutions: bool, make_task: Callable[..., CMID], tmp_path: Path
) -> None:
    old = disturbed(make_task(model=model))
    path = tmp_path / 'full.pth'
    torch.save({'model': as_released(old, convolutions), 'epoch': 199}, path)
    new = make_task(model=model, weights=str(path))
    expected, found = old.state_dict(), new.state_dict()
    for name in expected:
        if not name.startswith(LEARNED) or name.startswith('queue.'):
            continue
        assert torch.equal(found[name], expected[name]), name
    # The next key replaces the oldest, wherever in the ring it lies
    size = SMALL['queue_size']
    newest = expected['queue.keys'].roll(-5, 0)
    assert torch.equal(found['queue.keys'].roll(-int(new.queue.cursor), 0), newest)
    assert int(new.queue.filled) == size


def test_released_weights_by_name_restore_pretraining(
    make_task: Callable[..., CMID], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    cache = tmp_path / 'hub' / 'checkpoints'
    old = disturbed(make_task())
    place(
        cache / CMIDResNet50_Weights.MILLIONAID_RGB.file_name('full'),
        {'model': as_released(old)},
    )
    for weights in (
        CMIDResNet50_Weights.MILLIONAID_RGB,
        'CMIDResNet50_Weights.MILLIONAID_RGB',
    ):
        new = make_task(weights=weights)
        assert torch.equal(
            new.teacher.prototypes.directions, old.teacher.prototypes.directions
        )
        assert torch.equal(
            new.student.backbone.network.conv1.weight,
            old.student.backbone.network.conv1.weight,
        )


def test_full_swin_file_restores_pretraining(
    make_task: Callable[..., CMID], tmp_path: Path
) -> None:
    old = make_task(model='swin_tiny_patch4_window7_224')
    student = ReleasedSwin(96, (2, 2, 6, 2), (3, 6, 12, 24))
    full = {k: v for k, v in as_released(old).items() if '_encoder.model.' not in k}
    full['online_encoder.mask_token'] = torch.rand(1, 1, 96)
    for side in ('online', 'branch'):
        full |= {
            f'{side}_encoder.model.{k}': v for k, v in student.state_dict().items()
        }
    new = make_task(
        model='swin_tiny_patch4_window7_224', weights=saved(tmp_path, {'model': full})
    )
    assert torch.equal(
        new.student.backbone.mask_token, full['online_encoder.mask_token'].flatten()
    )
    with torch.no_grad():
        image = torch.randn(1, 3, 224, 224)
        expected = student.eval()(image)
        assert torch.allclose(new.student.backbone.eval()(image), expected, atol=1e-4)
        assert torch.allclose(new.teacher.backbone.eval()(image), expected, atol=1e-4)


def test_parts_of_another_size_start_anew_and_say_so(
    make_task: Callable[..., CMID], tmp_path: Path
) -> None:
    full = {'model': as_released(disturbed(make_task()))}
    with pytest.warns(UserWarning, match='start anew: decoder .*of .*there.* here'):
        new = make_task(in_channels=4, weights=saved(tmp_path, full))
    fresh = make_task(in_channels=4)
    assert torch.equal(new.decoder.layers[0].weight, fresh.decoder.layers[0].weight)
    assert torch.equal(
        new.student.projector.layers[0].weight,
        full['model']['online_projector.layer.0.0.weight'],
    )
    first = full['model']['branch_encoder.model.conv1.weight']
    assert torch.allclose(
        new.teacher.backbone.network.conv1.weight, first[:, [0, 1, 2, 0]] * 3 / 4
    )


def test_own_checkpoint_restores_and_a_longer_queue_holds_the_same_keys(
    make_task: Callable[..., CMID], tmp_path: Path
) -> None:
    old = disturbed(make_task())
    checkpoint = {'state_dict': old.state_dict(), 'hyper_parameters': dict(old.hparams)}
    path = saved(tmp_path, checkpoint)
    new = make_task(weights=path, queue_size=100)
    assert torch.equal(
        new.teacher.prototypes.directions, old.teacher.prototypes.directions
    )
    assert int(new.queue.filled) == 24
    assert torch.equal(new.queue.keys[:24], old.queue.keys.roll(-5, 0))
    short = make_task(weights=path, queue_size=10)
    assert torch.equal(
        short.queue.keys.roll(-int(short.queue.cursor), 0),
        old.queue.keys.roll(-5, 0)[-10:],
    )
    assert not any(
        a.data_ptr() == b.data_ptr()
        for a, b in zip(new.student.parameters(), new.teacher.parameters())
    )
