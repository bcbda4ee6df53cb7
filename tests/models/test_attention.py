# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

from typing import Any

import pytest
import timm
import torch

from cmid_geo.models import create_backbone
from cmid_geo.models.attention import attention_map


def vit(**options: Any) -> Any:
    given = {'depth': 2, 'embed_dim': 24, 'num_heads': 3, 'dynamic_img_size': True}
    return timm.create_model('vit_tiny_patch16_224', **(given | options)).eval()


def test_a_vit_by_hand() -> None:
    network, image = vit(), torch.randn(3, 64, 96)
    found = attention_map(network, image)
    attention = network.blocks[-1].attn
    with torch.no_grad():
        tokens = network._pos_embed(network.patch_embed(image[None]))
        tokens = network.blocks[-1].norm1(network.blocks[0](tokens))
        q, k, _ = attention.qkv(tokens)[0].unflatten(1, (3, 3, -1)).permute(1, 2, 0, 3)
    weights = ((q * attention.scale) @ k.mT).softmax(-1)
    torch.testing.assert_close(found, weights[:, 0, 1:].reshape(3, 4, 6))
    # A cell holds 2x2 patches: row 1, column 2 begins with patch 2 * 6 + 4
    cell = attention_map(network, image, (1, 2))
    own = [1 + 16, 1 + 17, 1 + 22, 1 + 23]
    torch.testing.assert_close(cell, weights[:, own, 1:].mean(1).reshape(3, 4, 6))


@pytest.mark.parametrize('name', ['swin_tiny_patch4_window7_224', 'swinv2_tiny_window8_256'])  # fmt: skip
def test_swin_looks_at_its_window_alone(name: str) -> None:
    network = create_backbone(name).network
    # Stage 3 of images of 448 pixels has 28x28 tokens: whole windows of 7
    side = 448 if 'v2' not in name else 512
    blocks = [block for layer in network.layers for block in layer.blocks]
    size = blocks[4].window_size[0]
    found = attention_map(network, torch.randn(3, side, side), (0, 0), 4)
    looked = ~found.isnan()
    assert looked[:, :size, :size].all() and looked[0].sum() == size**2
    torch.testing.assert_close(found.nansum((1, 2)), torch.ones(len(found)))
    # The next block's windows are moved by half of one
    shifted = ~attention_map(network, torch.randn(3, side, side), (4, 4), 5)[0].isnan()
    half = blocks[5].shift_size[0]
    start = half + (8 - half) // size * size
    assert half > 0
    assert shifted[start : start + size, start : start + size].all()
    assert shifted.sum() == size**2


def test_windows_beyond_the_image_are_cut_off() -> None:
    network = create_backbone('swin_tiny_patch4_window7_224').network
    found = attention_map(network, torch.randn(3, 96, 96), (2, 2), 0)
    # 24x24 tokens in windows of 7: the tokens of the last cell lie in the last three rows and those before
    assert found.shape == (3, 24, 24) and found[:, :14].isnan().all()
    assert not found[:, 14:, 14:].isnan().any()
    assert (found.nansum((1, 2)) < 1).all()


@pytest.mark.parametrize('name', ['vit_tiny_patch16_224', 'swin_tiny_patch4_window7_224'])  # fmt: skip
def test_the_network_stays_as_it_is(name: str) -> None:
    backbone = create_backbone(name).train()
    backbone.network.norm.eval()
    modes = [module.training for module in backbone.modules()]
    fused = [getattr(module, 'fused_attn', None) for module in backbone.modules()]
    state = {key: value.clone() for key, value in backbone.state_dict().items()}
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in backbone.modules()]  # fmt: skip
    attention_map(backbone, torch.randn(3, 64, 64), (0, 1))
    with pytest.raises(ValueError, match='cell'):
        attention_map(backbone, torch.randn(3, 64, 64), (2, 0))
    assert modes == [module.training for module in backbone.modules()]
    assert fused == [getattr(m, 'fused_attn', None) for m in backbone.modules()]
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in backbone.modules()]  # fmt: skip
    assert all(torch.equal(state[key], value) for key, value in backbone.state_dict().items())  # fmt: skip


def test_refusals() -> None:
    image = torch.randn(3, 64, 96)
    with pytest.raises(ValueError, match='ResNet has no attention.*use a ViT'):
        attention_map(timm.create_model('resnet18'), image)
    with pytest.raises(ValueError, match=r'block=2 of 2: choose from -2 to 1'):
        attention_map(vit(), image, block=2)
    with pytest.raises(ValueError, match=r'cell=\(2, 0\) is outside: give cell=.* 2 rows and 3 col'):  # fmt: skip
        attention_map(vit(), image, (2, 0))
    without = vit(class_token=False, global_pool='avg')
    with pytest.raises(ValueError, match='no class token: give cell='):
        attention_map(without, image)
    assert attention_map(without, image, (0, 0)).shape == (3, 4, 6)
