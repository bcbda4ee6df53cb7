# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F

from cmid_geo.models import create_backbone

NAMES = [
    'resnet18',
    'resnext50_32x4d',
    'convnext_atto',
    'vit_test',
    'vit_small_patch32_224',
]
SWINS = ['swin_test', 'swinv2_test']
#: With cells of 16 pixels.
FINE = ['resnet18', 'resnet50d', 'convnext_atto', *SWINS, 'vit_test']


def timms(name: str, bands: int, image: torch.Tensor, state: dict) -> torch.Tensor:
    """What timm itself makes of an image, on the grid of cells."""
    options = {'strict_img_size': False} if 'swin' in name else {}
    options |= {'dynamic_img_size': True} if name.startswith('vit') else {}
    network = timm.create_model(name, in_chans=bands, num_classes=0, **options).eval()
    network.load_state_dict(state)
    features = network.forward_features(image)
    if name.startswith('vit'):
        side = int((features.shape[1] - network.num_prefix_tokens) ** 0.5)
        grid = (
            features[:, network.num_prefix_tokens :]
            .unflatten(1, (side, side))
            .permute(0, 3, 1, 2)
        )
        return F.avg_pool2d(grid, side * 32 // image.shape[2])
    return features.permute(0, 3, 1, 2) if 'swin' in name else features


@pytest.mark.parametrize('name', NAMES + SWINS)
@torch.no_grad()
def test_unmasked_equals_timm_at_any_size(name: str) -> None:
    backbone = create_backbone(name, in_channels=5).eval()
    for size in (224, 96):
        image = torch.rand(1, 5, size, size)
        features = backbone(image)
        assert features.shape == (1, backbone.num_features, size // 32, size // 32)
        assert torch.equal(
            features, timms(name, 5, image, backbone.network.state_dict())
        )
    assert backbone(torch.rand(1, 5, 64, 128)).shape[2:] == (2, 4)


@pytest.mark.parametrize('name', ['resnet18', 'swin_test', 'vit_test'])
@torch.no_grad()
def test_plain_state_dict_loads_strictly(name: str) -> None:
    state = timm.create_model(name, num_classes=0).state_dict()
    for load in (
        lambda b: b.load_state_dict(state),
        lambda b: b.network.load_state_dict(state),
    ):
        backbone = create_backbone(name)
        load(backbone)
        assert all(
            torch.equal(state[k], v) for k, v in backbone.network.state_dict().items()
        )
    with pytest.raises(RuntimeError, match='Missing key'):
        create_backbone(name).load_state_dict(dict(list(state.items())[1:]))
    # Its own state dict still goes both ways
    create_backbone(name).load_state_dict(backbone.state_dict())


#: Timm's name, and how far a cell's field may lie from where it is said to, in pixels.
FIELDS = {name: 2 for name in NAMES + SWINS} | {
    'resnet50': 2,
    'resnet50d': 7,
    'ecaresnet26t': 7,
}


@pytest.mark.parametrize(
    ('name', 'size'), [*((name, 32) for name in FIELDS), *((name, 16) for name in FINE)]
)
def test_a_cell_sees_what_is_around_its_field_offset(name: str, size: int) -> None:
    """Squared gradients of a cell with respect to the image, drawn over networks and images."""
    # In the middle, or the image's edges would cut one side of the field
    side, cell = 288, 144 // size
    places, weight = torch.arange(side) + 0.0, torch.zeros(side, side)
    for seed in range(2):
        torch.manual_seed(seed)
        backbone = create_backbone(name, cell=size).eval()
        for module in backbone.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                # timm closes the residual branches at first
                torch.nn.init.ones_(module.weight)
        image = torch.randn(2, 3, side, side, requires_grad=True)
        features = backbone(image)[:, :, cell, cell]
        (features * torch.randn_like(features)).sum().backward()
        weight += image.grad.square().sum((0, 1))
    weight /= weight.sum()
    centre = torch.stack([weight.sum(1) @ places, weight.sum(0) @ places])
    expected = cell * size + (size - 1) / 2 + backbone.field_offset
    assert (centre - expected).abs().max() < FIELDS[name]


@pytest.mark.parametrize(
    ('name', 'sides'),
    # On odd sides timm's other networks round otherwise than ours
    [(name, (128, 192)) for name in ('resnet50', *FINE[:-1])]
    + [(name, (112, 80)) for name in ('resnet18', *SWINS)],
)
@torch.no_grad()
def test_every_other_fine_cell_is_a_cell_of_the_plain_network(
    name: str, sides: tuple[int, int]
) -> None:
    plain, fine = create_backbone(name).eval(), create_backbone(name, cell=16).eval()
    for module in plain.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            # timm closes the residual branches at first
            torch.nn.init.ones_(module.weight)
    fine.load_state_dict(plain.state_dict())
    image = torch.rand(2, 3, *sides)
    features = fine(image)
    assert features.shape[2:] == (sides[0] // 16, sides[1] // 16)
    expected = plain.encode(image, None)
    torch.testing.assert_close(fine.coarsen(features), expected, rtol=1e-4, atol=1e-3)
    assert fine.coarse_offset == plain.field_offset
    assert not torch.allclose(features[:, :, 0, 0], features[:, :, 0, 1], rtol=0.01)


@pytest.mark.parametrize('name', ['resnet18', 'resnext50_32x4d', 'convnext_atto'])
def test_small_maps_need_the_middle_weight_of_dilated_convolutions_alone(
    name: str,
) -> None:
    torch.manual_seed(0)
    backbone = create_backbone(name, cell=16)
    dilated: list[Any] = [
        module
        for module in backbone.modules()
        if isinstance(module, torch.nn.Conv2d) and max(module.dilation) > 1
    ]
    assert dilated
    conv = dilated[-1]
    for side in (1, 2, 3):
        found = []
        image = torch.rand(2, conv.in_channels, side, 2)
        for forward in (conv.forward, lambda x: torch.nn.Conv2d.forward(conv, x)):
            given = image.clone().requires_grad_()
            conv.zero_grad()
            out = forward(given)
            out.square().sum().backward()
            found.append([out, given.grad, conv.weight.grad])
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_vits_fine_cells_are_parts_of_its_cells() -> None:
    for name in ('vit_test', 'vit_small_patch8_224'):
        plain = create_backbone(name).eval()
        fine = create_backbone(name, cell=16).eval()
        fine.load_state_dict(plain.state_dict())
        image = torch.rand(1, 3, 96, 64)
        features = fine(image)
        assert features.shape[2:] == (6, 4)
        assert not torch.allclose(features[:, :, 0], features[:, :, 1])
        torch.testing.assert_close(fine.coarsen(features), plain(image))
        assert fine.coarse_offset == plain.field_offset == 0


@pytest.mark.parametrize(
    ('name', 'cell', 'message'),
    [
        ('vit_small_patch32_224', 16, 'cell=16.*patches are 32 pixels.*choose cell=32'),
        ('resnet18', 8, 'cell=8.*32x32 or 16x16.*cell=16'),
    ],
)
def test_cells_that_a_network_does_not_have_are_refused(
    name: str, cell: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        create_backbone(name, cell=cell)


@pytest.mark.parametrize('name', FINE)
@torch.no_grad()
def test_fine_cells_are_hidden_where_the_mask_says(name: str) -> None:
    backbone = create_backbone(name, cell=16).eval()
    backbone.mask_token.fill_(3.0)
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, 1, 2] = True
    image = torch.rand(1, 3, 64, 64)
    assert not torch.allclose(backbone(image, mask), backbone(image))
    stem = torch.zeros(1, len(backbone.mask_token), 16, 16)
    hidden = backbone.hide(stem, mask)
    assert (hidden[:, :, 4:8, 8:12] == 3).all()
    assert hidden.sum() == hidden[:, :, 4:8, 8:12].sum()


@pytest.mark.parametrize('name', [*NAMES, SWINS[0]])
@torch.no_grad()
def test_mask_token_is_added_where_hidden(name: str) -> None:
    backbone = create_backbone(name).eval()
    image = torch.rand(1, 3, 128, 128)
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, 1, 2] = True
    assert torch.equal(backbone(image, mask), backbone(image)), 'the token starts at 0'
    backbone.mask_token.fill_(3.0)
    assert torch.equal(backbone(image, torch.zeros_like(mask)), backbone(image))
    assert not torch.allclose(backbone(image, mask), backbone(image))
    stem = torch.zeros(1, len(backbone.mask_token), 32, 32)
    hidden = backbone.hide(stem, mask)
    assert (hidden[:, :, 8:16, 16:24] == 3).all() and hidden.sum() == hidden[
        :, :, 8:16, 16:24
    ].sum()


def test_stochastic_depth_is_off() -> None:
    swin = create_backbone('swin_test')
    rates = [m.drop_prob for m in swin.modules() if hasattr(m, 'drop_prob')]
    assert not any(rates)


@pytest.mark.parametrize(
    ('name', 'part'),
    [
        ('resnet51', 'did you mean'),
        ('efficientnet_b0', 'cannot hide cells'),
        ('resnetv2_50', 'cannot hide cells'),
        ('vit_small_patch14_dinov2', r'patches of \(14, 14\)'),
    ],
)
def test_unsupported_name_lists_what_is_supported(name: str, part: str) -> None:
    with pytest.raises(
        ValueError, match=f'{name}.*{part}.*ResNet.*Swin.*ViT.*ConvNeXt'
    ):
        create_backbone(name)


def test_size_that_is_no_multiple() -> None:
    with pytest.raises(ValueError, match='100x96 pixels.*multiples of 32'):
        create_backbone('resnet18')(torch.rand(1, 3, 100, 96))
