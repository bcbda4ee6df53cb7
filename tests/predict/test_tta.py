# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

import math

import pytest
import torch

from cmid_geo.ops.rotated_boxes import canonical, corners
from cmid_geo.predict.tta import TURNS, Turn, turns_of

SIDE = 8


@pytest.mark.parametrize('turn', TURNS['all'], ids=str)
def test_undone(turn: Turn) -> None:
    image = torch.randn(2, 3, SIDE, SIDE)
    assert torch.equal(turn.undo(turn.apply(image)), image)


@pytest.mark.parametrize('turn', TURNS['all'], ids=str)
def test_points_and_boxes_follow_pixels(turn: Turn) -> None:
    image = torch.zeros(SIDE, SIDE)
    image[1:3, 4:7] = 1
    turned = turn.apply(image)
    rows, cols = turned.nonzero().unbind(1)
    box = torch.tensor([[cols.min(), rows.min(), cols.max() + 1, rows.max() + 1]])
    assert turn.undo_boxes(box.float(), SIDE).tolist() == [[4, 1, 7, 3]]
    x0, y0, x1, y1 = box[0].tolist()
    rotated = [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0, 0.0]
    undone = turn.undo_boxes(torch.tensor([rotated]), SIDE)
    expected = canonical(torch.tensor([[5.5, 2.0, 3.0, 2.0, 0.0]]))
    torch.testing.assert_close(undone, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize('turn', TURNS['all'], ids=str)
def test_oblique_boxes_keep_their_corners(turn: Turn) -> None:
    box = torch.tensor([[3.0, 5.0, 4.0, 1.0, 0.3]])
    undone = corners(turn.undo_boxes(box, SIDE))
    wanted = turn.undo_points(corners(box), SIDE)
    gaps = torch.cdist(undone[0], wanted[0]).min(dim=1).values
    assert gaps.max() < 1e-5
    assert not math.isclose(float(undone[0, 0, 0]), float(corners(box)[0, 0, 0])) or (
        turn == TURNS['none'][0]
    )


def test_sets() -> None:
    assert [len(turns_of(name)) for name in ('none', 'flips', 'turns', 'all')] == [
        1, 4, 4, 8,
    ]  # fmt: skip
    image = torch.arange(4.0).view(2, 2)
    for name, turns in TURNS.items():
        assert torch.equal(turns[0].apply(image), image)
        different = {tuple(turn.apply(image).flatten().tolist()) for turn in turns}
        assert len(different) == len(turns), name
    flipped = {tuple(t.apply(image).flatten().tolist()) for t in TURNS['flips']}
    assert (1.0, 0.0, 3.0, 2.0) in flipped and (2.0, 3.0, 0.0, 1.0) in flipped
    with pytest.raises(ValueError, match="tta='x': choose one of"):
        turns_of('x')
