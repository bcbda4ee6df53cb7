# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Weights of one size in a network of another, and weights of another network."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from cmid_geo.models import create_backbone, load_backbone
from cmid_geo.models.weights.adapt import copy_bands, repeat_bands
from cmid_geo.ops.bands import common_names, find_bands, names_of, plain_band


def resnet(**options: Any) -> Any:
    return timm.create_model('resnet18', num_classes=0, **options)


def saved(folder: Path, content: Any, name: str = 'weights.pth') -> Path:
    torch.save(content, folder / name)
    return folder / name


@pytest.mark.parametrize('bands', [1, 2, 4, 7, 12])
def test_bands_are_repeated_as_timm_does(bands: int) -> None:
    weight = torch.randn(5, 3, 7, 7)
    assert torch.allclose(repeat_bands(weight, bands), adapt_input_conv(bands, weight))
    network = resnet(in_chans=bands)
    report = load_backbone(
        network, resnet().state_dict() | {'conv1.weight': torch.randn(64, 3, 7, 7)}
    )
    how = f'3 bands repeated and scaled to {bands}'
    if bands == 2:
        how = 'the first 2 of 3 bands kept and scaled; bands=... chooses by name'
    assert report.adapted == {'conv1.weight': how}
    assert len(report.loaded) == report.total == 120


def test_from_any_number_of_bands_a_grey_image_gives_the_same() -> None:
    weight = torch.randn(5, 4, 7, 7, dtype=torch.float64)
    grey = torch.randn(1, 1, 32, 32, dtype=torch.float64)
    expected = torch.conv2d(grey.expand(1, 4, 32, 32), weight)
    for bands in (1, 2, 8, 12):
        found = torch.conv2d(grey.expand(1, bands, 32, 32), repeat_bands(weight, bands))
        # Whole repeats; part of one weighs its filters otherwise
        assert torch.allclose(found, expected) or bands == 2


@torch.no_grad()
def test_bands_are_copied_by_name(tmp_path: Path) -> None:
    old = resnet().eval()
    about = {'model': 'resnet18', 'bands': ['red', 'green', 'blue']}
    path = saved(tmp_path, {'hyper_parameters': about, 'state_dict': old.state_dict()})
    new = resnet(in_chans=4).eval()
    report = load_backbone(new, path, bands=['NIR', 'B', 'G', 'R'])
    assert 'bands NIR, B, G, R from red, green, blue' in str(report)
    image = torch.randn(1, 4, 64, 64)
    assert torch.allclose(new(image), old(image[:, [3, 2, 1]]), atol=1e-5)
    assert not new.conv1.weight[:, 0].any(), 'a band that was not there starts at 0'


def test_bands_that_cannot_be_copied(tmp_path: Path) -> None:
    state = resnet().state_dict()
    path = saved(
        tmp_path,
        {'hyper_parameters': {'bands': ['red', 'green', 'blue']}, 'state_dict': state},
    )
    with pytest.raises(
        ValueError, match=r"bands=\['VV', 'VH'\]: none of them.*\(red, green, blue\)"
    ):
        load_backbone(resnet(in_chans=2), path, bands=['VV', 'VH'])
    with pytest.raises(ValueError, match='are 2 but resnet18 takes 4'):
        load_backbone(resnet(in_chans=4), path, bands=['red', 'nir'])
    with pytest.raises(
        ValueError, match=r'name 0 bands \(none\) but have filters for 3'
    ):
        load_backbone(resnet(), state, bands=['red', 'green', 'blue'])


def test_names_of_bands() -> None:
    assert plain_band('B04') == plain_band('b4') != plain_band('B40')
    assert plain_band('R') == plain_band('Red') == 'red'
    assert plain_band('B8A') != plain_band('B8') and plain_band('B10') == 'b10'
    assert copy_bands(
        torch.ones(1, 1, 1, 1), ['B02'], ['B2', 'B3']
    ).flatten().tolist() == [1, 0]


@pytest.mark.parametrize(
    ('wanted', 'given', 'places'),
    [
        (['R', 'G', 'B', 'NIR'], ['B02', 'B03', 'B04', 'B08'], [2, 1, 0, 3]),
        (['B8', 'B2', 'B3', 'B4'], ['red', 'green', 'blue', 'nir'], [3, 2, 1, 0]),
        (['B02', 'B08'], ['B2', 'B3', 'B4', 'B8'], [0, 3]),
        (['B8A', 'B12'], ['nir', 'nir08', 'swir22'], [1, 2]),
        (['Near-Infrared', 'SWIR1'], ['swir16', 'nir'], [1, 0]),
        (['VV', 'red'], ['vh', 'vv'], [1, None]),
        # Of Landsat 7 these are green, red and infrared, of Landsat 8 blue, green and red
        (['B2', 'B3', 'B4'], ['blue', 'green', 'red'], [None, None, None]),
        # Landsat 8's panchromatic band
        (['B2', 'B5', 'B8'], ['blue', 'nir'], [None, None, None]),
        # As it is written first
        (['red'], ['R', 'red'], [1]),
    ],
)
def test_bands_are_found_by_the_names_of_sensors(
    wanted: list[str], given: list[str], places: list[int | None]
) -> None:
    assert find_bands(wanted, given) == places


