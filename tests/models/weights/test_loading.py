# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Every kind of source into every kind of network, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from chips import SMALL
from placing import place
from released_swin import ReleasedSwin
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from cmid_geo.models import (
    CMIDResNet50_Weights,
    CMIDSwinB_Weights,
    convert_released_state_dict,
    create_backbone,
    export_backbone,
    load_backbone,
)
from cmid_geo.models.weights.convert import find_backbone
from cmid_geo.tasks import CMID

NAMES = {
    'resnet': 'resnet18',
    'swin': 'swin_tiny_patch4_window7_224',
    'vit': 'vit_tiny_patch16_224',
}
#: What lets timm's networks take any size.
ANY_SIZE: dict[str, dict[str, Any]] = {
    'resnet': {},
    'swin': {'strict_img_size': False},
    'vit': {'dynamic_img_size': True},
}
#: Tensors of the backbone; extractors of features leave out the last norm.
TOTAL = {'resnet': 120, 'swin': 171, 'vit': 150}

SOURCES = ['timm', 'timm in a task', 'torchvision', 'checkpoint', 'exported', 'safetensors', 'member',
           'string', 'released', 'released full', 'dictionary']  # fmt: skip

#: Once read these are what another one is.
READ_ALIKE = ('dictionary', 'safetensors', 'string', 'released full')


def torchvisions(family: str) -> nn.Module:
    if family == 'resnet':
        return torchvision.models.resnet18()
    if family == 'swin':
        return torchvision.models.swin_t()
    return torchvision.models.VisionTransformer(
        image_size=224,
        patch_size=16,
        num_layers=12,
        num_heads=3,
        hidden_dim=192,
        mlp_dim=768,
    )


def randomised(network: nn.Module) -> nn.Module:
    """Every tensor unlike a new network's, so that none can stay unloaded unnoticed."""
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith('running_var'):
                tensor.add_(torch.rand_like(tensor))
            elif tensor.is_floating_point():
                tensor.add_(0.02 * torch.randn_like(tensor))
    return network.eval()


@torch.no_grad()
def torchvision_features(family: str, network: Any, image: Tensor) -> Tensor:
    """What torchvision itself makes of an image, in its own order of things."""
    if family == 'resnet':
        return nn.Sequential(*list(network.children())[:-2])(image)
    if family == 'swin':
        return network.norm(network.features(image)).permute(0, 3, 1, 2)
    tokens = network._process_input(image)
    tokens = torch.cat([network.class_token.expand(len(image), -1, -1), tokens], 1)
    return grid(network.encoder(tokens)[:, 1:])


def grid(tokens: Tensor) -> Tensor:
    side = int(tokens.shape[1] ** 0.5)
    return tokens.mT.unflatten(2, (side, side))


class Bench:
    """Sources and networks of one family, made once."""

    def __init__(self, family: str, folder: Path) -> None:
        torch.manual_seed(1)
        self.family, self.folder, name = family, folder, NAMES[family]
        self.image = torch.randn(1, 3, 224, 224)
        self.targets = targets(family)
        self.known: dict[Any, Tensor] = {}
        self.loaded: dict[Any, dict[str, Tensor]] = {}
        reference = randomised(timm.create_model(name))
        state = reference.state_dict()
        self.sources: dict[str, Any] = {'dictionary': state}
        self.states = dict.fromkeys(SOURCES, state)
        save = lambda file, content: torch.save(content, folder / file)
        save('timm.pth', state)
        save(
            'task.ckpt', {'state_dict': {f'backbone.{k}': v for k, v in state.items()}}
        )
        other = randomised(torchvisions(family))
        save('torchvision.pth', other.state_dict())
        self.expected_torchvision = torchvision_features(family, other, self.image)

        task = CMID(**(SMALL | {'model': name, 'export_source': 'teacher'}))
        randomised(task.student.backbone), randomised(task.teacher.backbone)
        self.states['checkpoint'] = task.teacher.backbone.network.state_dict()
        self.states['exported'] = self.states['safetensors'] = self.states['checkpoint']
        save('run.ckpt', {'state_dict': task.state_dict(),
                          'hyper_parameters': {'model': name, 'export_source': 'teacher'}})  # fmt: skip
        export_backbone(task, folder / 'exported.ckpt')
        export_backbone(task, folder / 'exported.safetensors')

        if family == 'swin':
            swin = ReleasedSwin(96, (2, 2, 6, 2), (3, 6, 12, 24))
            released = swin.state_dict()
            with torch.no_grad():
                self.expected_released = swin.eval()(self.image)
        else:
            released = timm.create_model(name, num_classes=0).eval().state_dict()
        enum = CMIDSwinB_Weights if family == 'swin' else CMIDResNet50_Weights
        cache = folder / 'hub' / 'checkpoints'
        # Placed by hand, as on a machine without a network
        place(cache / enum.MILLIONAID_RGB.file_name(), released)
        save('released.pth', released)
        save(
            'full.pth',
            {'model': {f'online_encoder.model.{k}': v for k, v in released.items()}},
        )
        for kind in ('member', 'string', 'released', 'released full'):
            self.states[kind] = convert_released_state_dict(released)
        files = {
            'timm': 'timm.pth', 'timm in a task': 'task.ckpt', 'torchvision': 'torchvision.pth',
            'checkpoint': 'run.ckpt', 'exported': 'exported.ckpt', 'safetensors': 'exported.safetensors',
            'released': 'released.pth', 'released full': 'full.pth',
        }  # fmt: skip
        self.sources |= {kind: folder / file for kind, file in files.items()}
        self.sources |= {
            'member': enum.MILLIONAID_RGB,
            'string': str(enum.MILLIONAID_RGB),
        }

    @torch.no_grad()
    def expected(self, source: str, normed: bool) -> Tensor:
        """Features that the source's own network gives."""
        if source == 'torchvision' and (normed or self.family == 'resnet'):
            return self.expected_torchvision
        if self.family == 'swin' and source.startswith('released') and normed:
            return self.expected_released
        state = self.states[source]
        if (key := (id(state), source == 'torchvision', normed)) in self.known:
            return self.known[key]
        network: Any = timm.create_model(NAMES[self.family], num_classes=0)
        if source == 'torchvision':
            # Its norm cannot be left out; the normed features above vouch for the names
            load_backbone(network, self.sources[source])
        else:
            network.load_state_dict(
                {k: v for k, v in state.items() if k in network.state_dict()}
            )
        self.known[key] = network.eval().forward_intermediates(
            self.image, indices=1, norm=normed, intermediates_only=True
        )[-1]
        return self.known[key]


