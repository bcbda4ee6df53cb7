# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Changes of colour are Kornia's, draw by draw."""

import kornia.augmentation as K
import pytest
import torch
from kornia.enhance import adjust_hue
from torch import nn

from cmid_geo.transforms.colour import Blur, Gamma, Grey, Jitter, Solarize, rotate_hue
from cmid_geo.transforms.geometry import RandomCrops

PAIRS = {
    'jitter': (Jitter(0.4, 0.4, 0.2, 0.1, p=0.8), K.ColorJitter(0.4, 0.4, 0.2, 0.1, p=0.8)),
    'contrast': (Jitter(0.0, 0.9), K.ColorJitter(0.0, 0.9)),
    'gamma': (Gamma((0.5, 2.0), 0.5), K.RandomGamma((0.5, 2.0), p=0.5)),
    'blur': (Blur((0.1, 2.0), 0.5), K.RandomGaussianBlur((7, 7), (0.1, 2.0), p=0.5)),
    'solarize': (Solarize(0.5), K.RandomSolarize((0.5, 0.5), (0.0, 0.0), p=0.5)),
    'grey': (Grey(True, 0.5), K.RandomGrayscale(p=0.5)),
}  # fmt: skip


@pytest.mark.parametrize('ours, theirs', PAIRS.values(), ids=list(PAIRS))
def test_changes_are_kornias(ours: nn.Module, theirs: nn.Module) -> None:
    for seed in range(4):
        image = torch.rand(8, 3, 24, 20)
        torch.manual_seed(seed)
        expected = theirs(image)
        torch.manual_seed(seed)
        altered = ours(image.clone())
        torch.testing.assert_close(altered, expected, atol=3e-6, rtol=0)
        assert not torch.allclose(altered, image, atol=1e-3)


@pytest.mark.parametrize('ours', [ours for ours, _ in PAIRS.values()], ids=list(PAIRS))
def test_changes_leave_what_they_are_given(ours: nn.Module) -> None:
    image = torch.rand(8, 3, 24, 20)
    kept = image.clone()
    ours(image)
    assert torch.equal(image, kept)


def test_hue_of_every_corner_of_the_cube() -> None:
    levels = torch.tensor([0.0, 0.25, 1.0])
    image = torch.cartesian_prod(levels, levels, levels).T.view(1, 3, 1, 27)
    for angle in (-0.5, -0.1, 0.0, 1 / 3, 0.5):
        turned = rotate_hue(image, torch.full((1, 1, 1, 1), angle))
        expected = adjust_hue(image, torch.tensor([angle * 2 * torch.pi]))
        torch.testing.assert_close(turned, expected, atol=1e-6, rtol=0)
    # Once round by thirds: red becomes green
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    green = rotate_hue(red, torch.full((1, 1, 1, 1), 1 / 3)).flatten()
    torch.testing.assert_close(green, torch.tensor([0.0, 1.0, 0.0]))


def test_crops_are_kornias() -> None:
    crops = RandomCrops((64, 96), (0.3, 1.0), (3 / 4, 4 / 3))
    image = torch.rand(32, 1, 120, 130, dtype=torch.float64)
    torch.manual_seed(0)
    matrix = crops.draw(image)
    torch.manual_seed(0)
    drawn = crops.crop.forward_parameters(image.shape)
    expected = crops.crop.compute_transformation(image, drawn, crops.crop.flags)
    torch.testing.assert_close(matrix, expected, atol=1e-9, rtol=1e-9)
