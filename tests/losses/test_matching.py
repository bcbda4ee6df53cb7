# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

import torch

from cmid_geo.losses import nearest_cells, take_cells


def grid(rows: int = 7) -> torch.Tensor:
    side = torch.arange(rows, dtype=torch.float64) * 32 + 15.5
    y, x = torch.meshgrid(side, side, indexing='ij')
    return torch.stack([x, y], dim=-1).view(1, -1, 2)


def slow(positions, others, matches):
    pairs = []
    for i, here in enumerate(positions):
        distances = [(here - there).norm().item() for there in others]
        j = distances.index(min(distances))
        pairs.append((distances[j], i, j))
    pairs = sorted(pairs)[:matches]
    return [i for _, i, _ in pairs], [j for _, _, j in pairs]


def test_equals_slow_loop() -> None:
    positions = torch.rand(3, 49, 2, dtype=torch.float64) * 224
    others = torch.rand(3, 36, 2, dtype=torch.float64) * 224
    cells, partners = nearest_cells(positions, others, 20)
    for b in range(3):
        left, right = slow(positions[b], others[b], 20)
        assert cells[b].tolist() == left
        assert partners[b].tolist() == right


def test_identical_views_match_each_cell_with_itself() -> None:
    cells, partners = nearest_cells(grid(), grid(), 20)
    assert torch.equal(cells, partners)
    assert cells.unique().numel() == 20


def test_flipped_view_matches_across() -> None:
    flipped = grid().view(1, 7, 7, 2).flip(2).reshape(1, 49, 2)
    cells, partners = nearest_cells(grid(), flipped, 49)
    rows, cols = cells // 7, cells % 7
    assert torch.equal(partners, rows * 7 + 6 - cols)


def test_all_cells_where_there_are_fewer() -> None:
    cells, partners = nearest_cells(grid(3), grid(3), 20)
    assert cells.shape == partners.shape == (1, 9)


def test_by_default_in_the_papers_proportion() -> None:
    for side, expected in ((7, 20), (3, 3), (14, 80), (4, 6), (1, 1)):
        cells, _ = nearest_cells(grid(side), grid(side))
        assert cells.shape == (1, expected)


def test_invalid_cells_come_last_and_are_no_partners() -> None:
    valid, others = torch.ones(2, 1, 49, dtype=torch.bool)
    valid[0, :40] = False
    others[0, 40:45] = False
    cells, partners = nearest_cells(grid(), grid(), 20, valid, others)
    assert set(cells[0, :9].tolist()) == set(range(40, 49))
    assert not valid[0, cells[0, 9:]].any()
    assert others[0, partners[0, :9]].all()


def test_take_cells() -> None:
    features = torch.arange(2 * 5 * 3).view(2, 5, 3).double()
    taken = take_cells(features, torch.tensor([[4, 0], [1, 1]]))
    assert torch.equal(taken[0], features[0, [4, 0]])
    assert torch.equal(taken[1], features[1, [1, 1]])
