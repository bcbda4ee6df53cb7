# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""The eight ways to lay a square on its place: flips and quarter turns."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..ops.rotated_boxes import boxes_from_corners, corners


@dataclass(frozen=True)
class Turn:
    """Quarter turns to the left, then a flip from left to right.

    Attributes:
        quarters: How many turns.
        flipped: Whether flipped.
    """

    quarters: int
    flipped: bool

    def apply(self, image: Tensor) -> Tensor:
        """Turn images.

        Args:
            image: (..., side, side).

        Returns:
            Turned.
        """
        turned = torch.rot90(image, self.quarters, (-2, -1)) if self.quarters else image
        return turned.flip(-1) if self.flipped else turned

    def undo(self, image: Tensor) -> Tensor:
        """Turn maps of turned images back.

        Args:
            image: (..., side, side).

        Returns:
            As they were.
        """
        image = image.flip(-1) if self.flipped else image
        return torch.rot90(image, -self.quarters, (-2, -1)) if self.quarters else image

    def undo_boxes(self, boxes: Tensor, size: int) -> Tensor:
        """Find where boxes of a turned image were.

        Args:
            boxes: Upright (N, 4) as (x1, y1, x2, y2), or rotated (N, 5).
            size: Side of the image in pixels.

        Returns:
            Boxes of the same form in the image before it was turned.
        """
        if not self.quarters and not self.flipped:
            return boxes
        if boxes.shape[-1] == 5:
            return boxes_from_corners(self.undo_points(corners(boxes), size))
        points = self.undo_points(boxes.view(-1, 2, 2), size)
        return torch.cat([points.amin(1), points.amax(1)], dim=1)

    def undo_points(
        self, points: Float[Tensor, '*points 2'], size: int
    ) -> Float[Tensor, '*points 2']:
        """Find where points of a turned image were.

        Args:
            points: (x, y) in pixels.
            size: Side of the image.

        Returns:
            (x, y) before it was turned.
        """
        x, y = points[..., 0], points[..., 1]
        x = size - x if self.flipped else x
        for _ in range(self.quarters):
            # What a turn to the left brought to (x, y) came from (size - y, x)
            x, y = size - y, x
        return torch.stack([x, y], dim=-1)


#: First the image as it is.
TURNS: dict[str, tuple[Turn, ...]] = {
    'none': (Turn(0, False),),
    'flips': (Turn(0, False), Turn(0, True), Turn(2, False), Turn(2, True)),
    'turns': tuple(Turn(quarters, False) for quarters in range(4)),
    'all': tuple(Turn(q, flipped) for flipped in (False, True) for q in range(4)),
}


def turns_of(name: str) -> tuple[Turn, ...]:
    """Look a set of turns up.

    Args:
        name: 'none', 'flips', 'turns' or 'all'.

    Returns:
        The turns.

    Raises:
        ValueError: If there is no such set.
    """
    if name not in TURNS:
        raise ValueError(f'tta={name!r}: choose one of {list(TURNS)}')
    return TURNS[name]
