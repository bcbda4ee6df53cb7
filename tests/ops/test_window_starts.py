# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

import pytest

from cmid_geo.ops.window_starts import window_starts


@pytest.mark.parametrize(
    ('side', 'expected'),
    [(40, (0,)), (64, (0,)), (65, (0, 1)), (108, (0, 44)), (109, (0, 44, 45)), (200, (0, 44, 88, 132, 136))],
)  # fmt: skip
def test_windows_cover_a_side(side: int, expected: tuple[int, ...]) -> None:
    assert window_starts(side, 64, 44) == expected


def test_margins_and_short_sides() -> None:
    assert window_starts(100, 64, 32, margin=16) == (-16, 16, 48, 52)
    assert window_starts(40, 64, 32, centred=True) == (-12,)
