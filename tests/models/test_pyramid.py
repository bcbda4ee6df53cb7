# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.


import pytest
import timm
import torch

from cmid_geo.models import load_backbone
from cmid_geo.models.classification import create_network
from cmid_geo.models.pyramid import STRIDES, Pyramid, SimplePyramid
from cmid_geo.models.segmentation import DECODERS, create_segmenter

NAMES = ['resnet18', 'swin_test', 'vit_test', 'convnext_atto']


@pytest.mark.parametrize('stride', [32, 16])
@pytest.mark.parametrize('name', NAMES)
def test_maps_keep_the_promise(name: str, stride: int) -> None:
    pyramid = Pyramid(name, 4, output_stride=stride).eval()
    image = torch.rand(2, 4, 64, 96)
    with torch.no_grad():
        maps = pyramid(image)
    assert maps[0] is image
    assert [each.shape[1] for each in maps] == pyramid.out_channels
    for each, step in zip(maps[1:], (2, *STRIDES)):
        step = min(step, stride)
        assert each.shape[2:] == (64 // step, 96 // step)


@pytest.mark.parametrize('name', NAMES[:3])
def test_backbone_is_filled_and_computes_what_timms_does(name: str) -> None:
    torch.manual_seed(1)
    source = create_network(name).eval()
    pyramid = Pyramid(name).eval()
    report = load_backbone(pyramid, source.state_dict())
    assert len(report.loaded) == report.total
    image = torch.rand(1, 3, 96, 64)
    with torch.no_grad():
        if name.startswith('vit'):
            tokens = source.forward_features(image)[:, 1:]
            expected = tokens.unflatten(1, (6, 4)).permute(0, 3, 1, 2)
            # The level of the patches' own stride is the map itself
            found = pyramid(image)[4]
        else:
            (expected,) = source.forward_intermediates(
                image, indices=[3 if 'swin' in name else 4], intermediates_only=True
            )
            expected = pyramid.norms[3](expected) if pyramid.norms else expected
            found = pyramid(image)[5]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('stride', [8, 16, 32])
def test_one_map_becomes_four(stride: int) -> None:
    pyramid = SimplePyramid(32, stride)
    maps = pyramid(torch.rand(1, 32, 64 // stride, 128 // stride))
    for each, step, width in zip(maps, STRIDES, pyramid.out_channels):
        assert each.shape == (1, width, 64 // step, 128 // step)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match='64x70.*multiples of 32.*64x96'):
        Pyramid('resnet18')(torch.rand(1, 3, 64, 70))
    with pytest.raises(ValueError, match=r'\(14, 14\).*8, 16 or 32'):
        Pyramid('vit_small_patch14_dinov2')
    with pytest.raises(ValueError, match='vgg11.*strides'):
        Pyramid('vgg11')
    with pytest.raises(ValueError, match=r'did you mean.*resnet18'):
        Pyramid('resnet118')
    with pytest.raises(ValueError, match=r'drop_path_rate=1.5.*\[0, 1\)'):
        Pyramid('resnet18', drop_path_rate=1.5)
    with pytest.raises(ValueError, match='vgg11.*no stochastic depth'):
        create_network('vgg11', drop_path_rate=0.1)


@pytest.mark.parametrize('name', NAMES)
def test_stochastic_depth_is_set(name: str) -> None:
    def rates(network: torch.nn.Module) -> list[float]:
        found = [getattr(m, 'drop_prob', 0.0) for m in network.modules()]
        return [rate for rate in found if rate]

    assert not rates(Pyramid(name))
    assert max(rates(Pyramid(name, drop_path_rate=0.3))) == pytest.approx(0.3)
    assert max(rates(create_network(name, drop_path_rate=0.3))) == pytest.approx(0.3)


@pytest.mark.parametrize('decoder', DECODERS)
@pytest.mark.parametrize('name', NAMES)
def test_any_decoder_takes_any_backbone(decoder: str, name: str) -> None:
    if decoder == 'dpt' and not name.startswith('vit'):
        with pytest.raises(ValueError, match='dpt.*vit_small_patch16_224'):
            create_segmenter('dpt', name)
        return
    # The library's own bookkeeping is as it was
    import segmentation_models_pytorch as smp

    before = set(smp.encoders.encoders)
    model = create_segmenter(decoder, name, 4, 5).eval()
    assert set(smp.encoders.encoders) == before
    with torch.no_grad():
        assert model(torch.rand(2, 4, 64, 96)).shape == (2, 5, 64, 96)
    source = timm.create_model(name, in_chans=4)
    report = load_backbone(model, source.state_dict())
    assert len(report.loaded) == report.total
