# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

import itertools

import numpy as np
import pytest

from cmid_geo.predict.tiling import cut_axis, cut_scene

LENGTHS = (1, 2, 31, 63, 64, 65, 66, 97, 128, 129, 191, 500)
OVERLAPS = (0, 1, 2, 7, 30, 31)


@pytest.mark.parametrize('length', LENGTHS)
@pytest.mark.parametrize('overlap', OVERLAPS)
def test_windows_of_an_axis(length: int, overlap: int) -> None:
    axis = cut_axis(length, 64, overlap, overlap // 2)
    covered = [
        {place for place in range(start, start + 64) if 0 <= place < length}
        for start in axis.starts
    ]
    assert set.union(*covered) == set(range(length))
    assert list(axis.starts) == sorted(set(axis.starts))
    for one, other in itertools.pairwise(axis.starts):
        assert one + 64 - other >= overlap
    if length > 64:
        # No further out than half an overlap, at either end
        assert axis.starts[0] == -(overlap // 2)
        assert axis.starts[-1] + 64 == length + overlap // 2
        # And none too many
        assert len(axis.starts) - 1 < (length + overlap - 64) / (64 - overlap) + 1
    else:
        assert len(axis.starts) == 1
    # Segments cover every place once, each with exactly the windows that hold it
    places = [place for low, high, _ in axis.segments for place in range(low, high)]
    assert places == list(range(length))
    for low, high, windows in axis.segments:
        for place in (low, high - 1):
            holding = [n for n, each in enumerate(covered) if place in each]
            assert list(windows) == holding
    for window in range(len(axis.starts)):
        for n in axis.segments_of(window):
            assert covered[window] & set(range(*axis.segments[n][:2]))


def test_without_a_margin_windows_end_at_the_scene() -> None:
    axis = cut_axis(100, 64, 16, 0, centred=False)
    assert axis.starts == (0, 36)
    assert cut_axis(20, 64, 16, 0, centred=False).starts == (0,)
    assert cut_axis(20, 64, 16, 8).starts == (-22,)


@pytest.mark.parametrize('overlap', [0, 1, 8, 31])
def test_weights_are_smooth_and_positive(overlap: int) -> None:
    weights = cut_axis(500, 64, overlap, 0).weights
    assert (weights > 0).all() and weights.max() == 1
    assert (weights == weights[::-1]).all()
    assert (np.diff(weights[:32]) >= 0).all()
    assert (weights[overlap : 64 - overlap] == 1).all()
    if overlap:
        # Rising and falling sides of two neighbours add up to 1
        np.testing.assert_allclose(weights[:overlap] + weights[-overlap:], 1, atol=1e-6)


@pytest.mark.parametrize(('height', 'width'), [(200, 90), (64, 65), (5, 300)])
def test_regions_cover_a_scene_once(height: int, width: int) -> None:
    tiling = cut_scene(height, width, 64, 20)
    count = np.zeros((height, width), int)
    seen = set()
    for window in range(len(tiling)):
        row, col = tiling.corner(window)
        part = np.zeros((height, width), bool)
        for region in tiling.regions(window):
            assert window in region.windows
            part[slice(*region.rows), slice(*region.cols)] = True
            weight = tiling.weight(region, window)
            assert weight.shape == (
                region.rows[1] - region.rows[0],
                region.cols[1] - region.cols[0],
            )
            if region.key not in seen:
                count[slice(*region.rows), slice(*region.cols)] += 1
                seen.add(region.key)
        rows = slice(max(row, 0), min(row + 64, height))
        cols = slice(max(col, 0), min(col + 64, width))
        assert part[rows, cols].all() and part.sum() == part[rows, cols].size
    assert (count == 1).all()


def test_cells() -> None:
    tiling = cut_scene(100, 33, 64, 0, stride=32)
    assert (tiling.down.length, tiling.across.length) == (4, 2)
    assert tiling.down.starts == (0, 2) and tiling.across.starts == (0,)


@pytest.mark.parametrize(
    ('size', 'overlap', 'stride', 'message'),
    [
        (0, 0, 1, 'size=0 is the side of a window'),
        (48, 0, 32, 'size=48 .* positive multiple of 32'),
        (64, 32, 1, 'overlap=32 of windows of size=64: .* less than half'),
        (64, -1, 1, 'overlap=-1 of windows'),
        (128, 48, 32, 'overlap=48: .* a multiple of 32'),
    ],
)
def test_bad_numbers(size: int, overlap: int, stride: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cut_scene(100, 100, size, overlap, stride)
