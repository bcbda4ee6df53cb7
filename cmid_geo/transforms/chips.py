# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Chips: what views are cut from."""

import torch
from torch import Tensor

from ..ops.cells import CELL


def check_size(size: int) -> None:
    """Refuse views that do not divide into cells.

    Args:
        size: Side of the views in pixels.

    Raises:
        ValueError: If *size* is no positive multiple of 32.
    """
    if size < CELL or size % CELL:
        below, above = max(size // CELL, 1) * CELL, (max(size, 0) // CELL + 1) * CELL
        raise ValueError(
            f'size={size} is no positive multiple of {CELL}: views divide into cells of '
            f'{CELL}x{CELL} pixels, use {below} or {above}'
        )


def check_chips(chips: Tensor, valid: Tensor | None, size: int) -> None:
    """Refuse chips from which no views can be cut.

    Args:
        chips: (batch, bands, height, width) or (batch, dates, bands, height, width).
        valid: (batch, height, width) or (batch, dates, height, width), or None.
        size: Side of the views in pixels.

    Raises:
        ValueError: If a shape does not fit.
    """
    if chips.ndim not in (4, 5) or not chips.is_floating_point():
        raise ValueError(
            f'chips of shape {tuple(chips.shape)} and type {chips.dtype}: views are cut from floats '
            'in [0, 1] of shape (batch, bands, height, width) or (batch, dates, bands, height, width)'
        )
    height, width = chips.shape[-2:]
    if min(height, width) < size:
        raise ValueError(
            f'chips are {height}x{width} pixels but views need {size}: raise '
            'SceneDataModule(patch_size=...) or lower CMID(size=...)'
        )
    expected = chips.shape[:-3] + chips.shape[-2:]
    if valid is not None and valid.shape != expected:
        raise ValueError(
            f'valid has shape {tuple(valid.shape)} but the chips need {tuple(expected)}: '
            'pass one value a pixel, for each date if there are several'
        )


def draw_dates(
    chips: Tensor, valid: Tensor | None
) -> list[tuple[Tensor, Tensor | None]]:
    """Draw two dates of each place, different ones where there are two or more.

    Args:
        chips: (batch, dates, bands, height, width).
        valid: (batch, dates, height, width), or None.

    Returns:
        Chips and validity of the first date, and of the second.
    """
    batch, dates = chips.shape[:2]
    order = torch.rand(batch, dates, device=chips.device).argsort(dim=1)
    rows = torch.arange(batch, device=chips.device)
    drawn = (order[:, 0], order[:, -1])
    return [
        (chips[rows, date], None if valid is None else valid[rows, date])
        for date in drawn
    ]
