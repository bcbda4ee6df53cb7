# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

import math
from typing import Any

import pytest
import timm
import torch

from cmid_geo.models import BIT, SiameseModel, create_change_model, load_backbone
from cmid_geo.models.bit import Layer, TokenDecoder
from cmid_geo.models.pyramid import Pyramid
from cmid_geo.models.segmentation import DECODERS

SWIN = 'swin_test'
MAPS = [(2, 6, 16, 16), (2, 8, 8, 8)]


def make(decoder: Any = 'unet', backbone: str = 'resnet_test', **options: Any) -> Any:
    torch.manual_seed(0)
    return create_change_model(decoder, backbone, **({'in_channels': 2} | options))


def pair(bands: int = 2, size: int = 64, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 2, bands, size, size, generator=generator)


@pytest.mark.parametrize('decoder', ['unet', 'bit'])
@pytest.mark.parametrize('backbone', ['resnet_test', 'resnet50', SWIN, 'vit_test'])
def test_any_backbone_trains(backbone: str, decoder: str) -> None:
    model = make(decoder, backbone, classes=3)
    scores = model(pair(size=32))
    assert scores.shape == (2, 3, 32, 32)
    scores.square().mean().backward()
    first = next(model.encoder.network.parameters())
    assert first.grad is not None and first.grad.abs().sum() > 0


@pytest.mark.parametrize('decoder', [name for name in DECODERS if name != 'dpt'])
def test_every_weight_of_a_fusion_is_used(decoder: str) -> None:
    model = make(decoder, fusion='concatenation')
    model(pair()).square().mean().backward()
    gradients = [parameter.grad for parameter in model.fusions.parameters()]
    assert gradients
    assert all(grad is not None and grad.abs().sum() > 0 for grad in gradients)


def test_a_map_without_channels_is_fused_too() -> None:
    model = make('unet', SWIN, fusion='concatenation')
    assert model.encoder.out_channels[1] == 0
    assert model(pair()).shape == (2, 1, 64, 64)


def test_both_dates_share_one_pass_of_one_encoder() -> None:
    model, seen = make(), []
    assert isinstance(model, SiameseModel) and isinstance(model.encoder, Pyramid)
    model.encoder.register_forward_hook(lambda _, given, maps: seen.append(given[0]))
    image = pair()
    model(image)
    assert len(seen) == 1
    assert torch.equal(seen[0].view(2, 2, 2, 64, 64), image)
    alone = sum(p.numel() for p in Pyramid('resnet_test', 2).parameters())
    assert sum(p.numel() for p in model.encoder.parameters()) == alone


def test_the_difference_does_not_know_the_order_of_dates() -> None:
    image = pair()
    model = make().eval()
    torch.testing.assert_close(model(image), model(image.flip(1)))
    model = make(fusion='concatenation').eval()
    assert (model(image) - model(image.flip(1))).abs().max() > 1e-3


def test_without_change_the_decoder_sees_nothing() -> None:
    model, seen = make().eval(), []
    model.decoder.register_forward_hook(lambda _, given, out: seen.append(given[0]))
    same = pair()[:, :1].expand(-1, 2, -1, -1, -1)
    model(same)
    assert all(each.abs().max() == 0 for each in seen[0] if each.numel())
    model(pair())
    assert all(each.abs().max() > 0 for each in seen[1] if each.numel())


def test_weights_of_single_images_fill_the_encoder() -> None:
    given = timm.create_model('resnet_test', num_classes=0).state_dict()
    for decoder in ('upernet', 'bit'):
        model = make(decoder, in_channels=3)
        report = load_backbone(model, given)
        assert len(report.loaded) == report.total
        torch.testing.assert_close(
            model.encoder.network.state_dict()['layer4.0.conv2.weight'],
            given['layer4.0.conv2.weight'],
        )


