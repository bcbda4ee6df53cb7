# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

from typing import Any

import pytest
import torch

from cmid_geo.transforms import PairAugmentation

PLAIN: dict[str, Any] = {'colour_p': 0.0}


def coordinates(
    batch: int = 4, height: int = 12, width: int = 12
) -> tuple[torch.Tensor, torch.Tensor]:
    """Chips whose bands are x and y of each pixel, and masks that number the pixels."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')
    # In [0, 1]; the second date is a little less
    image = torch.stack([x, y]).float() / 100
    pair = torch.stack([image + 0.1, image])
    mask = (y * width + x).expand(batch, -1, -1)
    return pair.expand(batch, -1, -1, -1, -1), mask


@pytest.mark.parametrize('size', [None, 8, (6, 10), 20])
def test_dates_and_labels_stay_on_one_place(size: Any) -> None:
    pair, mask = coordinates(16)
    image, labels, valid = PairAugmentation(size, **PLAIN)(pair, mask)
    x, y = labels % 12 / 100, labels // 12 / 100
    expected = torch.stack([x, y], dim=1) * valid[:, None]
    assert valid.any()
    torch.testing.assert_close(image[:, 1], expected, atol=1e-5, rtol=0)
    shifted = (expected + 0.1) * valid[:, None]
    torch.testing.assert_close(image[:, 0], shifted, atol=1e-5, rtol=0)
    # Each was altered in its own way
    assert len({tuple(each.flatten().tolist()) for each in labels}) > 3


def test_all_eight_turns_and_flips_are_drawn() -> None:
    pair, mask = coordinates(100, 3, 3)
    _, labels, valid = PairAugmentation(**PLAIN)(pair, mask)
    assert valid.all()
    plain = mask[0]
    turned = [plain.rot90(k) for k in range(4)]
    eight = {tuple(t.flatten().tolist()) for p in turned for t in (p, p.flip(0))}
    assert {tuple(each.flatten().tolist()) for each in labels} == eight


def test_crops_lie_everywhere_and_inside() -> None:
    pair, mask = coordinates(300, 5, 6)
    augment = PairAugmentation(4, flips=False, turns=False, **PLAIN)
    _, labels, valid = augment(pair, mask)
    assert valid.all()
    assert set(labels[:, 0, 0].tolist()) == {0, 1, 2, 6, 7, 8}


def test_oblong_chips_are_not_turned_out_of_themselves() -> None:
    pair, mask = coordinates(20, 4, 8)
    image, labels, valid = PairAugmentation(**PLAIN)(pair, mask)
    assert image.shape == pair.shape and valid.all()
    assert all(sorted(each.flatten().tolist()) == list(range(32)) for each in labels)


@pytest.mark.parametrize('zoom', [(2.0, 2.0), (0.5, 0.9)])
def test_zoom_keeps_labels_within_half_a_pixel(zoom: tuple[float, float]) -> None:
    pair, mask = coordinates(8, 40, 40)
    image, labels, valid = PairAugmentation(16, zoom, **PLAIN)(pair, mask)
    place = torch.stack([labels % 40, labels // 40], dim=1) / 100
    off = (image[:, 1] - place)[valid[:, None].expand(-1, 2, -1, -1)].abs()
    assert off.max() <= 0.00501
    # Neighbours are 1 / zoom apart
    step = (image[:, 1, 0, 8, 9] - image[:, 1, 0, 8, 8]).abs()
    other = (image[:, 1, 0, 9, 8] - image[:, 1, 0, 8, 8]).abs()
    apart = torch.maximum(step, other) * 100
    assert (apart > 1 / zoom[1] - 1e-3).all() and (apart < 1 / zoom[0] + 1e-3).all()


def test_beyond_the_chip_nothing_is_valid() -> None:
    pair, mask = coordinates(5, 6, 6)
    image, labels, valid = PairAugmentation(9, ignore_index=-7, **PLAIN)(pair, mask)
    assert (valid.sum(dim=(1, 2)) == 36).all()
    assert (labels == -7).eq(~valid).all()
    assert (image * ~valid[:, None, None] == 0).all()


def test_what_is_not_valid_moves_along_and_bleeds_nowhere() -> None:
    pair, mask = coordinates(6)
    valid = torch.ones(mask.shape, dtype=torch.bool)
    valid[:, 2:5, 3] = False
    augment = PairAugmentation(zoom=(0.8, 1.5), **PLAIN)
    geometry = augment.draw(pair)
    found = augment(pair, mask, valid, geometry)
    spoilt = pair.where(valid[:, None, None], float('nan'))
    other = augment(spoilt, mask, valid, geometry)
    torch.testing.assert_close(found[0], other[0])
    known = valid.flatten(1).gather(1, found[1].flatten(1)).view(found[1].shape)
    assert not (found[2] & ~known).any() and (found[2] & known).any()


@pytest.mark.parametrize('bands', [1, 3, 4, 13])
def test_colour_is_drawn_for_each_date(bands: int) -> None:
    date = torch.rand(4, 1, bands, 8, 8)
    mask = torch.randint(2, (4, 8, 8))
    augment = PairAugmentation(flips=False, turns=False, colour_p=1.0)
    image, labels, valid = augment(date.expand(-1, 2, -1, -1, -1), mask)
    assert torch.equal(labels, mask) and valid.all()
    assert ((image[:, 0] - image[:, 1]).abs().amax(dim=(1, 2, 3)) > 1e-3).all()
    assert image.min() >= 0 and image.max() <= 1


def test_a_geometry_can_be_replayed() -> None:
    pair, mask = coordinates()
    augment = PairAugmentation(8, zoom=(0.7, 1.4), **PLAIN)
    geometry = augment.draw(pair)
    first, second = (augment(pair, mask, geometry=geometry) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    assert not torch.equal(augment(pair, mask)[1], first[1])


@pytest.mark.parametrize('zoom', [(0.0, 1.0), (2.0, 1.0)])
def test_a_zoom_that_is_no_range(zoom: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match='give 0 < first <= second'):
        PairAugmentation(zoom=zoom)
