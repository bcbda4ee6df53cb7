# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Matching of the cells of two views that show the same ground."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@torch.no_grad()
def nearest_cells(
    positions: Float[Tensor, 'batch cells 2'],
    other_positions: Float[Tensor, 'batch others 2'],
    matches: int | None = None,
    valid: Bool[Tensor, 'batch cells'] | None = None,
    other_valid: Bool[Tensor, 'batch others'] | None = None,
) -> tuple[Int[Tensor, 'batch matches'], Int[Tensor, 'batch matches']]:
    """Pair each cell with the nearest cell of the other view; keep the closest pairs.

    The loop that this stands for, for each image::

        pairs = []
        for i, here in enumerate(positions):
            j = argmin(norm(here - there) for there in other_positions)
            pairs.append((norm(here - other_positions[j]), i, j))
        return sorted(pairs)[:matches]

    Args:
        positions: Centres (x, y) of the cells of one view, in pixels of the chip.
        other_positions: Centres of the cells of the other view, in pixels of the same chip.
        matches: Number of pairs to keep, all if there are fewer cells; by default in the
            paper's proportion, 20 of 49 cells, rounded down, but at least one.
        valid: Whether a cell holds enough valid pixels; all do by default. Pairs of which
            one side does not come last.
        other_valid: The same for the other view.

    Returns:
        Indices of the kept cells and of their partners, closest pairs first.
    """
    if matches is None:
        matches = max(1, positions.shape[1] * 20 // 49)
    difference = positions[:, :, None] - other_positions[:, None]
    distance = difference.square().sum(dim=-1)
    if other_valid is not None:
        distance = distance.masked_fill(~other_valid[:, None], torch.inf)
    nearest, partner = distance.min(dim=2)
    if valid is not None:
        nearest = nearest.masked_fill(~valid, torch.inf)
    kept = nearest.argsort(dim=1, stable=True)[:, :matches]
    return kept, partner.gather(1, kept)


def take_cells(
    features: Float[Tensor, 'batch cells dim'], indices: Int[Tensor, 'batch matches']
) -> Float[Tensor, 'batch matches dim']:
    """Pick cells by index.

    Args:
        features: One vector a cell.
        indices: Which cells to take from each image.

    Returns:
        The vectors of those cells, in the order of *indices*.
    """
    return features.gather(1, indices[..., None].expand(-1, -1, features.shape[-1]))
