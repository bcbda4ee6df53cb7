# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

import pytest
import torch

from cmid_geo.transforms.classification import Mixing, RandomAppearance, random_erasing
from cmid_geo.transforms.segmentation import LabelledAugmentation


def coordinates(number: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Chips whose values are their own (x, y), and masks that number blocks of 8 pixels."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing='ij')
    image = torch.stack([x, y]).float()[None] / size
    mask = (y // 8 * (size // 8) + x // 8)[None]
    return image.repeat(number, 1, 1, 1), mask.repeat(number, 1, 1)


@pytest.mark.parametrize('scale', [None, (0.25, 1.0)])
def test_mask_follows_the_image(scale: tuple[float, float] | None) -> None:
    image, mask = coordinates(32, 64)
    valid = mask < 40
    augment = LabelledAugmentation(64, scale, 0.0, 0.0)
    out, moved, still = augment(image, mask, valid)
    assert moved is not None and still is not None and moved.dtype == mask.dtype
    x, y = (64 * out).unbind(1)
    inner = still & (x % 8 > 1) & (x % 8 < 6.5) & (y % 8 > 1) & (y % 8 < 6.5)
    expected = (y // 8 * 8 + x // 8).long()
    assert inner.float().mean() > 0.2
    assert torch.equal(moved[inner], expected[inner])
    assert (moved[still] < 40).all() and not out.permute(0, 2, 3, 1)[~still].any()


def test_all_eight_positions_are_drawn() -> None:
    image, mask = coordinates(128, 16)
    out, _, _ = LabelledAugmentation(16, None, 0.0, 0.0)(image, mask)
    corners = {
        tuple((16 * o[:, [0, 0], [0, -1]]).round().flatten().tolist()) for o in out
    }
    assert len(corners) == 8


def test_brightness_stays_in_range_and_image_alone_will_do() -> None:
    image = torch.rand(8, 5, 32, 32)
    out, mask, valid = LabelledAugmentation(32, None, 0.5, 0.5)(image)
    assert mask is None and valid is None
    assert out.min() >= 0 and out.max() <= 1 and not torch.equal(out, image)


def test_mixing_mixes_images_and_labels_alike() -> None:
    image = torch.arange(6.0)[:, None, None, None].expand(6, 1, 8, 8)
    for mixup, cutmix in ((0.8, 0.0), (0.0, 1.0)):
        torch.manual_seed(3)
        mixed, shares = Mixing(6, mixup, cutmix)(image, torch.arange(6))
        # A mean pixel is the mean of the classes' numbers, as labels say
        expected = shares @ torch.arange(6.0)
        torch.testing.assert_close(mixed.mean((1, 2, 3)), expected)
        torch.testing.assert_close(shares.sum(1), torch.ones(6))
        assert (shares.amax(1) < 1).any()
    same, labels = Mixing(6, 0.0, 0.0)(image, torch.arange(6))
    assert same is image and torch.equal(labels, torch.arange(6))
    with pytest.raises(ValueError, match='mixup=-1'):
        Mixing(6, -1.0, 0.0)


def test_each_image_is_changed_on_its_own() -> None:
    image = torch.rand(1, 3, 32, 32).repeat(8, 1, 1, 1)
    out = RandomAppearance(9)(image)
    assert out.shape == image.shape and out.min() >= 0 and out.max() <= 1
    assert len({float(one.sum()) for one in out}) > 4
    erased = random_erasing(1.0)(image + 1)
    assert ((erased == 0).any(1).float().mean((1, 2)) > 0.01).all()