def test_what_is_a_name() -> None:
    assert common_names(['B02', 'B05', 'VV']) == ['blue', 'b5', 'vv']
    assert names_of(('R', 'G')) == ['R', 'G']
    assert names_of([4, 3]) == names_of(None) == names_of('all') == []


def test_positions_of_bands_are_no_names(tmp_path: Path) -> None:
    about = {'model': 'resnet18', 'bands': [3, 2, 1]}
    path = saved(
        tmp_path, {'hyper_parameters': about, 'state_dict': resnet().state_dict()}
    )
    with pytest.raises(ValueError, match=r'name 0 bands \(none\)'):
        load_backbone(resnet(), path, bands=['red', 'green', 'blue'])


def test_first_convolution_is_replaced_on_request() -> None:
    for network in (resnet(), create_backbone('resnet18')):
        load_backbone(network, resnet().state_dict(), in_channels=5)
        assert network(torch.randn(1, 5, 64, 64)).isfinite().all()
        inner = getattr(network, 'network', network)
        assert inner.conv1.in_channels == 5 and inner.conv1.bias is None
    swin = timm.create_model('swin_tiny_patch4_window7_224', features_only=True)
    source = timm.create_model('swin_tiny_patch4_window7_224').state_dict()
    load_backbone(swin, source, in_channels=2)
    assert swin(torch.randn(1, 2, 224, 224))[0].isfinite().all()


@pytest.mark.parametrize(
    ('name', 'other', 'tensor'),
    [
        ('swin_tiny_patch4_window7_224', {'window_size': 8, 'img_size': 256}, 'layers.0.blocks.0.attn.relative_position_bias_table'),
        ('vit_tiny_patch16_224', {'img_size': 320}, 'pos_embed'),
        ('vit_tiny_patch16_224', {'img_size': (224, 448)}, 'pos_embed'),
    ],
)  # fmt: skip
@torch.no_grad()
def test_positions_are_resized(name: str, other: dict, tensor: str) -> None:
    old = timm.create_model(name, num_classes=0).state_dict()
    # A slope over the rows stays a slope
    if tensor == 'pos_embed':
        slope = torch.linspace(-1, 1, 14)[:, None].expand(14, 14).flatten()
        old[tensor] = (
            torch.cat([torch.full((1,), 5.0), slope])[None, :, None]
            .expand(1, -1, 192)
            .clone()
        )
    else:
        slope = torch.linspace(-1, 1, 13)[:, None].expand(13, 13).flatten()
        old[tensor] = slope[:, None].expand(-1, 3).clone()
    new = timm.create_model(name, num_classes=0, **other)
    report = load_backbone(new, old)
    assert (
        'resized from' in report.adapted[tensor] and len(report.loaded) == report.total
    )
    made = new.state_dict()[tensor]
    if tensor == 'pos_embed':
        assert torch.allclose(made[:, 0], torch.full((), 5.0)), (
            'the class token has no place'
        )
        rows = new.patch_embed.grid_size[0]
        made = made[0, 1:, 0].unflatten(0, (rows, -1))
    else:
        made = made[:, 0].unflatten(0, (15, 15))
    assert (made.diff(dim=0) > 0).all() and torch.allclose(
        made.std(dim=1), torch.zeros(()), atol=2e-3
    )
    assert abs(made.max() - 1) < 0.1 and abs(made.min() + 1) < 0.1


def state_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


REFUSED = [
    ('resnet50', 'swin_tiny_patch4_window7_224', '0 of 318 tensors match between swin.pth and resnet50'),
    ('swin_tiny_patch4_window7_224', 'resnet18', '0 of 171 tensors match between .*swin_tiny'),
    ('resnet50', 'resnet18', r'\d+ of 318 tensors match.*strict=False'),
    # More of the same: every tensor matches, and none would do what it did
    ('resnet18', 'resnet34', '120 of 120 tensors match.*80 tensors are left over, layer1.2'),
    ('resnet50', 'resnet101', r'318 of 318 tensors match.*255 tensors are left over'),
    ('swin_tiny_patch4_window7_224', 'swin_small_patch4_window7_224', 'tensors are left over, layers.2.blocks.6'),
    ('vit_medium_patch16_gap_256', 'vit_mediumd_patch16_reg4_gap_256', 'match between .*norm.weight'),
    ('vit_tiny_patch16_224', 'vit_small_patch16_224', r'\d of 150 tensors match'),
]  # fmt: skip


