# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

import pytest
import torch

from cmid_geo.transforms import expand_mask, hide_cells, random_cell_mask


def test_hides_the_same_number_in_each_image() -> None:
    # ceil(0.6 * 49) = 30; 0.6 * 25 = 15 exactly, though not in floating point
    assert (random_cell_mask(64, 7, 7, 0.6).sum((1, 2)) == 30).all()
    assert (random_cell_mask(64, 5, 5, 0.6).sum((1, 2)) == 15).all()
    assert not random_cell_mask(2, 7, 7, 0.0).any()
    assert random_cell_mask(2, 7, 7, 1.0).all()


def test_hides_all_cells_alike_and_images_on_their_own() -> None:
    mask = random_cell_mask(4000, 3, 3, 0.5)
    share = mask.float().mean(0)
    torch.testing.assert_close(share, torch.full((3, 3), 5 / 9), atol=0.05, rtol=0)
    assert len({tuple(m.flatten().tolist()) for m in mask[:50]}) > 20


def test_hidden_pixels_get_the_mean_and_visible_ones_stay() -> None:
    image, mask = torch.rand(2, 3, 64, 96), random_cell_mask(2, 2, 3, 0.5)
    hidden = hide_cells(image, mask)
    for b in range(2):
        for r in range(2):
            for c in range(3):
                window = (
                    b,
                    slice(None),
                    slice(32 * r, 32 * r + 32),
                    slice(32 * c, 32 * c + 32),
                )
                if mask[b, r, c]:
                    expected = image[b].mean((1, 2))[:, None, None].expand(3, 32, 32)
                    torch.testing.assert_close(hidden[window], expected)
                else:
                    assert torch.equal(hidden[window], image[window])


def test_invalid_pixels_count_in_no_mean() -> None:
    image = torch.rand(1, 2, 64, 64)
    valid = torch.rand(1, 64, 64) < 0.5
    mask = torch.ones(1, 2, 2, dtype=torch.bool)
    hidden = hide_cells(image.where(valid[:, None], torch.nan), mask, valid)
    for band in range(2):
        mean = image[0, band][valid[0]].mean()
        torch.testing.assert_close(hidden[0, band], mean.expand(64, 64))


def test_grid_that_does_not_divide() -> None:
    with pytest.raises(
        ValueError, match='2x2 cells does not divide a grid of 65x64.*whole cells'
    ):
        expand_mask(torch.zeros(1, 2, 2, dtype=torch.bool), 65, 64)