def test_stochastic_depth_reaches_the_backbone() -> None:
    for decoder in ('unet', 'bit'):
        model = make(decoder, SWIN, drop_path_rate=0.3)
        rates = [getattr(each, 'drop_prob', 0.0) for each in model.modules()]
        assert max(rate or 0.0 for rate in rates) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ('decoder', 'fusion', 'cure'),
    [
        ('unet', 'bit', "choose model='bit'"),
        ('bit', 'concatenation', "leave out fusion='concatenation'"),
        ('dpt', 'difference', "choose model='upernet'"),
    ],
)
def test_choices_that_do_not_go_together(decoder: str, fusion: str, cure: str) -> None:
    with pytest.raises(ValueError, match=cure):
        make(decoder, fusion=fusion)


# The transformer


def test_tokens_that_look_everywhere_are_means() -> None:
    decoder = TokenDecoder([6, 8], 3, 16, 1, 8)
    torch.nn.init.zeros_(decoder.attend.weight)
    pixels = torch.randn(2, 16, 4, 5)
    means = pixels.mean(dim=(2, 3))[:, None].expand(2, 3, 16)
    torch.testing.assert_close(decoder.tokenize(pixels), means)


def test_a_token_that_looks_at_one_pixel_is_that_pixel() -> None:
    decoder = TokenDecoder([6, 8], 1, 16, 1, 8)
    torch.nn.init.zeros_(decoder.attend.weight)
    torch.nn.init.constant_(decoder.attend.weight[:, 0], 100.0)
    pixels = torch.zeros(1, 16, 4, 5)
    pixels[0, :, 2, 3] = torch.arange(1.0, 17.0)
    torch.testing.assert_close(decoder.tokenize(pixels)[0, 0], pixels[0, :, 2, 3])


def test_attention_is_the_slow_loop() -> None:
    layer = Layer(width=4, heads=2, head_width=3).double()
    queries, tokens = torch.randn(1, 5, 4).double(), torch.randn(1, 2, 4).double()
    normed, looked_at = layer.norm(queries[0]), layer.norm(tokens[0])
    asked = layer.query(normed)
    keys, values = layer.key_value(looked_at).split(6, dim=1)
    seen = torch.zeros(5, 6).double()
    for head in (slice(0, 3), slice(3, 6)):
        for i in range(5):
            fits = torch.stack(
                [asked[i, head] @ keys[j, head] / math.sqrt(3) for j in range(2)]
            ).exp()
            for j in range(2):
                seen[i, head] += fits[j] / fits.sum() * values[j, head]
    changed = queries[0] + layer.out(seen)
    expected = changed + layer.perceptron(layer.norm_behind(changed))
    torch.testing.assert_close(layer(queries, tokens)[0], expected)


def test_dates_differ_to_the_transformer_by_position_alone() -> None:
    decoder = TokenDecoder([6, 8], 4, 16, 1, 8)
    maps = [torch.randn(shape) for shape in MAPS]
    others = [torch.randn(shape) for shape in MAPS]
    assert decoder(maps, maps).abs().max() > 0
    torch.nn.init.zeros_(decoder.positions)
    assert decoder(maps, maps).abs().max() == 0
    torch.testing.assert_close(decoder(maps, others), decoder(others, maps))


def test_each_date_knows_of_the_other_through_tokens() -> None:
    decoder = TokenDecoder([6, 8], 4, 16, 1, 8)
    seen: list[torch.Tensor] = []
    decoder.look[0].register_forward_hook(lambda _, given, out: seen.append(given[1]))
    maps = [torch.randn(shape) for shape in MAPS]
    decoder(maps, maps)
    decoder(maps, [each + torch.randn_like(each) for each in maps])
    # The first date's tokens, twice: the second date alone was changed
    assert (seen[0] - seen[2]).abs().max() > 1e-4


def test_the_paper_s_size() -> None:
    model = make('bit')
    assert isinstance(model, BIT)
    assert model.decoder.positions.shape == (1, 8, 32)
    assert (len(model.decoder.mix), len(model.decoder.look)) == (1, 8)
    assert make('bit', fusion='bit', tokens=6).decoder.positions.shape == (1, 12, 32)