@pytest.mark.parametrize(('name', 'other', 'message'), REFUSED)
def test_another_architecture_is_refused_and_nothing_changed(
    name: str, other: str, message: str, tmp_path: Path
) -> None:
    with torch.device('meta'):
        network = timm.create_model(name)
        given = timm.create_model(other).state_dict()
    network = network.to_empty(device='cpu')
    given = {k: torch.zeros(v.shape, dtype=v.dtype) for k, v in given.items()}
    before = state_of(network)
    file = saved(tmp_path, given, 'swin.pth' if 'swin' in other else 'other.pth')
    with pytest.raises(ValueError, match=message):
        load_backbone(network, file)
    after = network.state_dict()
    assert all(
        torch.equal(before[k].view(torch.uint8), after[k].view(torch.uint8))
        for k in before
        if before[k].ndim
    )


def test_part_of_the_weights_on_request_only() -> None:
    state = resnet().state_dict()
    for name in [n for n in state if n.startswith('layer4')]:
        del state[name]
    network = resnet()
    kept = network.layer4[0].conv1.weight.clone()
    with pytest.raises(
        ValueError, match=r'90 of 120 .*layer4.0.conv1.weight: the weights have none'
    ):
        load_backbone(network, state)
    report = load_backbone(network, state, strict=False)
    assert len(report.loaded) == 90 and report.total == 120
    assert report.skipped['layer4.0.conv1.weight'] == 'the weights have none'
    assert torch.equal(network.layer4[0].conv1.weight, kept)
    assert torch.equal(network.conv1.weight, state['conv1.weight'])
    with pytest.raises(ValueError, match='0 of 120 tensors match'):
        load_backbone(network, {'a': torch.zeros(2)}, strict=False)


def test_an_extractor_of_fewer_stages_says_what_it_left() -> None:
    network = timm.create_model('resnet18', features_only=True, out_indices=(0, 1, 2))
    report = load_backbone(network, timm.create_model('resnet18').state_dict())
    assert len(report.loaded) == report.total == 60
    assert report.skipped['layer4.0.conv1.weight'] == 'the network ends before it'
    assert report.skipped['fc.weight'] == 'a head, not part of the backbone'
    assert '60 of 60 tensors' in str(report) and 'layer3.0.conv1.weight' in str(report)


def test_a_classifier_is_loaded_where_it_fits() -> None:
    old, new = (timm.create_model('resnet18', num_classes=5) for _ in range(2))
    load_backbone(new, old.state_dict())
    assert torch.equal(new.fc.weight, old.fc.weight)
    other = timm.create_model('resnet18', num_classes=6)
    assert 'not (6, 512)' in load_backbone(other, old.state_dict()).skipped['fc.weight']


@pytest.mark.parametrize('name', ['swinv2_tiny_window8_256', 'convnext_atto'])
def test_other_families(name: str) -> None:
    old = timm.create_model(name).eval()
    backbone = create_backbone(name)
    report = load_backbone(backbone, old.state_dict())
    assert len(report.loaded) == report.total
    image = torch.randn(1, 3, 256, 256)
    with torch.no_grad():
        features = old.forward_features(image)
        features = features.permute(0, 3, 1, 2) if 'swin' in name else features
        assert torch.allclose(backbone.eval()(image), features, atol=1e-5)


@pytest.mark.parametrize(
    ('theirs', 'timms'),
    [('swin_v2_t', 'swinv2_tiny_window8_256'), ('convnext_tiny', 'convnext_tiny')],
)
@torch.no_grad()
def test_torchvisions_other_families(theirs: str, timms: str) -> None:
    import torchvision

    old = getattr(torchvision.models, theirs)().eval()
    for name, tensor in old.state_dict().items():
        if tensor.is_floating_point() and 'coords' not in name:
            tensor.add_(0.02 * torch.randn_like(tensor))
    new = timm.create_model(timms).eval()
    report = load_backbone(new, old.state_dict())
    assert len(report.loaded) == report.total
    image = torch.randn(1, 3, 256, 256)
    expected = old.features(image)
    if 'swin' in theirs:
        expected = old.norm(expected)
    found = new.forward_features(image)
    assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))