@pytest.fixture(scope='module', params=list(NAMES))
def bench(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Bench:
    return Bench(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture
def cache(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('TORCH_HOME', str(bench.folder))


def targets(
    family: str,
) -> dict[str, tuple[nn.Module, Callable[[Any, Tensor], Tensor], bool]]:
    """Networks, how to get their last features, and whether those are normed."""
    name, options = NAMES[family], ANY_SIZE[family]
    made: dict[str, Any] = {
        'masked': (create_backbone(name), lambda m, x: m(x), True),
        'extractor': (
            timm.create_model(name, features_only=True, **options),
            lambda m, x: m(x)[-1].movedim(-1, 1) if family == 'swin' else m(x)[-1],
            False,
        ),
    }
    whole = timm.create_model(name, num_classes=9, **options)
    if family == 'resnet':
        made['timm'] = whole, lambda m, x: m.forward_features(x), True
        made['encoder'] = (
            smp.encoders.get_encoder(name, weights=None),
            lambda m, x: m(x)[-1],
            True,
        )
        made['unet'] = (
            smp.Unet(name, encoder_weights=None),
            lambda m, x: m.encoder(x)[-1],
            True,
        )
        made['tu encoder'] = (
            smp.encoders.get_encoder(f'tu-{name}', weights=None),
            lambda m, x: m(x)[-1],
            True,
        )
        # Built with weights its batch norms are frozen; torchvision wants none downloaded here
        body = resnet_fpn_backbone(
            backbone_name=name,
            weights=None,
            norm_layer=torchvision.ops.FrozenBatchNorm2d,
        )
        made['detector'] = body, lambda m, x: list(m.body(x).values())[-1], True
    elif family == 'swin':
        made['timm'] = (
            whole,
            lambda m, x: m.forward_features(x).permute(0, 3, 1, 2),
            True,
        )
        made['upernet'] = (
            smp.UPerNet(f'tu-{name}', encoder_weights=None, **options),
            lambda m, x: m.encoder(x)[-1], False,
        )  # fmt: skip
    else:
        made['timm'] = whole, lambda m, x: grid(m.forward_features(x)[:, 1:]), True
        made['dpt'] = (
            smp.DPT(f'tu-{name}', encoder_weights=None, **options),
            lambda m, x: m.encoder(x)[0][-1], False,
        )  # fmt: skip
    return made


@pytest.mark.usefixtures('cache')
@pytest.mark.parametrize('source', SOURCES)
@torch.no_grad()
def test_every_source_fills_every_network(source: str, bench: Bench) -> None:
    for kind, (network, features, normed) in bench.targets.items():
        if source in READ_ALIKE and kind not in ('masked', 'timm'):
            continue
        for tensor in network.state_dict().values():
            # What stays unloaded shows in all features
            if tensor.is_floating_point():
                tensor.fill_(torch.nan)
        report = load_backbone(network, bench.sources[source])
        assert len(report.loaded) == report.total, report
        assert report.total >= TOTAL[bench.family] - (0 if normed else 2) - 20 * (
            kind == 'detector'
        ), kind
        key, state = (
            (id(bench.states[source]), source == 'torchvision', kind),
            network.state_dict(),
        )
        if key in bench.loaded:
            # The same tensors, of which the features were compared before
            same = bench.loaded[key].items()
            assert all(
                torch.equal(state[n], t) for n, t in same if t.isfinite().all()
            ), kind
            continue
        bench.loaded[key] = {n: t.clone() for n, t in state.items()}
        found = features(network.eval(), bench.image)
        expected = bench.expected(source, normed)
        if kind == 'masked' and bench.family == 'vit':
            expected = torch.nn.functional.avg_pool2d(expected, 2)
        close = torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))
        assert close, (kind, source, (found - expected).abs().max())


@pytest.mark.usefixtures('cache')
@torch.no_grad()
def test_networks_run_at_other_sizes(bench: Bench) -> None:
    for kind, (network, features, _) in bench.targets.items():
        load_backbone(network, bench.sources['member'])
        for size in (256, 320):
            made = features(network.eval(), torch.randn(1, 3, size, size))
            assert made.isfinite().all(), kind
            cell = 16 if bench.family == 'vit' and kind != 'masked' else 32
            assert made.shape[2:] == (size // cell, size // cell), kind


def test_of_two_that_fit_alike_the_first_is_taken() -> None:
    own = timm.create_model('resnet_test', num_classes=0).state_dict()
    state = {'one.bn1.running_mean': own['bn1.running_mean']}
    for side in ('two', 'one'):
        state |= {f'{side}.{name}': tensor for name, tensor in own.items()}
    assert find_backbone(state, own)[0] == 'one.'
