# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

import pytest
import torch
import torch.nn.functional as F
from kornia.geometry.transform import warp_affine

from cmid_geo.transforms import TwoViews, View
from cmid_geo.transforms.colour import strong_colour
from cmid_geo.transforms.geometry import sampling_grid, sampling_shifts, warp_layers
from cmid_geo.transforms.views import check_chips, draw_dates

#: Coordinates are written in units of this, to lie in [0, 1].
UNIT = 1024


def coordinates(batch: int, height: int, width: int) -> torch.Tensor:
    """Chips whose two bands are the x and y of their pixels."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')
    return (torch.stack([x, y]).double() / UNIT).expand(batch, 2, height, width)


def cell_means(view: View) -> torch.Tensor:
    cell = view.image.shape[2] // view.mask.shape[1]
    # Summed in double precision: the sum of 1024 singles is off by more than the positions
    return F.avg_pool2d(view.image.double(), cell).flatten(2).mT * UNIT


def plain_views(size: int, **options: object) -> TwoViews:
    """Without change of colour, so that the strong view too shows coordinates."""
    off = {
        'jitter_p': 0.0,
        'blur_p': 0.0,
        'noise_p': 0.0,
        'solarize_p': 0.0,
        'grey_p': 0.0,
    }
    return TwoViews(size, mean=(0.0, 0.0), std=(1.0, 1.0), **off, **options)


@pytest.mark.parametrize('shape', [(224, 224), (300, 260), (512, 700)])
@pytest.mark.parametrize('cell', [32, 16])
def test_cell_means_equal_positions(shape: tuple[int, int], cell: int) -> None:
    views = plain_views(224, cell=cell)
    for view in views(coordinates(24, *shape)):
        assert view.positions.shape == (24, (224 // cell) ** 2, 2)
        error = (cell_means(view) - view.positions).abs().max()
        assert error < 1e-3, f'{error} px'
    # The same in the single precision that training uses
    view = views(coordinates(24, *shape).float())[1]
    assert view.image.dtype == torch.float32
    assert (cell_means(view) - view.positions).abs().max() < 1e-3


@pytest.mark.parametrize('cell', [32, 16])
def test_positions_move_with_what_a_cell_sees(cell: int) -> None:
    """What lies half a cell up and left of its centre in the view, wherever that is."""
    views = plain_views(96, field_offset=(1 - cell) / 2, cell=cell)
    for view in views(coordinates(24, 140, 130)):
        seen = view.image.double()[:, :, ::cell, ::cell].flatten(2).mT * UNIT
        assert (seen - view.positions).abs().max() < 1e-3


def test_every_flip_and_turn_occurs_and_keeps_its_place() -> None:
    views = plain_views(64, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    first, _ = views(coordinates(200, 64, 64))
    corner = first.positions[:, 0], first.positions[:, 1]
    seen = {
        tuple(torch.cat([a, b]).add(0.5).round().int().tolist())
        for a, b in zip(*corner)
    }
    # Eight placements of a square: where the first cell lies, and where the second
    lo, hi = 16, 48
    assert len(seen) == 8
    assert {x[:2] for x in seen} == {(a, b) for a in (lo, hi) for b in (lo, hi)}
    assert (cell_means(first) - first.positions).abs().max() < 1e-3


def test_without_turns_only_left_and_right_swap() -> None:
    first, _ = plain_views(64, scale=(1.0, 1.0), ratio=(1.0, 1.0), turns=False)(
        coordinates(50, 64, 64)
    )
    rows = first.positions.view(50, 2, 2, 2)[..., 1]
    expected = torch.tensor([[15.5, 15.5], [47.5, 47.5]]).double().expand(50, 2, 2)
    torch.testing.assert_close(rows, expected)
    assert len(first.positions[:, 0, 0].round().unique()) == 2


def test_crops_follow_scale_and_ratio() -> None:
    views = plain_views(64, turns=False)
    matrix = views.draw_geometry(torch.rand(400, 2, 256, 256))
    # A matrix maps crop to view: its diagonal is view over crop
    width, height = 63 / matrix[:, 0, 0].abs() + 1, 63 / matrix[:, 1, 1].abs() + 1
    area, ratio = width * height / 256**2, width / height
    assert (
        area.min() > 0.28
        and area.max() < 1.01
        and area.min() < 0.4
        and area.max() > 0.9
    )
    assert ratio.min() > 0.73 and ratio.max() < 1.36


def test_views_are_drawn_on_their_own_and_hide_different_cells() -> None:
    first, second = TwoViews(96)(torch.rand(8, 3, 128, 128))
    assert not torch.allclose(first.positions, second.positions)
    assert not torch.equal(first.mask, second.mask)
    assert (first.mask.sum((1, 2)) == 6).all()


def test_one_warp_is_kornias_warp() -> None:
    chips = torch.rand(4, 2, 96, 96, dtype=torch.float64)
    views = plain_views(64)
    geometry = views.draw_geometry(chips)
    first, _ = views(chips, geometries=(geometry, geometry))
    expected = warp_affine(chips, geometry[:, :2], (64, 64), align_corners=True)
    torch.testing.assert_close(first.image, expected)


def area_mean(image: torch.Tensor, places: torch.Tensor, side: float) -> torch.Tensor:
    """Mean over a square of so many pixels around places (cells, 2), pixels being squares."""
    weights = []
    for axis, length in ((0, image.shape[1]), (1, image.shape[0])):
        pixels, middle = torch.arange(length).double(), places[:, axis, None]
        over = (pixels + 0.5).minimum(middle + side / 2)
        weights.append((over - (pixels - 0.5).maximum(middle - side / 2)).clamp_min(0))
    across, down = weights
    return torch.einsum('cy,yx,cx->c', down, image, across) / side**2


@pytest.mark.parametrize(('chip', 'zoom'), [(448, 447 / 223), (448, 1.6), (700, 3.0)])
def test_shrunk_noise_keeps_the_variance_of_areas(chip: int, zoom: float) -> None:
    """Sampled bilinearly without antialiasing it has up to several times as much."""
    torch.manual_seed(0)
    noise = torch.rand(1, 1, chip, chip, dtype=torch.float64)
    geometry = torch.eye(3).double()[None].clone()
    geometry[:, [0, 1], [0, 1]] = 1 / zoom
    grid = sampling_grid(geometry, noise, (224, 224))
    shifts = sampling_shifts(geometry, noise, (224, 224))
    image, _ = warp_layers(noise, 1, grid, shifts)
    sharp, _ = warp_layers(noise, 1, grid)
    side = torch.arange(1, 223).double() * zoom
    places = torch.cartesian_prod(side, side).flip(1)
    areas = area_mean(noise[0, 0], places, zoom)
    inner = image[0, 0, 1:-1, 1:-1]
    assert 0.9 < inner.var() / areas.var() < 1.1
    assert sharp.var() / areas.var() > 1.3
    assert torch.corrcoef(torch.stack([inner.flatten(), areas]))[0, 1] > 0.97


@pytest.mark.parametrize('times', [2, 3, 4])
def test_whole_factors_shrink_to_the_mean_of_squares(times: int) -> None:
    chips, views = torch.rand(2, 2, 64 * times, 64 * times), plain_views(64)
    geometry = torch.eye(3).double().repeat(2, 1, 1)
    geometry[:, [0, 1], [0, 1]] = 1 / times
    # The middle of the first square of pixels is the first pixel
    geometry[:, :2, 2] = (1 - times) / (2 * times)
    first, _ = views(chips, geometries=(geometry, geometry))
    expected = F.avg_pool2d(chips, times)
    torch.testing.assert_close(first.image, expected, atol=1e-4, rtol=0)


def test_a_crop_that_does_not_shrink_stays_sharp_on_large_chips() -> None:
    chips, views = torch.rand(2, 2, 200, 200), plain_views(64)
    geometry = torch.eye(3).double().repeat(2, 1, 1)
    geometry[:, :2, 2] = -50
    first, _ = views(chips, geometries=(geometry, geometry))
    expected = chips[:, :, 50:114, 50:114]
    torch.testing.assert_close(first.image, expected, atol=1e-4, rtol=0)


def test_no_invalid_pixel_bleeds_into_a_shrunk_view() -> None:
    views = plain_views(64)
    valid = torch.rand(4, 200, 200) < 0.995
    chips = torch.rand(4, 2, 200, 200)
    geometries = views.draw_geometry(chips), views.draw_geometry(chips)
    first, _ = views(chips, valid, geometries)
    # With another fill of what is not valid the valid pixels are the same
    other = warp_layers(
        torch.cat([chips.where(valid[:, None], 1.0), valid[:, None]], 1), 2,
        sampling_grid(geometries[0], chips, (64, 64)),
        sampling_shifts(geometries[0], chips, (64, 64)),
    )  # fmt: skip
    assert torch.equal(first.valid, other[1])
    assert 0.2 < first.valid.float().mean() < 0.98
    known = first.valid[:, None].expand_as(first.image)
    torch.testing.assert_close(first.image[known], other[0][known], atol=1e-4, rtol=0)
    assert (first.image - other[0])[~known].abs().max() > 0.1


@pytest.mark.parametrize(('chip', 'size'), [(256, 224), (128, 96), (144, 96)])
def test_chips_hardly_larger_than_views_are_sampled_once(chip: int, size: int) -> None:
    chips, views = torch.rand(2, 3, chip, chip), TwoViews(size)
    geometry = views.draw_geometry(chips)
    assert sampling_shifts(geometry, chips, (size, size)) is None


def test_given_geometry_and_masks_are_used() -> None:
    chips, views = torch.rand(2, 3, 64, 64), TwoViews(64)
    eye = torch.eye(3).expand(2, 3, 3)
    mask = torch.tensor([[[True, False], [False, False]]]).expand(2, 2, 2)
    first, second = views(chips, geometries=(eye, eye), masks=(mask, ~mask))
    assert torch.equal(first.mask, mask) and torch.equal(second.mask, ~mask)
    mean, std = (
        torch.tensor(v)[:, None, None]
        for v in ((0.33797, 0.3605, 0.3348), (0.1359, 0.1352, 0.1407))
    )
    torch.testing.assert_close(first.image * std + mean, chips, atol=1e-4, rtol=0)
    assert not torch.allclose(second.image * std + mean, chips)


def test_invalid_pixels_reach_no_view() -> None:
    chips, views = torch.rand(4, 3, 96, 96), TwoViews(64)
    valid = torch.ones(4, 96, 96, dtype=torch.bool)
    valid[:, :40, :40] = False
    torch.manual_seed(1)
    before = views(chips, valid)
    torch.manual_seed(1)
    after = views(chips.where(valid[:, None], -9999.0), valid)
    torch.manual_seed(1)
    nans = views(chips.where(valid[:, None], torch.nan), valid)
    for one, two, three in zip(before, after, nans):
        assert torch.equal(one.image, two.image) and torch.equal(one.image, three.image)
        assert torch.equal(one.valid, two.valid)
    assert not before[0].valid.all() and before[0].valid.any()


def test_a_pixel_is_valid_only_if_all_its_sources_were() -> None:
    chips, views = torch.rand(16, 2, 96, 96), plain_views(64)
    valid = torch.rand(16, 96, 96) < 0.9
    geometry = views.draw_geometry(chips)
    first, _ = views(chips, valid, geometries=(geometry, geometry))
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing='ij')
    points = torch.stack([x, y, torch.ones(64, 64)], -1).view(-1, 3).double()
    for b in range(16):
        source = (points @ torch.linalg.inv(geometry[b]).T)[:, :2]
        # Stay clear of pixels that lie on a source to rounding
        corners = [
            valid[b][row.clamp(0, 95).long(), col.clamp(0, 95).long()]
            for row in (source[:, 1].floor(), source[:, 1].ceil())
            for col in (source[:, 0].floor(), source[:, 0].ceil())
        ]
        expected = torch.stack(corners).all(0).view(64, 64)
        fraction = (source - source.round()).abs().amin(1).view(64, 64)
        clear = fraction > 1e-2
        assert torch.equal(first.valid[b][clear], expected[clear])


def test_a_cell_more_than_half_invalid_does_not_count() -> None:
    valid = torch.ones(1, 64, 64, dtype=torch.bool)
    valid[0, :16, :32] = False  # half of the first cell
    valid[0, 32:49, 32:] = False  # a row more than half of the last
    view = View(
        torch.zeros(1, 3, 64, 64),
        torch.zeros(1, 2, 2, dtype=torch.bool),
        torch.zeros(1, 4, 2),
        valid,
    )
    assert view.valid_cells.tolist() == [[True, True, True, False]]


@pytest.mark.parametrize('bands', [1, 2, 3, 4, 12])
def test_any_number_of_bands(bands: int) -> None:
    chips = torch.rand(4, bands, 64, 64)
    for view in TwoViews(64)(chips):
        assert view.image.shape == (4, bands, 64, 64)
        assert view.image.isfinite().all()
        assert view.image.std() > 0.1


def test_two_dates_of_one_place() -> None:
    # Each date has a value of its own
    chips = torch.arange(3.0).view(1, 3, 1, 1, 1).expand(32, 3, 2, 64, 64) / 4
    first, second = plain_views(64)(chips)
    dates = [(view.image.mean((1, 2, 3)) * 4).round().int() for view in (first, second)]
    assert (dates[0] != dates[1]).all()
    assert set(dates[0].tolist()) == {0, 1, 2}
    image, valid = draw_dates(chips, torch.ones(32, 3, 64, 64, dtype=torch.bool))[0]
    assert image.shape == (32, 2, 64, 64) and valid.shape == (32, 64, 64)
    one = TwoViews(64)(torch.rand(2, 1, 3, 64, 64))
    assert one[0].image.shape == (2, 3, 64, 64)


def test_colours_stay_in_range_and_change() -> None:
    for rgb, bands in ((True, 3), (False, 5)):
        image = torch.rand(32, bands, 32, 32)
        altered = strong_colour(rgb)(image)
        assert altered.min() >= 0 and altered.max() <= 1
        assert not torch.allclose(altered, image, atol=0.05)


def test_solarize_inverts_above_a_half_and_adds_nothing() -> None:
    off = {'jitter_p': 0.0, 'blur_p': 0.0, 'noise_p': 0.0, 'grey_p': 0.0}
    image = torch.tensor([0.1, 0.4, 0.6, 0.9]).view(1, 1, 2, 2).repeat(1, 1, 4, 4)
    altered = strong_colour(False, solarize_p=1.0, **off)(image)
    expected = torch.tensor([[0.1, 0.4], [0.4, 0.1]])
    torch.testing.assert_close(altered[0, 0, :2, :2], expected)


def test_noise_has_the_papers_strength() -> None:
    off = {'jitter_p': 0.0, 'blur_p': 0.0, 'solarize_p': 0.0, 'grey_p': 0.0}
    image = torch.full((64, 1, 64, 64), 0.5)
    spread = strong_colour(False, noise_p=1.0, **off)(image).std(dim=(1, 2, 3))
    assert (
        spread.min() > 0.0115
        and spread.max() < 0.0285
        and spread.max() - spread.min() > 0.01
    )


def test_grey_gives_all_bands_one_value() -> None:
    off = {'jitter_p': 0.0, 'blur_p': 0.0, 'solarize_p': 0.0, 'noise_p': 0.0}
    for rgb, bands in ((True, 3), (False, 5)):
        image = torch.rand(2, bands, 8, 8)
        altered = strong_colour(rgb, grey_p=1.0, **off)(image)
        torch.testing.assert_close(altered, altered[:, :1].expand_as(altered))
        if not rgb:
            torch.testing.assert_close(altered[:, 0], image.mean(1))


def test_a_checkpoint_changes_no_constants() -> None:
    views = TwoViews(64, mean=(0.1,), std=(0.2,))
    # Of older versions, which saved what Kornia keeps
    old = (
        'colours.any.0.1._param_generator.gamma_factor',
        'flip.RandomRotation90_2.times',
        'mean',
    )
    state = {f'0.{name}': torch.full((1,), 7.0) for name in old}
    torch.nn.Sequential(views).load_state_dict(state)
    assert not views.state_dict()
    assert views.mean is not None and views.mean.item() == pytest.approx(0.1)


@pytest.mark.parametrize(
    ('size', 'cell'), [(200, 32), (0, 32), (-32, 32), (31, 32), (72, 16), (8, 16)]
)
def test_size_that_is_no_multiple_of_cells(size: int, cell: int) -> None:
    with pytest.raises(
        ValueError, match=rf'size={size} .*multiple of {cell}.* use \d+ or \d+'
    ):
        TwoViews(size, cell=cell)


def test_fine_cells_are_hidden_and_counted_one_by_one() -> None:
    valid = torch.ones(8, 80, 80, dtype=torch.bool)
    valid[:, :, 40:] = False
    whole = torch.eye(3).double().expand(8, 3, 3)
    views = TwoViews(80, cell=16)
    view, _ = views(torch.rand(8, 3, 80, 80), valid, (whole, whole))
    assert view.mask.shape == (8, 5, 5)
    assert (view.mask.sum((1, 2)) == 15).all(), '0.6 of 25'
    # Of the third column 8 of 16 pixels
    assert view.valid_cells.view(8, 5, 5)[:, :, :3].all()
    assert not view.valid_cells.view(8, 5, 5)[:, :, 3:].any()


def test_bad_chips() -> None:
    with pytest.raises(
        ValueError, match=r'200x300 pixels but views need 224: raise.*patch_size'
    ):
        TwoViews()(torch.rand(1, 3, 200, 300))
    with pytest.raises(ValueError, match='torch.uint8: views are cut from floats'):
        check_chips(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), None, 32)
    with pytest.raises(ValueError, match=r'valid has shape .*need \(2, 64, 64\)'):
        check_chips(
            torch.rand(2, 3, 64, 64), torch.ones(2, 32, 64, dtype=torch.bool), 32
        )