def test_a_shorter_transformer_is_another_one() -> None:
    whole = timm.create_model('vit_tiny_patch16_224')
    short = timm.create_model('vit_tiny_patch16_224', depth=6)
    with pytest.raises(
        ValueError, match='78 of 78 tensors match .*72 tensors are left over, blocks.6'
    ):
        load_backbone(short, whole.state_dict())
    averaged = timm.create_model('vit_tiny_patch16_224', global_pool='avg')
    with pytest.raises(ValueError, match='left over, norm.weight'):
        load_backbone(averaged, whole.state_dict())
    # An extractor of the first features only is the same network
    first = timm.create_model(
        'vit_tiny_patch16_224', features_only=True, out_indices=(2,)
    )
    report = load_backbone(first, whole.state_dict())
    assert report.skipped['blocks.3.norm1.weight'] == 'the network ends before it'


@pytest.mark.parametrize('name', ['resnetv2_50x1_bit', 'tf_efficientnet_b0'])
def test_a_first_convolution_of_its_own_kind_stays_so(name: str) -> None:
    old = timm.create_model(name, num_classes=0).eval()
    built = timm.create_model(name, num_classes=0, in_chans=4).eval()
    changed = timm.create_model(name, num_classes=0).eval()
    load_backbone(built, old.state_dict())
    load_backbone(
        changed, {f'module.{k}': v for k, v in old.state_dict().items()}, in_channels=4
    )
    image = torch.randn(1, 4, 64, 64)
    with torch.no_grad():
        assert torch.equal(changed(image), built(image))


@pytest.mark.parametrize('fault', ['meta', 'sparse', 'nan', 'int8', 'overflow'])
def test_all_or_nothing(fault: str) -> None:
    state, network = resnet().state_dict(), resnet()
    name = 'layer4.1.bn2.bias'
    bad = {
        'meta': lambda t: t.to('meta'),
        'sparse': lambda t: t.to_sparse(),
        'nan': lambda t: t + torch.nan,
        'int8': lambda t: t.to(torch.int8),
        'overflow': lambda t: t + 1e6,
    }[fault]
    state[name] = bad(state[name])
    if fault == 'overflow':
        network = network.half()
    before = state_of(network)
    with pytest.raises(
        ValueError, match=f'{name} of a state dict is .*nothing was loaded'
    ):
        load_backbone(network, state, in_channels=4)
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())


def test_what_holds_nothing_is_refused() -> None:
    with torch.device('meta'):
        network = resnet()
    with pytest.raises(ValueError, match='resnet18 is on the meta device.*to_empty'):
        load_backbone(network, resnet().state_dict())
    with pytest.raises(
        ValueError, match='in_channels=0: a network takes at least one band'
    ):
        load_backbone(resnet(), resnet().state_dict(), in_channels=0)
    with pytest.raises(ValueError, match='is a convolution of 2 groups'):
        grouped = nn.Sequential(nn.Conv2d(2, 4, 3, groups=2, bias=False))
        load_backbone(grouped, {'0.weight': torch.zeros(4, 1, 3, 3)}, in_channels=4)


def test_wrapped_networks_are_unwrapped() -> None:
    import segmentation_models_pytorch as smp
    from torchgeo.tasks import SemanticSegmentation

    state = resnet().state_dict()
    unet = smp.Unet('resnet18', encoder_weights=None)
    task = SemanticSegmentation(model='unet', backbone='resnet18', num_classes=3)
    for model in (
        nn.DataParallel(unet),
        torch.compile(create_backbone('resnet18')),
        task,
    ):
        assert len(load_backbone(model, state).loaded) == 120


def test_networks_that_share_their_tensors_are_told_apart() -> None:
    source = {
        'hyper_parameters': {'model': 'resnet50'},
        'state_dict': timm.create_model('resnet50').state_dict(),
    }
    with pytest.warns(
        UserWarning, match='weights are of resnet50, the network is resnetblur50'
    ):
        load_backbone(timm.create_model('resnetblur50'), source)


def test_fewer_bands_keep_the_first_and_say_so() -> None:
    report = load_backbone(resnet(), resnet(in_chans=12).state_dict())
    assert (
        report.adapted['conv1.weight']
        == 'the first 3 of 12 bands kept and scaled; bands=... chooses by name'
    )


def test_a_state_in_parallel_or_averaged(tmp_path: Path) -> None:
    one, two = resnet(), resnet()
    path = saved(
        tmp_path, {'state_dict': one.state_dict(), 'state_dict_ema': two.state_dict()}
    )
    network = resnet()
    load_backbone(network, path)
    assert torch.equal(network.conv1.weight, two.conv1.weight), 'as timm, the average'
