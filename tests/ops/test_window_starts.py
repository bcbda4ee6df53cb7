# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

from itertools import pairwise

import pytest

from cmid_geo.ops.window_starts import window_starts


@pytest.mark.parametrize(
    ('given', 'expected'),
    [
        ((10, 4, 3), (0, 3, 6)),
        # The last is moved back
        ((11, 4, 3), (0, 3, 6, 7)),
        ((4, 4, 2), (0,)),
        # Shorter than a window
        ((3, 4, 2), (0,)),
        ((3, 8, 2, 0, True), (-2,)),
        # Beyond the side by a margin
        ((10, 4, 4, 1), (-1, 3, 7)),
    ],
)
def test_by_hand(given: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert window_starts(*given) == expected


@pytest.mark.parametrize('margin', [0, 2])
def test_windows_cover_the_side(margin: int) -> None:
    for length in range(1, 40):
        for size, step in ((8, 8), (8, 3), (5, 1)):
            starts = window_starts(length, size, step, margin)
            assert set(range(length)) <= {s + i for s in starts for i in range(size)}
            assert sorted(set(starts)) == list(starts)
            if length > size:
                assert starts[0] == -margin and starts[-1] + size == length + margin
                assert all(b - a <= step for a, b in pairwise(starts))
