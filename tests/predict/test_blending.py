# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cmid_geo.predict.blending import Blender, Spill, blend
from cmid_geo.predict.tiling import Tiling, cut_scene

SIZE = 16


def keep(values: Tensor, valid: Tensor) -> list[np.ndarray]:
    return [np.where(valid.numpy(), values.numpy(), np.nan)]


def paint(parts: Any, height: int, width: int) -> np.ndarray:
    """Put finished regions on a canvas; each place must come once."""
    canvas = np.full((2, height, width), np.inf)
    for region, (values,) in parts:
        place = (slice(None), slice(*region.rows), slice(*region.cols))
        assert np.isinf(canvas[place]).all()
        canvas[place] = values
    return canvas


@pytest.fixture
def tiling() -> Tiling:
    return cut_scene(50, 41, SIZE, 6)


@pytest.fixture
def windows(tiling: Tiling) -> list[tuple[int, Tensor, Tensor]]:
    """Noise for each window: what is joined depends on every part of it."""
    valid = torch.ones(SIZE, SIZE, dtype=torch.bool)
    return [(n, torch.randn(2, SIZE, SIZE), valid) for n in range(len(tiling))]


def reference(tiling: Tiling, windows: Any) -> np.ndarray:
    """The weighted mean, from sums over the whole scene."""
    total, weight = np.zeros((2, 90, 90)), np.zeros((90, 90))
    profile = tiling.down.weights[:, None] * tiling.across.weights
    for number, values, _ in windows:
        row, col = (20 + place for place in tiling.corner(number))
        rows, cols = slice(row, row + SIZE), slice(col, col + SIZE)
        total[:, rows, cols] += profile * values.numpy()
        weight[rows, cols] += profile
    return (total / np.maximum(weight, 1e-12))[:, 20:70, 20:61]


@pytest.mark.parametrize('budget', [0, 3000, 2**27])
@pytest.mark.parametrize('order', ['forwards', 'backwards', 'mixed'])
def test_weighted_mean_in_any_order_and_memory(
    tiling: Tiling, windows: Any, tmp_path: Path, budget: int, order: str
) -> None:
    places = {
        'forwards': list(range(len(windows))),
        'backwards': list(range(len(windows)))[::-1],
        'mixed': torch.randperm(len(windows)).tolist(),
    }[order]
    spill = Spill(tmp_path / 'spill.bin')
    blender = Blender(tiling, keep, spill, budget=budget)
    parts = [part for n in places for part in blender.add(*windows[n])]
    found = paint(parts, 50, 41)
    np.testing.assert_allclose(found, reference(tiling, windows), atol=1e-5)
    # To the bit the same, whatever the order and whatever went to disk
    straight = Blender(tiling, keep, Spill(tmp_path / 'other.bin'))
    again = paint([p for w in windows for p in straight.add(*w)], 50, 41)
    assert (found == again).all()
    assert (tmp_path / 'spill.bin').exists() == (budget < 2**27)
    assert not blender._waiting and not blender._held and not list(spill.places)


@pytest.mark.parametrize('shares', [1, 2, 3, 7])
def test_processes_share_a_scene(
    tiling: Tiling, windows: Any, tmp_path: Path, shares: int
) -> None:
    whole = Blender(tiling, keep, Spill(tmp_path / 'whole.bin'))
    expected = paint([part for each in windows for part in whole.add(*each)], 50, 41)
    parts, spills, total = [], [], len(windows)
    for rank in range(shares):
        mine = range(rank * total // shares, (rank + 1) * total // shares)
        spill = Spill(tmp_path / f'{rank}.bin')
        blender = Blender(tiling, keep, spill, mine.__contains__)
        parts += [part for n in mine for part in blender.add(*windows[n])]
        spill.close()
        # As another process gets it
        spills.append(pickle.loads(pickle.dumps(spill)))
    parts += blender.join(spills)
    assert (paint(parts, 50, 41) == expected).all()


def test_equal_values_stay_what_they_are() -> None:
    value = torch.randn(3, 9, 9) * 10.0 ** torch.randint(-30, 30, (3, 9, 9))
    weights = [np.random.default_rng(n).uniform(1e-4, 1, (9, 9)) for n in range(4)]
    mean = blend([value.clone() for _ in weights], weights)
    assert torch.equal(mean, value)


def test_spill(tmp_path: Path) -> None:
    spill = Spill(tmp_path / 'a.bin')
    first, second = np.arange(6.0).reshape(2, 3), np.array([[True], [False]])
    spill.put((1, 2), first, second)
    spill.put((3,), first.astype(np.float16)[:, ::2])
    assert list(spill.places) == [(1, 2), (3,)]
    back = spill.take((1, 2))
    assert (back[0] == first).all() and (back[1] == second).all()
    assert back[1].dtype == bool and list(spill.places) == [(3,)]
    spill.put((4,), first)
    assert (spill.take((3,))[0] == [[0, 2], [3, 5]]).all()
    spill.close()
    opened = pickle.loads(pickle.dumps(spill))
    assert (opened.take((4,))[0] == first).all()
